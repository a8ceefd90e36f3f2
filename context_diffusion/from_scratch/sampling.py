"""The reverse process: U-Net, guidance and scheduler in a loop, each picture with its own random numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..checks import LIMITS, check_count, check_list
from ..signatures import checked
from .schedulers import Scheduler, Time
from .unet import UNet

Latents = Float[Tensor, "batch channels height width"]
Context = Float[Tensor, "rows tokens dim"]


@dataclass(frozen=True, eq=False)
class State:
    """The state after a step: latents ``x`` at time ``t``, and the clean latents ``x_0`` that the network predicts."""

    step: int
    t: Time
    x: Latents
    x_0: Latents


def guided_prediction(unet: UNet, x: Latents, t: Time, context: Context, guidance_scale: float) -> Latents:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): away from the negative prompt, past the given one.

    eps = eps(x, negative) + w (eps(x, prompt) - eps(x, negative)); their w is ours minus 1. ``context`` holds the
    negative prompts, then the prompts; with only as many rows as ``x`` there are no negatives and no guidance.
    """
    if len(context) == len(x):
        return unet(x, t, context)
    output = unet(repeat(x, "batch ... -> (branches batch) ...", branches=2), t, context)
    negative, positive = rearrange(output, "(branches batch) ... -> branches batch ...", branches=2)
    return negative + guidance_scale * (positive - negative)


@torch.no_grad()
def denoise(
    unet: UNet,
    scheduler: Scheduler,
    x: Latents,
    steps: Sequence[tuple[Time, Time]],
    context: Context,
    guidance_scale: float = 7.5,
    generators: Sequence[torch.Generator] = (),
) -> Iterator[State]:
    """The reverse process, one ``State`` per step: iterate over it to look at each.

    Only stochastic samplers use the ``generators``, one per picture.
    """
    for i, (t, s) in enumerate(steps):
        output = guided_prediction(unet, scheduler.model_input(x, t), t, context, guidance_scale)
        noise = draw_noise(x[0].shape, generators).to(x) if scheduler.stochastic else None
        x, x_0 = scheduler.step(output, x, t, s, noise)
        yield State(i, s, x, x_0)


@checked
def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """A batch of standard normal numbers, each picture's from its own generator, on the CPU, in float32."""
    given = check_list("generators", generators, LIMITS["num_images"])
    if not given or not all(isinstance(each, torch.Generator) for each in given):
        raise TypeError("Noise needs a list of torch.Generator, one for each picture.")
    if min(shape, default=1) < 0 or math.prod(shape) > LIMITS["pixels"]:
        raise ValueError(f"Noise has a shape of a few whole numbers, at least 0; got {tuple(shape)}.")
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in given])


@checked
def make_generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """One generator for each picture; a single ``seed`` stands for itself and the numbers after it."""
    check_count("count", count, LIMITS["num_images"])
    seeds = range(seed, seed + count) if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"Give one seed, or one for each of the {count} prompts; got {len(seeds)}.")
    return [torch.Generator().manual_seed(s) for s in seeds]
