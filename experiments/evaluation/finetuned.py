"""An eleventh style: does a LoRA on two dozen linocuts bring it to objects and layouts that were not among them?

No training saw a linocut: lines and stripes cut out of a dark sheet that lies on coloured paper. The same prompts and
seeds are drawn before and after fine-tuning, and scored against unseen linocuts. The judge knows ten styles and never
saw this one, so its answers on real linocuts are reported next to those on drawn ones.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.images import load_image, save_image, to_tensor
from context_diffusion.metrics import (
    estimate_difference,
    estimate_mean,
    palette_distances,
    palette_of,
    reference_scores,
)
from context_diffusion.scenes import OBJECTS, SIZE, Rendering, Scene, Style, render
from context_diffusion.scenes.vocabulary import article

from .accuracy import accuracy
from .bench import Bench
from .report import Report
from .sheets import labelled_sheet
from .unseen import FINETUNED, seed_of

INK, PAPER = (0.10, 0.08, 0.25), (0.98, 0.75, 0.30)
TRAINED_ON = OBJECTS[::2]  # half of the objects are in the pictures to learn from; the others must follow
RECIPE = {"steps": 600, "batch_size": 8, "learning_rate": 2e-3}


def linocut(drawn: Rendering, ink: Sequence[float] = INK, paper: Sequence[float] = PAPER) -> Float[np.ndarray, "h w 3"]:
    """Cut a flat scene out of a sheet of ink: the object cut away, what is behind it in stripes, outlines reversed."""
    y, x = np.mgrid[:SIZE, :SIZE]
    stripes = (x + y) % 10 < 4
    cut = np.where(drawn.segments == 3, 1.0, np.where(drawn.segments == 2, stripes, 0.0))
    cut = np.where(to_tensor(drawn.image).mean(0).numpy() < 0.25, cut * 0.4, cut)
    cut = np.where(drawn.edges, 1 - cut, cut)[..., None]
    return (cut * np.array(paper) + (1 - cut) * np.array(ink)).astype(np.float32)


def flat_scenes(first: int, objects: Sequence[str]) -> list[Rendering]:
    """Draw unseen flat scenes of the given objects, all in one palette: a linocut follows their contrasts."""
    style = Style.draw(4, name="flat")
    seeds = [seed_of(FINETUNED + first + number) for number in range(len(objects))]
    return [render(Scene.draw(seed, object=name), style, seed) for seed, name in zip(seeds, objects, strict=True)]


def run(bench: Bench) -> Report:
    """Train a LoRA, draw every object before and after, and score both."""
    from context_diffusion.finetune import finetune

    bench.need("judge")
    lessons, seeds = flat_scenes(0, TRAINED_ON * bench.count(4, 1)), range(bench.count(4, 1))
    real = [load_image(linocut(one)) for one in flat_scenes(1000, OBJECTS * 4)]
    prompts = [f"{article(name)}, linocut style" for name in OBJECTS]
    requests = [Request(prompt=prompt, seed=seed) for seed in seeds for prompt in prompts]
    before = bench.draw(requests)
    recipe = RECIPE | ({"steps": 5} if bench.quick else {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "linocut"
        for number, one in enumerate(lessons):
            path = save_image(linocut(one), folder / f"{number:02d}.png")
            path.with_suffix(".txt").write_text(f"{article(one.scene.object)}, linocut style")
        finetune(folder, "", Path(scratch) / "lora", model=bench.name, **recipe)
        bench.model.pipeline.load_lora_weights(Path(scratch) / "lora")
        try:
            after = bench.draw(requests)
        finally:
            bench.model.pipeline.unload_lora_weights()
    said = ", ".join(f"{value:g} {name.replace('_', ' ')}" for name, value in recipe.items())
    report = Report(notes=[
        f"{len(lessons)} pictures of {', '.join(TRAINED_ON)}; {said}; one drawn picture is one unit",
        "palette distance and DINO similarity to 24 unseen linocuts; 'new objects' were in no training picture",
    ])  # fmt: skip
    score(report, bench, {"before": before, "after": after, "real": real})
    width = len(OBJECTS)
    rows = {"before, seed 0": before[:width]}
    rows |= {f"after, seed {seed}": after[seed * width :][:width] for seed in seeds}
    report.sheets["pictures"] = labelled_sheet(rows | {"really cut": real[:width]}, OBJECTS)
    return report


def score(report: Report, bench: Bench, drawn: dict[str, list[Image.Image]]) -> None:
    """Add palette distance, DINO similarity and object accuracy; the second half of the real linocuts is the target."""
    encoder = bench.dino
    half = len(drawn["real"]) // 2
    others: list[Image.Image] = drawn["real"][half:]
    palette, target = palette_of(others), encoder.encode_images(others)
    palettes, alike = {}, {}
    for key, pictures in drawn.items():
        asked = [OBJECTS[i % len(OBJECTS)] for i in range(len(pictures))]
        new = np.array([name not in TRAINED_ON for name in asked])
        shown = pictures[:half] if key == "real" else pictures  # the other half is what they are compared with
        palettes[key] = palette_distances(shown, palette)
        alike[key] = reference_scores(shown, target, encoder.encode_images).mean(axis=1)
        report.add(f"palette distance to linocuts, {key}", estimate_mean(palettes[key]).within(0))
        report.add(f"DINO similarity to linocuts, {key}", estimate_mean(alike[key]))
        seen, wanted = bench.judge(pictures)["object"], [OBJECTS.index(name) for name in asked]
        report.add(f"object accuracy, {key}", accuracy(seen, wanted))
        report.add(f"object accuracy, {key}, new objects", accuracy(seen, wanted, among=new))
    report.add("palette distance, after less before", estimate_difference(palettes["after"], palettes["before"]))
    report.add("DINO similarity, after less before", estimate_difference(alike["after"], alike["before"]))
