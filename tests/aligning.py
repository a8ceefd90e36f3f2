"""What the tests of ``style_aligned`` share: a calm tiny pipeline, drawing with it, and its reference from outside."""

from functools import cache

import torch

from context_diffusion.alignment.trajectory import Trajectory, describe_model

PROMPTS = ["a house, neon style", "a boat, neon style", "a cat on green hills, neon style"]
STEPS = 2


@cache
def calm(make):
    """A pipeline that does not blow up rounding: its noise prediction changes slowly with the latent."""
    pipe = make(fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    return pipe


def noise(count: int = len(PROMPTS), size: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(1))


def draw(pipe, prompts=PROMPTS, *, guidance_scale=5.0, latents=None, **options) -> torch.Tensor:
    latents = noise(len(prompts)) if latents is None else latents
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    return pipe(list(prompts), latents=latents, guidance_scale=guidance_scale, **options).images


@cache
def recorded(make, guidance_scale: float = 5.0, **_) -> Trajectory:
    """The first image of the batch as a trajectory: what the U-Net meets at each step of plain sampling."""
    pipe, latents = calm(make), [noise()[:1]]
    keep = lambda _pipe, _step, _time, tensors: latents.append(tensors["latents"][:1].clone()) or {}  # noqa: E731
    draw(pipe, PROMPTS[:1], guidance_scale=guidance_scale, latents=latents[0], callback_on_step_end=keep)
    encoded = pipe.encode_prompt(PROMPTS[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    embeddings = dict(zip(("cond", "uncond", "pooled_cond", "pooled_uncond"), encoded, strict=False))
    if len(encoded) == 4:
        embeddings["time_ids"] = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    timesteps = pipe.scheduler.timesteps
    products = pipe.scheduler.alphas_cumprod.double()
    alphas = torch.cat([products[timesteps], products[:1]])
    return Trajectory(
        torch.stack(latents), timesteps.float(), alphas, embeddings, (PROMPTS[0],), model=describe_model(pipe)
    )
