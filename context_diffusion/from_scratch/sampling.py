"""The reverse process: the U-Net, guidance and the scheduler in a loop, each picture with its own random numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .schedulers import Scheduler, Time
from .unet import UNet

Latents = Float[Tensor, "batch channels height width"]
Context = Float[Tensor, "rows tokens dim"]


@dataclass(frozen=True, eq=False)
class State:
    """Sampling after one step: latents ``x`` at time ``t``, and the picture ``x_0`` that the network expects."""

    step: int
    t: Time
    x: Latents
    x_0: Latents


def guided_prediction(unet: UNet, x: Latents, t: Time, context: Context, guidance_scale: float) -> Latents:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): away from the empty prompt, past the given one.

    eps = eps(x, negative) + w (eps(x, prompt) - eps(x, negative)); their w is ours minus 1. ``context`` holds the
    negative prompts, then the prompts; with as many rows as ``x`` there are no negatives and no guidance.
    """
    if len(context) == len(x):
        return unet(x, t, context)
    negative, positive = unet(torch.cat([x, x]), t, context).chunk(2)
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
    """The reverse process, one ``State`` per step: iterate over it to look at every one.

    ``generators``, one per picture, are used by random samplers only.
    """
    for i, (t, s) in enumerate(steps):
        output = guided_prediction(unet, scheduler.model_input(x, t), t, context, guidance_scale)
        noise = draw_noise(x[0].shape, generators).to(x) if scheduler.stochastic else None
        x, x_0 = scheduler.step(output, x, t, s, noise)
        yield State(i, s, x, x_0)


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers, a batch of them: each picture from its own generator, on the CPU, in float32."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def make_generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """A generator for each picture. One number means that one and those after it."""
    seeds = range(seed, seed + count) if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"Give one seed, or one for each of the {count} prompts; got {len(seeds)}.")
    return [torch.Generator().manual_seed(s) for s in seeds]
