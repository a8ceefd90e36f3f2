"""DDIM inversion: from a picture back to the noise, and every latent on the way, that sampling turns into the picture.

A DDIM step (Song et al. 2021, eq. 12, sigma = 0) moves the clean latent that a noise prediction e implies to another
noise level, ``z' = sqrt(a') (z - sqrt(1 - a) e) / sqrt(a) + sqrt(1 - a') e`` with ``a = alpha_bar``. Run backwards it
needs e at the noisier latent, which is not known yet: plain inversion takes it at the cleaner one; fixed-point
iterations then repeat the step with e at the result, and converge to the exact inverse.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..images import ImageLike
from ..latents import alpha_at, conditions, encode_images, encode_prompts
from .trajectory import Trajectory, describe_model

Latents = Float[Tensor, "references channels height width"]


@dataclass(frozen=True)
class Levels:
    """The noise levels of a sampling run: step k takes ``alphas[k]`` at ``timesteps[k]`` down to ``targets[k]``."""

    timesteps: tuple[float, ...]
    alphas: tuple[float, ...]
    targets: tuple[float, ...]


@torch.no_grad()
def ddim_invert(
    pipe,
    image: ImageLike | Sequence[ImageLike] | None = None,
    prompt: str | Sequence[str] = "",
    *,
    latents: Float[Tensor, "*references channels height width"] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    negative_prompt: str | None = None,
    fixed_point_iterations: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> Trajectory:
    """Invert one or more pictures, all in one batch, along the time steps that the pipeline's scheduler visits.

    ``image`` is a picture or a list of them (cropped to ``height`` x ``width``, by default the size the model was
    made for), or ``latents`` gives encoded ones (scaled, as the U-Net sees them). ``prompt`` describes the reference,
    one for all or one each. ``guidance_scale=1`` inverts without guidance, most accurately; StyleAligned (section 4)
    uses 2. Each fixed-point iteration costs the model calls of another inversion. Returns a :class:`Trajectory` whose
    level k is what step k of sampling meets. Raises ``ValueError`` or ``TypeError`` before work starts.
    """
    _check(pipe, image, latents, num_inference_steps, guidance_scale, fixed_point_iterations)
    levels = noise_levels(pipe.scheduler, num_inference_steps)
    if latents is None:
        latents = encode_images(pipe, image if isinstance(image, list | tuple) else [image], width, height)
    latents = latents if latents.ndim == 4 else latents[None]
    latents = latents.to(pipe._execution_device, torch.float32)
    rows, columns = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
    prompts = (prompt,) * len(latents) if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != len(latents):
        raise ValueError(f"Give one prompt for all references or one each; got {len(prompts)} for {len(latents)}.")

    embeddings = encode_prompts(pipe, prompts, negative_prompt, columns, rows)
    predict = noise_predictor(pipe, embeddings, guidance_scale)
    with pipe.progress_bar(total=len(levels.timesteps)) as progress:
        found = invert_latents(predict, latents, levels, fixed_point_iterations, on_step=progress.update)
    return Trajectory(
        latents=found.cpu(),
        timesteps=torch.tensor(levels.timesteps, dtype=torch.float32),
        alphas=torch.tensor([*levels.alphas, levels.targets[-1]], dtype=torch.float64),
        embeddings=embeddings,
        prompts=prompts,
        negative_prompt=negative_prompt,
        guidance_scale=float(guidance_scale),
        fixed_point_iterations=fixed_point_iterations,
        model=describe_model(pipe),
    )


def invert_latents(
    predict: Callable[[Latents, float, float], Latents],
    clean: Latents,
    levels: Levels,
    fixed_point_iterations: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> Float[Tensor, "levels references channels height width"]:
    """Climb from the clean latents to the noise; ``predict(z, timestep, alpha)`` returns the noise in ``z``."""
    found = [clean]
    for timestep, alpha, target in reversed(list(zip(levels.timesteps, levels.alphas, levels.targets, strict=True))):
        start = guess = found[-1]
        if alpha != target:  # else the step does nothing, and sampling does not move there either
            for _ in range(1 + fixed_point_iterations):
                guess = ddim_step(start, predict(guess, timestep, alpha), target, alpha)
        found.append(guess)
        on_step()
    return torch.stack(found[::-1])


def ddim_step(z: Latents, noise: Latents, alpha_from: float, alpha_to: float) -> Latents:
    """DDIM, eq. 12 without the random part: from one noise level to another, up or down, along one noise prediction."""
    clean = (z - (1 - alpha_from) ** 0.5 * noise) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise


def to_noise(output: Latents, z: Latents, alpha: float, prediction_type: str) -> Latents:
    """The noise e that a model's output means: itself, or from ``v = sqrt(a) e - sqrt(1 - a) x``, or from x."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":  # Salimans and Ho 2022, appendix D
        return alpha**0.5 * output + (1 - alpha) ** 0.5 * z
    if prediction_type == "sample":
        return (z - alpha**0.5 * output) / (1 - alpha) ** 0.5
    raise ValueError(
        f"prediction_type is 'epsilon', 'v_prediction' or 'sample'; the scheduler says {prediction_type!r}."
    )


def noise_levels(scheduler, num_inference_steps: int) -> Levels:
    """The time steps that the scheduler will visit, without repeats, and the noise levels of its steps."""
    from diffusers import DDIMScheduler

    scheduler = copy.deepcopy(scheduler)  # set_timesteps changes it, and it is not ours
    scheduler.set_timesteps(num_inference_steps)
    timesteps = tuple(dict.fromkeys(float(t) for t in scheduler.timesteps))
    alphas = tuple(alpha_at(scheduler, t) for t in timesteps)
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    if not isinstance(scheduler, DDIMScheduler):
        return Levels(timesteps, alphas, (*alphas[1:], final))
    stride = scheduler.config.num_train_timesteps // num_inference_steps  # DDIM steps by this, whatever comes next
    targets = tuple(alpha_at(scheduler, t - stride) if t >= stride else final for t in timesteps)
    return Levels(timesteps, alphas, targets)


def noise_predictor(
    pipe, embeddings: dict[str, Tensor], guidance_scale: float
) -> Callable[[Latents, float, float], Latents]:
    """``predict(z, timestep, alpha)`` of the pipeline's U-Net with the references' own prompts, guided."""
    from .reference_pass import without_ip_adapter

    unet = pipe.unet
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    branches = ("cond",) if guidance_scale == 1 else ("uncond", "cond")
    like = torch.empty((), dtype=unet.dtype, device=pipe._execution_device)
    texts, added = conditions(embeddings, branches, like)

    def predict(z: Latents, timestep: float, alpha: float) -> Latents:
        rows = torch.cat([z] * len(branches)).to(texts.dtype)
        time = torch.tensor(int(timestep) if timestep == int(timestep) else timestep, device=z.device)
        with without_ip_adapter(unet):  # a reference is what its prompt and its pixels say
            output = unet(rows, time, encoder_hidden_states=texts, added_cond_kwargs=added, return_dict=False)[0]
        outputs = output.to(z.dtype).chunk(len(branches))
        guided = outputs[0] if guidance_scale == 1 else torch.lerp(*outputs, guidance_scale)
        return to_noise(guided, z, alpha, kind)

    return predict


def _check(pipe, image, latents, steps: int, guidance_scale: float, iterations: int) -> None:
    """Everything that can be wrong with the arguments, before any model runs."""
    from .processors import is_style_aligned

    if getattr(pipe, "unet", None) is None or not hasattr(pipe, "encode_prompt"):
        raise TypeError(f"DDIM inversion needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL); got {type(pipe).__name__}.")
    if is_style_aligned(pipe.unet):
        raise RuntimeError("Invert references before the style_aligned block: inside it, images share attention.")
    if (image is None) == (latents is None):
        raise ValueError("Give either image (one picture or a list of them) or latents, not both and not neither.")
    if isinstance(image, list | tuple) and not image:
        raise ValueError("At least one picture is needed; the list of images is empty.")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"This U-Net takes {pipe.unet.config.in_channels} channels (an inpainting model's do); invert with a "
            f"text-to-image model, which takes the VAE's {pipe.vae.config.latent_channels}."
        )
    if latents is not None and latents.shape[-3:-2] != (pipe.vae.config.latent_channels,):
        raise ValueError(f"Latents are (references, channels, height, width); got the shape {tuple(latents.shape)}.")
    if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"DDIM inversion needs a scheduler with alphas_cumprod; {type(pipe.scheduler).__name__} has none."
        )
    most = pipe.scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps is a whole number from 1 to {most}; got {steps!r}.")
    if not float("-inf") < guidance_scale < float("inf"):
        raise ValueError(f"guidance_scale is a finite number; got {guidance_scale}.")
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"fixed_point_iterations is a whole number of 0 or more; got {iterations!r}.")
