"""Pixels, prompts and noise levels as a pipeline's networks see them."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import LIMITS, check_count, check_finite, check_number, check_size, check_text, check_texts, shown
from .images import ImageLike, listed, resize, to_tensor
from .signatures import checked

Latents = Float[Tensor, "images channels height width"]


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One CPU generator for each of ``count`` images, seeded ``seed``, ``seed + 1``, ...

    So a picture depends neither on its batch nor on the device. They are what diffusers' ``generator=`` takes.

    >>> [each.initial_seed() for each in generators(5, 2)]
    [5, 6]
    """
    count = check_count("count", count, LIMITS["images"], low=0)
    first = check_count("seed", seed, LIMITS["seed"] - count, low=0)
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


def check_pipeline(pipe: object, *parts: str) -> None:
    """Refuse what is no pipeline around a U-Net and a VAE, or lacks one of some further ``parts``."""
    for part in ("unet", "vae", *parts):
        if getattr(pipe, part, None) is None:
            raise TypeError(f"A pipeline is what cd.load_pipeline() gives; {shown(type(pipe).__name__)} has no {part}.")


def picture_size(pipe, width: int | None, height: int | None) -> tuple[int, int]:
    """Take the size a pipeline was trained for, or the one asked for if its VAE can halve it."""
    check_pipeline(pipe)
    trained = pipe.unet.config.sample_size
    trained = trained if isinstance(trained, int) else trained[0]
    side = trained * pipe.vae_scale_factor
    size = (side if width is None else width, side if height is None else height)
    return check_size(*size, multiple=math.lcm(8, pipe.vae_scale_factor))


def encode_images(pipe, images: Sequence[ImageLike], width: int | None = None, height: int | None = None) -> Latents:
    """The latents of pictures, as the U-Net sees them: the mean of the VAE's posterior, shifted and scaled.

    Each picture is cropped to ``width`` x ``height``, by default the size that the pipeline was trained for. The VAE
    runs in float32 where it overflows in half precision (``force_upcast``). Raises ``ValueError`` for sizes that the
    VAE cannot halve.
    """
    vae, size = pipe.vae, picture_size(pipe, width, height)
    pictures = listed(images)
    if not pictures:
        raise ValueError("There is nothing to encode: pass at least one picture.")
    pixels = torch.stack([to_tensor(resize(picture, size)) for picture in pictures]) * 2 - 1
    dtype = vae.dtype
    upcast = dtype == torch.float16 and vae.config.force_upcast
    try:
        if upcast:
            vae.to(torch.float32)
        latents = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist.mode().float()
    finally:
        if upcast:
            vae.to(dtype)
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        latents = (latents - latents.new_tensor(mean).view(shape)) / latents.new_tensor(std).view(shape)
    return check_finite("The latents of pictures", latents * vae.config.scaling_factor)


def encode_prompts(
    pipe, prompts: Sequence[str], negative_prompt: str | None, width: int, height: int
) -> dict[str, Float[Tensor, "references ..."]]:
    """The text embeddings of both guidance branches, and SDXL's pooled ones and sizes, on the CPU."""
    check_pipeline(pipe, "tokenizer")
    prompts = check_texts("a prompt", prompts)
    width, height = check_size(width, height, multiple=1)
    negative = None if negative_prompt is None else [check_text("negative_prompt", negative_prompt)] * len(prompts)
    arguments = {"prompt": prompts, "negative_prompt": negative, "device": pipe._execution_device}
    encoded = pipe.encode_prompt(**arguments, num_images_per_prompt=1, do_classifier_free_guidance=True)
    names = ("cond", "uncond", "pooled_cond", "pooled_uncond")[: len(encoded)]
    embeddings = {
        name: check_finite("Text embeddings", rows).detach().cpu() for name, rows in zip(names, encoded, strict=True)
    }
    if pipe.unet.config.addition_embed_type == "text_time":
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).float()  # original size, crop corner, target size
        expected = pipe.unet.add_embedding.linear_1.in_features
        if pipe.unet.config.addition_time_embed_dim * 6 + embeddings["pooled_cond"].shape[-1] != expected:
            raise ValueError("This U-Net wants an aesthetic score (the SDXL refiner does); invert with the base model.")
        embeddings["time_ids"] = sizes.repeat(len(prompts), 1)
    return embeddings


@checked
def conditions(
    embeddings: dict[str, Tensor], branches: Sequence[str], like: Tensor
) -> tuple[Float[Tensor, "rows tokens width"], dict[str, Tensor] | None]:
    """Text embeddings and, for SDXL, pooled text and sizes, of the guidance branches one after the other."""
    unknown = [branch for branch in branches if branch not in embeddings]
    if unknown:
        raise ValueError(f"The trajectory has no text embedding for the guidance branch {unknown[0]!r}.")

    def joined(prefix: str) -> Tensor:
        return torch.cat([embeddings[prefix + branch] for branch in branches]).to(like)

    if "pooled_cond" not in embeddings:
        return joined(""), None
    sizes = embeddings["time_ids"].repeat(len(branches), 1).to(like)
    return joined(""), {"text_embeds": joined("pooled_"), "time_ids": sizes}


def alpha_at(scheduler, timestep: float) -> float:
    """``alpha_bar`` of a time step: exact at whole steps, 0 and 1 included.

    Between whole steps the log of the noise-to-signal ratio is interpolated, both parts of it held at 1e-12 or more.
    """
    timestep = check_number("a time step", timestep, -math.inf)
    products = scheduler.alphas_cumprod
    low = min(max(math.floor(timestep), 0), len(products) - 1)
    part, high = timestep - low, min(low + 1, len(products) - 1)
    if part < 1e-6:
        return float(products[low])
    logs = [math.log(max(1 - float(products[i]), 1e-12) / max(float(products[i]), 1e-12)) for i in (low, high)]
    return 1 / (1 + math.exp((1 - part) * logs[0] + part * logs[1]))
