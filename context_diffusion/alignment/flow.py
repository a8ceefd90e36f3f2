"""References for transformers that are trained by flow matching: FLUX, SD3, Qwen-Image, Z-Image.

A flow runs along straight lines from a picture to noise, ``z = (1 - sigma) x + sigma e`` (Lipman et al. 2023; Liu et
al. 2023), and the network predicts their velocity ``v = e - x``. A step of sampling is Euler's, ``z' = z + (sigma' -
sigma) v``; a step back wants v at the noisier latent, which is not known yet, so it is taken at the cleaner one and
found anew by fixed-point iterations, as in :mod:`context_diffusion.alignment.inversion`.

What a transformer is given besides latents and time (text, pooled text, positions, guidance) differs from model to
model. So no text is encoded here: the pipeline is called, and stopped where it calls its transformer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_count, check_number
from ..guidance import without_compilation
from ..images import ImageLike, listed, resize, to_tensor
from ..latents import generators
from .hooks import is_style_aligned
from .networks import Architecture, Given, architecture_of, arguments_of, by_name, rows_of
from .trajectory import Trajectory, describe_model


class _Stopped(Exception):
    """The pipeline has come to its transformer."""


@dataclass(frozen=True)
class FlowStart:
    """What a trajectory starts from: clean latents, the noise levels, and what else the transformer is given."""

    pipe: Any
    clean: Float[Tensor, "references ..."]
    timesteps: Float[Tensor, " steps"]
    sigmas: Float[Tensor, " levels"]
    embeddings: dict[str, Tensor]
    shared: Given
    facts: dict[str, Any]

    def trajectory(self, found: Tensor, **facts) -> Trajectory:
        """The latents found at all levels, with what they belong to."""
        sigmas = self.sigmas.double()
        signal, noise = (1 - sigmas) ** 2, sigmas**2
        return Trajectory(
            latents=found.float().cpu(),
            timesteps=self.timesteps.float().cpu(),
            alphas=signal / (signal + noise),
            embeddings=self.embeddings,
            shared=self.shared,
            model=describe_model(self.pipe),
            **self.facts,
            **facts,
        )


@torch.no_grad()
def flow_invert(
    pipe,
    image: ImageLike | Sequence[ImageLike] | None = None,
    prompt: str | Sequence[str] = "",
    *,
    latents: Float[Tensor, "references ..."] | None = None,
    num_inference_steps: int = 28,
    guidance_scale: float = 1.0,
    negative_prompt: str | None = None,
    fixed_point_iterations: int = 0,
    height: int | None = None,
    width: int | None = None,
    **options,
) -> Trajectory:
    """Invert one or more pictures along the straight lines of a flow, on the steps that ``pipe`` will take.

    ``image`` is a picture or a list of them, cropped to ``height`` x ``width``; or ``latents`` are encoded ones, as the
    transformer sees them. ``prompt`` describes the reference: one for all, or one each. ``guidance_scale`` is the one
    that FLUX is told; classifier-free guidance is off. Each of ``fixed_point_iterations`` costs as many calls of the
    transformer as the inversion itself. ``options`` go to the pipeline, such as ``prompt_embeds``. Returns a
    :class:`Trajectory` whose level k is what step k of ``num_inference_steps`` meets. Raises ``TypeError`` or
    ``ValueError`` before work starts.
    """
    check_count("fixed_point_iterations", fixed_point_iterations, low=0)
    start = flow_start(
        pipe, image, prompt, latents, num_inference_steps, guidance_scale, negative_prompt, height, width, options
    )
    architecture = architecture_of(pipe)
    network, given = getattr(pipe, architecture.part), arguments_of(start.embeddings, start.shared, ("cond",))
    found = [start.clean]
    steps = list(zip(start.timesteps.tolist(), start.sigmas[:-1].tolist(), start.sigmas[1:].tolist(), strict=True))
    with pipe.progress_bar(total=len(steps)) as progress:
        for time, sigma, cleaner in reversed(steps):
            guess, told = found[-1], torch.tensor([architecture.argument(time)], device=start.clean.device)
            for _ in range(1 + fixed_point_iterations):
                velocity = architecture.called(network, guess, told, given)
                guess = found[-1] + (sigma - cleaner) * velocity.to(guess)
            found.append(guess)
            progress.update()
    facts = {"method": "flow inversion", "fixed_point_iterations": fixed_point_iterations}
    return start.trajectory(torch.stack(found[::-1]), **facts)


@torch.no_grad()
def noised_flow_reference(
    pipe, image, prompt, latents, seed, steps, negative_prompt, height, width, options
) -> Trajectory:
    """:func:`noised_reference` for a flow: ``z = (1 - sigma) x + sigma e`` with one noise for each picture."""
    start = flow_start(pipe, image, prompt, latents, steps, None, negative_prompt, height, width, options)
    shape = start.clean.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators(seed, len(start.clean))])
    noise = noise.to(start.clean)
    found = [(1 - sigma) * start.clean + sigma * noise for sigma in start.sigmas.tolist()]
    return start.trajectory(torch.stack(found), method="added noise", seed=seed)


def flow_start(
    pipe, image, prompt, latents, steps, guidance_scale, negative_prompt, height, width, options: Given
) -> FlowStart:
    """Check everything, encode the pictures, and let the pipeline say what its transformer is given."""
    architecture = architecture_of(pipe)
    if architecture.grid is None:
        raise TypeError(
            "A flow is inverted on a pipeline with a transformer; invert a U-Net's pictures by ddim_invert."
        )
    network = without_compilation(getattr(pipe, architecture.part))
    check_source(network, image, latents)
    check_count("num_inference_steps", steps, 1000)
    check_sides(pipe, height=height, width=width)
    pictures = [] if image is None else listed(image)
    if image is not None and not pictures:
        raise ValueError("At least one picture is needed; the list of images is empty.")
    count = len(pictures) if latents is None else len(latents)
    prompts = one_each(prompt, count)
    if latents is None:
        clean = encode_for(pipe, architecture, pictures, width, height)
    else:
        clean = latents.to(pipe._execution_device, torch.float32)
    given = {"height": height, "width": width, "num_inference_steps": steps, "output_type": "latent"}
    if guidance_scale is not None and architecture.told_guidance:
        given["guidance_scale"] = check_number("guidance_scale", guidance_scale, 0)
    elif guidance_scale not in (None, 1):
        raise ValueError(
            f"Only FLUX is told a guidance_scale; this flow is inverted without, at 1. Got {guidance_scale}."
        )
    given |= architecture.one_branch | options
    texts: dict[str, list[str] | None] = {"cond": list(prompts), "uncond": [negative_prompt or ""] * count}
    if "prompt_embeds" in options:  # a text that no prompt says
        texts = {"cond": None}
    embeddings: dict[str, Tensor] = {}
    shared: Given = {}
    for branch, text in texts.items():
        for name, value in given_by(pipe, architecture, {**given, "prompt": text}).items():
            if name in architecture.per_image and value is not None:
                embeddings |= rows_of(value, f"{branch}.{name}")
            else:
                shared[name] = value[:1] if isinstance(value, list) else value  # shapes, which all pictures share
    rows, columns = architecture.grid_of(network, clean, embeddings, shared)
    if clean.ndim == 3 and clean.shape[1] != rows * columns:  # packed into a sequence
        raise ValueError(
            f"These latents are a sequence of {clean.shape[1]} patches, and the picture's height and width make {rows} "
            f"x {columns}; pass those of the picture they belong to."
        )
    return FlowStart(
        pipe,
        clean,
        pipe.scheduler.timesteps.clone(),
        pipe.scheduler.sigmas.clone(),
        embeddings,
        shared,
        {"prompts": prompts, "negative_prompt": negative_prompt, "guidance_scale": float(guidance_scale or 1.0)},
    )


def check_source(network: nn.Module, image, latents) -> None:
    """Raise ``RuntimeError`` inside a block, ``ValueError`` unless there is either a picture or latents."""
    if is_style_aligned(network):
        raise RuntimeError("Make references before the style_aligned block: inside it, images share attention.")
    if (image is None) == (latents is None):
        raise ValueError("Give either image (one picture or a list of them) or latents: one of the two, not both.")


def one_each(prompt: str | Sequence[str], count: int) -> tuple[str, ...]:
    """A prompt for each of ``count`` references, from one for all or one each."""
    prompts = (prompt,) * count if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != count:
        raise ValueError(f"Give one prompt for all references or one each; got {len(prompts)} for {count}.")
    return prompts


def check_sides(pipe, **sides: int | None) -> None:
    """Raise ``ValueError`` for a side of a picture that patches of 2 x 2 latents do not fill."""
    patch = 2 * pipe.vae_scale_factor
    for name, side in sides.items():
        if side is not None and (side < patch or side % patch):
            raise ValueError(f"The {name} of a picture is a multiple of {patch} pixels for this pipeline; got {side}.")


def given_by(pipe, architecture: Architecture, options: Given) -> Given:
    """What the pipeline gives its transformer at the first step, without latents and time; only texts are encoded."""
    network, told = getattr(pipe, architecture.part), {}

    def stop(_network, args, kwargs):
        told.update(by_name(network, args, kwargs))
        raise _Stopped

    handle = without_compilation(network).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        pipe(**{name: value for name, value in options.items() if value is not None})
    except _Stopped:
        pass
    else:
        raise RuntimeError(f"{type(pipe).__name__} has come to its end without calling its transformer; check options.")
    finally:
        handle.remove()
    unwanted = (architecture.sample, architecture.timestep, "return_dict", *architecture.residuals)
    kept = {name: value for name, value in told.items() if name not in unwanted}
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in kept.items()}


def encode_for(
    pipe, architecture: Architecture, pictures: Sequence[ImageLike], width: int | None, height: int | None
) -> Float[Tensor, "references ..."]:
    """The latents of pictures as the transformer sees them: of the VAE's posterior the mean, normalized and packed."""
    side = getattr(pipe, "default_sample_size", 128) * pipe.vae_scale_factor  # Z-Image has none: 1024 pixels
    size = (side if width is None else width, side if height is None else height)
    pixels = torch.stack([to_tensor(resize(picture, size)) for picture in pictures]) * 2 - 1
    vae, config = pipe.vae, pipe.vae.config
    if architecture.video:
        pixels = pixels.unsqueeze(2)
    latents = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist.mode().float()
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        latents = (latents - latents.new_tensor(mean).view(shape)) / latents.new_tensor(std).view(shape)
    latents = (latents - (config.get("shift_factor") or 0)) * (config.get("scaling_factor") or 1)
    return architecture.pack(pipe, latents)
