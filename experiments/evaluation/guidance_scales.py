"""How strong should guidance be, and does it help to rescale it or to keep it to the middle of the steps?

The guided prediction is ``uncond + w (cond - uncond)`` (Ho and Salimans 2021). Rescaling gives it the deviation of
``cond``, in part (Lin et al. 2023, equations 15 and 16). An interval of guidance (Kynkaanniemi et al. 2024) leaves the
first and the last steps unguided. The same prompts are drawn from the same noises under every setting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from context_diffusion.latents import generators
from context_diffusion.metrics.inputs import batched
from context_diffusion.scenes import OBJECTS, STYLES

from .accuracy import accuracy
from .bench import Bench
from .realism import distances, real_scenes
from .report import Report
from .sheets import labelled_sheet
from .text_to_image import background, text_prompt, text_requests

SEEDS = range(5)
UNGUIDED = 1 + 1e-6  # a scale of 1 would make diffusers leave out the half of the batch without the prompt
SHOWN = (("boat", "mosaic"), ("cat", "watercolor"))


@dataclass(frozen=True)
class Guidance:
    """A setting: the scale w, how much it is rescaled, and the share of the steps, from and to, that it acts on."""

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def within(self, steps: int) -> Callable:
        """A callback at the end of a step, which sets the scale of the next one."""

        def next_scale(pipe, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
            low, high = self.interval
            pipe._guidance_scale = self.scale if low <= (step + 1) / steps < high else UNGUIDED
            return {}

        return next_scale


SETTINGS = {
    "2": Guidance(2.0),
    "3": Guidance(3.0),
    "5": Guidance(5.0),
    "7.5": Guidance(7.5),
    "5, rescaled by 0.7": Guidance(5.0, rescale=0.7),
    "5, from 0.15 to 0.75 of the steps": Guidance(5.0, interval=(0.15, 0.75)),
}


def run(bench: Bench) -> Report:
    """Object and style accuracy and the distance to real scenes, setting by setting; a sheet of five seeds."""
    objects, styles = (OBJECTS[:2], STYLES[:2]) if bench.quick else (OBJECTS, STYLES[::2])
    asked = text_requests(objects, styles, each=1)
    prompts, seeds = [request.prompt for *_, request in asked], range(len(asked))
    real = real_scenes([(thing, background(thing, style), style) for thing, style, _ in asked])
    report, rows = Report(notes=[f"{len(asked)} prompts, each with a seed of its own; a prompt is one unit"]), {}
    for name, guidance in SETTINGS.items():
        pictures = drawn(bench, prompts, seeds, guidance)
        seen = bench.judge(pictures)
        report.add(f"object accuracy, {name}", accuracy(seen["object"], [OBJECTS.index(thing) for thing, *_ in asked]))
        report.add(f"style accuracy, {name}", accuracy(seen["style"], [STYLES.index(style) for _, style, _ in asked]))
        for features, distance in distances(bench, pictures, real).items():
            report.add(f"Frechet distance to real scenes, {features} features, {name}", distance)
        shown = [text_prompt(*pair) for pair in SHOWN for _ in SEEDS]
        rows[name.replace(", ", ",\n")] = drawn(bench, shown, [*SEEDS] * len(SHOWN), guidance)
    report.sheets["pictures"] = labelled_sheet(rows, [f"seed {seed}" for _ in SHOWN for seed in SEEDS])
    return report


def drawn(bench: Bench, prompts: Sequence[str], seeds: Sequence[int], guidance: Guidance) -> list[Image.Image]:
    """Draw each prompt from its seed under one setting."""
    pictures: list[Image.Image] = []
    for batch in batched(list(zip(prompts, seeds, strict=True)), bench.batch_size):
        texts, of_batch = zip(*batch, strict=True)
        first = guidance.scale if guidance.interval[0] <= 0 else UNGUIDED
        pictures += bench.pipe(
            list(texts),
            num_inference_steps=bench.steps,
            guidance_scale=first,
            guidance_rescale=guidance.rescale,
            generator=[generator for seed in of_batch for generator in generators(seed, 1)],
            callback_on_step_end=guidance.within(bench.steps),
        ).images
    return pictures
