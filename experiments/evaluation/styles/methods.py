"""Style methods, as the bench knows them: ``method(pipe, task, **sampling) -> pictures``, one of each prompt.

``pipe`` is the model as a plain diffusers pipeline, ``task`` has prompts, seeds, references and their captions
(:class:`.tasks.Task`), and ``sampling`` holds ``num_inference_steps`` and ``guidance_scale``. A method leaves the
pipeline as it found it. All make what they need from the references themselves: nothing is kept from task to task.
"""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from einops import einsum
from PIL import Image

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import ddim_invert, noised_reference
from context_diffusion.alignment.settings import StyleSettings
from context_diffusion.context.request import Request
from context_diffusion.finetune import Learner, encode
from context_diffusion.images import load_image, resize, to_tensor
from context_diffusion.latents import picture_size

from ..bench import Bench
from ..papers.scorers import drawn_by
from .tasks import Task

Method = Callable[..., list[Image.Image]]

PLAIN = "plain"
INVERTED, NOISED, SHIFT = "StyleAligned, inverted", "StyleAligned, noised", "shift log 2"
WITHOUT, FULL = "without AdaIN", "full sharing"
SWAP, NVQG = "swapped attention", "NVQG"
ONLY, LOUD, LOUD_ONLY = "Only-Style", "shift log 64", "shift log 64, Only-Style"
SLERP, BOTH = "two references, SLERP", "two references, attention"
CONTEXTS, LORA = "context tokens", "LoRA"
OPTIMISED = "optimised texture"
COLOUR, NEAR = "cheat: colour copy", "cheat: near copy"
LORA_STEPS, LORA_RATE = 60, 2e-3
TEXTURE_STEPS, TEXTURE_RATE = 100, 0.03
ADAPTERS = ("image_encoder", "context_projector", "ip-adapter")


@dataclass(frozen=True)
class Row:
    """A method in the table: how it draws, what its pictures depend on, and how many references it takes."""

    draw: Method
    about: object
    references: int = 1


def plain(pipe, task: Task, **sampling) -> list[Image.Image]:
    """Draw the prompts, and leave the references alone."""
    return pipe(list(task.prompts), generator=task.noise(), **sampling).images


def aligned(
    pipe,
    task: Task,
    *,
    made: Literal["noised", "inverted"] = "noised",
    references: int = 1,
    blend: str = "attention",
    settings: StyleSettings | None = None,
    **sampling,
) -> list[Image.Image]:
    """Align with the first references, ``made`` into trajectories; settings with ``subject_scale`` ask for a mask."""
    make = {"noised": noised_reference, "inverted": ddim_invert}[made]
    shown, said = list(task.references[:references]), list(task.captions[:references])
    trajectory = make(pipe, shown, said, num_inference_steps=sampling["num_inference_steps"])
    subject = task.subject if settings is not None and settings.subject_scale is not None else None
    with style_aligned(pipe, references=trajectory, settings=settings, subject=subject, blend=blend):
        return plain(pipe, task, **sampling)


def with_contexts(bench: Bench, pipe, task: Task, **sampling) -> list[Image.Image]:
    """Draw with the references as contexts: tokens beside the prompt's, or the model's adapter."""
    requests = [
        Request(context_images=task.references, prompt=prompt, seed=seed, **sampling)
        for prompt, seed in zip(task.prompts, task.seeds, strict=True)
    ]
    return bench.model.draw(requests, batch_size=len(requests), progress=False)


def lora(pipe, task: Task, *, steps: int, rate: float, **sampling) -> list[Image.Image]:
    """Teach a copy of the U-Net the references, then draw with it."""
    pupil = copy.copy(pipe)
    pupil.__dict__["unet"] = copy.deepcopy(pipe.unet)
    with torch.random.fork_rng(devices=[]):
        learner = Learner(pupil, rank=8, learning_rate=rate, seed=0)
        latents, text = encode(pupil, list(task.references), list(task.captions))
        for step in range(steps):
            learner.step(latents, text, 4, step)
    pupil.unet.eval()
    return plain(pupil, task, **sampling)


def optimised(pipe, task: Task, *, steps: int, rate: float, **sampling) -> list[Image.Image]:
    """Move the pixels of each plain picture towards the first reference's texture, as Gatys et al. 2016 do.

    The features are those of the autoencoder's encoder, which every model has, in the place of VGG's: its first layer
    and its blocks. Texture is their Gram matrices, content the last block's output; both count by relative error.
    """
    encoder = copy.deepcopy(pipe.vae.encoder).float().requires_grad_(False)
    grams = [gram(one) for one in features(encoder, network_range(task.references[0], encoder))]
    found = []
    for picture in plain(pipe, task, **sampling):
        pixels = network_range(picture, encoder)
        content = features(encoder, pixels)[-1]
        pixels.requires_grad_(True)
        optimizer = torch.optim.Adam([pixels], lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            own = features(encoder, pixels)
            errors = [relative_error(gram(one), style) for one, style in zip(own, grams, strict=True)]
            (sum(errors) + relative_error(own[-1], content)).backward()
            optimizer.step()
            pixels.data.clamp_(-1, 1)
        found.append(load_image(pixels.detach()[0].cpu() / 2 + 0.5))
    return found


def network_range(picture: Image.Image, network: torch.nn.Module) -> torch.Tensor:
    """A picture as a batch of one in [-1, 1], where the network is."""
    return to_tensor(picture)[None].to(next(network.parameters()).device) * 2 - 1


def features(encoder: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What an autoencoder's encoder makes of a picture, (1, channels, height, width), layer by layer."""
    found = [encoder.conv_in(pixels)]
    for block in encoder.down_blocks:
        found.append(block(found[-1]))
    return found


def gram(layer: torch.Tensor) -> torch.Tensor:
    """Mean products of channels over all places, (1, channels, channels)."""
    return einsum(layer, layer, "n a h w, n b h w -> n a b") / layer[0, 0].numel()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared distance, in parts of the squared length of what is wanted."""
    return (found - wanted).square().sum() / wanted.square().sum()


def colour_copy(pipe, task: Task, **sampling) -> list[Image.Image]:
    """Give each plain picture the first reference's mean and spread per channel: a cheat."""
    mean, spread = moments(to_tensor(task.references[0]))
    found = []
    for picture in plain(pipe, task, **sampling):
        pixels = to_tensor(picture)
        own_mean, own_spread = moments(pixels)
        moved = (pixels - own_mean) / own_spread.clamp(min=1 / 255) * spread + mean
        found.append(load_image(moved.clamp(0, 1)))
    return found


def moments(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of a picture."""
    return pixels.mean(dim=(1, 2), keepdim=True), pixels.std(dim=(1, 2), keepdim=True)


def near_copy(pipe, task: Task, **sampling) -> list[Image.Image]:
    """Return the first reference, cropped a little and a little lighter or darker: a cheat."""
    given, found = task.references[0], []
    size = picture_size(pipe, None, None) if hasattr(pipe, "unet") else given.size
    for seed in task.seeds:
        random = np.random.default_rng(seed)
        inner, gain = random.uniform(0.88, 0.98) * np.array(given.size), random.uniform(0.94, 1.06)
        start = random.uniform(0, np.array(given.size) - inner)
        part = given.crop(tuple(np.round([*start, *(start + inner)]).astype(int).tolist()))
        found.append(load_image((to_tensor(resize(part, size)) * gain).clamp(0, 1)))
    return found


_LOUD = StyleSettings(score_shift=math.log(64))  # so loud that objects leak
# What transformers have not.
U_NETS = (INVERTED, FULL, SWAP, NVQG, ONLY, LOUD_ONLY, SLERP, CONTEXTS, LORA, OPTIMISED)
METHODS: dict[str, Method] = {
    PLAIN: plain,
    NOISED: aligned,
    INVERTED: partial(aligned, made="inverted"),
    WITHOUT: partial(aligned, settings=StyleSettings(adain_queries=False, adain_keys=False)),
    FULL: partial(aligned, settings=StyleSettings(full_attention=True)),
    SHIFT: partial(aligned, settings=StyleSettings(score_shift=math.log(2))),
    LOUD: partial(aligned, settings=_LOUD),
    SWAP: partial(aligned, settings=StyleSettings.nvqg(negative_query=False)),
    NVQG: partial(aligned, settings=StyleSettings.nvqg()),
    ONLY: partial(aligned, settings=StyleSettings(subject_scale=0.5)),
    LOUD_ONLY: partial(aligned, settings=replace(_LOUD, subject_scale=0.0)),
    SLERP: partial(aligned, references=2, blend="slerp"),
    BOTH: partial(aligned, references=2),
    CONTEXTS: with_contexts,
    LORA: partial(lora, steps=LORA_STEPS, rate=LORA_RATE),
    OPTIMISED: partial(optimised, steps=TEXTURE_STEPS, rate=TEXTURE_RATE),
    COLOUR: colour_copy,
    NEAR: near_copy,
}


def rows(bench: Bench, references: int) -> dict[str, Row]:
    """The methods that a model can be asked for, by name, where a task has so many references."""
    found = {name: Row(method, source(method), wanted(method)) for name, method in METHODS.items()}
    found[CONTEXTS] = Row(partial(with_contexts, bench), [source(with_contexts), drawn_by(bench, *ADAPTERS)])
    cannot = set() if hasattr(bench.pipe, "unet") else set(U_NETS)
    if not any(bench.has(part) for part in ADAPTERS[1:]):
        cannot.add(CONTEXTS)
    if hasattr(bench.pipe, "text_encoder_2"):
        cannot.add(LORA)  # fine-tuning works on one text encoder
    return {name: row for name, row in found.items() if row.references <= references and name not in cannot}


def wanted(method: Method) -> int:
    """How many references a method of this file takes."""
    return method.keywords.get("references", 1) if isinstance(method, partial) else 1


def source(method: Method) -> list[str]:
    """What a method of this file does, in words that change with it: its source, and its settings."""
    settings = method.keywords if isinstance(method, partial) else {}
    function = method.func if isinstance(method, partial) else method
    return [inspect.getsource(function), repr(sorted(settings.items()))]
