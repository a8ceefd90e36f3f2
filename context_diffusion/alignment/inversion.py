"""DDIM inversion: from a picture back to the noise that sampling turns into it, with every latent on the way.

A DDIM step (Song et al. 2021, eq. 12, sigma = 0) reads a clean latent x and a noise e from the latent z, and mixes them
again for another noise level: ``z' = sqrt(a') x + sqrt(1 - a') e`` with ``a = alpha_bar``. Backwards, x and e are
wanted at the noisier latent, which is not known yet. Plain inversion reads them at the cleaner one; each fixed-point
iteration then repeats the step with what the network says at its result, and converges to the exact inverse.

A network that predicts the noise leaves ``x = (z - sqrt(1 - a) e) / sqrt(a)``. One that predicts the velocity ``v =
sqrt(a) e - sqrt(1 - a) x`` (Salimans and Ho 2022, appendix D) says both without a division, ``x = sqrt(a) z -
sqrt(1 - a) v`` and ``e = sqrt(a) v + sqrt(1 - a) z``. Only that way leads up to a = 0, the pure noise in which a
schedule with zero terminal signal-to-noise ratio begins (Lin et al. 2023).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..checks import check_count, check_number
from ..guidance import without_compilation
from ..images import ImageLike, listed
from ..latents import alpha_at, conditions, encode_images, encode_prompts, generators
from .flow import check_source, noised_flow_reference, one_each
from .reference_pass import without_ip_adapter
from .trajectory import Trajectory, describe_model

Latents = Float[Tensor, "..."]  # of a pipeline (references, channels, height, width); the equations take any shape
Predict = Callable[[Latents, float, float], Latents]  # of latents, their time step and its alpha_bar


@dataclass(frozen=True)
class Levels:
    """The noise levels of a sampling run: step k goes from ``alphas[k]`` at ``timesteps[k]`` down to ``targets[k]``."""

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
    """Invert one or more pictures, all in one batch, along the time steps that the scheduler of ``pipe`` visits.

    ``image`` is a picture or a list of them (cropped to ``height`` x ``width``, by default the size the model was
    made for); or ``latents`` are encoded ones (scaled, as the U-Net sees them). ``prompt`` describes the reference:
    one for all, or one each; ``negative_prompt`` is what guidance leads away from. ``guidance_scale=1`` inverts
    without guidance, most accurately; the StyleAligned authors' code uses 2. ``num_inference_steps`` are those of
    sampling. Each of ``fixed_point_iterations`` costs as many model calls as the inversion itself. Returns a
    :class:`Trajectory` whose level k is what step k of sampling meets. Raises ``ValueError`` or ``TypeError`` before
    work starts.
    """
    check_count("fixed_point_iterations", fixed_point_iterations, low=0)
    start = _start(pipe, image, prompt, latents, num_inference_steps, guidance_scale, negative_prompt, height, width)
    velocity = pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction"
    _check_levels(start.levels, velocity)
    predict = (output_predictor if velocity else noise_predictor)(pipe, start.embeddings, guidance_scale)
    with pipe.progress_bar(total=len(start.levels.timesteps)) as progress:
        found = invert_latents(
            predict, start.clean, start.levels, fixed_point_iterations, velocity=velocity, on_step=progress.update
        )
    return start.trajectory(found, "ddim inversion", fixed_point_iterations=fixed_point_iterations)


@torch.no_grad()
def noised_reference(
    pipe,
    image: ImageLike | Sequence[ImageLike] | None = None,
    prompt: str | Sequence[str] = "",
    *,
    latents: Float[Tensor, "*references channels height width"] | None = None,
    seed: int = 0,
    num_inference_steps: int = 50,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    **options,
) -> Trajectory:
    """A reference without inversion: at every level the clean latent with one fixed noise of that level's strength.

    ``z_k = sqrt(a_k) x + sqrt(1 - a_k) e``: the model never runs, so it costs an encoding. Sampling from its noise does
    not draw the reference again, but its levels are what the model was trained on at every step; StyleKeeper (Jeong et
    al. 2025) and AlignedGen (Zhang et al. 2025, appendix A) take references so. The noise of picture i is seeded
    ``seed + i``. Otherwise as :func:`ddim_invert`. A transformer's reference lies on the straight line of its flow,
    ``z_k = (1 - sigma_k) x + sigma_k e``; ``options`` then go to the pipeline, as in :func:`flow_invert`.
    """
    check_count("seed", seed, low=0)
    if getattr(pipe, "unet", None) is None and getattr(pipe, "transformer", None) is not None:
        given = (seed, num_inference_steps, negative_prompt, height, width, options)
        return noised_flow_reference(pipe, image, prompt, latents, *given)
    if options:
        raise TypeError(f"noised_reference of a U-Net takes no {next(iter(options))}.")
    start = _start(pipe, image, prompt, latents, num_inference_steps, 1.0, negative_prompt, height, width)
    clean = start.clean
    noise = torch.stack([torch.randn(clean.shape[1:], generator=each) for each in generators(seed, len(clean))]).to(
        clean
    )
    found = [alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise for alpha in start.levels.alphas]
    return start.trajectory(torch.stack([*found, clean]), "added noise", seed=seed)


@dataclass(frozen=True)
class Start:
    """What a trajectory starts from: clean latents, the noise levels to visit, and the text, all checked."""

    pipe: Any
    clean: Latents
    levels: Levels
    embeddings: dict[str, Tensor]
    prompts: tuple[str, ...]
    negative_prompt: str | None
    guidance_scale: float

    def trajectory(self, found: Tensor, method: str, **facts) -> Trajectory:
        """The latents found at all levels, with what they belong to."""
        return Trajectory(
            latents=found.cpu(),
            timesteps=torch.tensor(self.levels.timesteps, dtype=torch.float32),
            alphas=torch.tensor([*self.levels.alphas, self.levels.targets[-1]], dtype=torch.float64),
            embeddings=self.embeddings,
            prompts=self.prompts,
            negative_prompt=self.negative_prompt,
            guidance_scale=float(self.guidance_scale),
            model=describe_model(self.pipe),
            method=method,
            **facts,
        )


def _start(pipe, image, prompt, latents, steps, guidance_scale, negative_prompt, height, width) -> Start:
    """Check everything, then encode pictures and text."""
    _check(pipe, image, latents, steps, guidance_scale)
    levels = noise_levels(pipe.scheduler, steps)
    pictures = [] if image is None else listed(image)
    count = len(pictures) if latents is None else (1 if latents.ndim == 3 else len(latents))
    prompts = one_each(prompt, count)
    if latents is None:
        latents = encode_images(pipe, pictures, width, height)
    latents = latents if latents.ndim == 4 else latents[None]
    clean = latents.to(pipe._execution_device, torch.float32)
    rows, columns = (side * pipe.vae_scale_factor for side in clean.shape[-2:])
    embeddings = encode_prompts(pipe, prompts, negative_prompt, columns, rows)
    return Start(pipe, clean, levels, embeddings, prompts, negative_prompt, guidance_scale)


def invert_latents(
    predict: Predict,
    clean: Latents,
    levels: Levels,
    fixed_point_iterations: int = 0,
    *,
    velocity: bool = False,
    on_step: Callable[[], Any] = lambda: None,
) -> Float[Tensor, "levels ..."]:
    """Climb from the clean latents to the noise, level by level.

    ``predict(z, timestep, alpha_bar)`` returns the noise in z, or with ``velocity=True`` its velocity. Raises
    ``ValueError`` for levels that cannot be climbed: to alpha_bar 0 on noise predictions, or from the picture to
    alpha_bar 0 in a single step.
    """
    _check_levels(levels, velocity)
    found = [clean]
    for timestep, alpha, target in reversed(list(zip(levels.timesteps, levels.alphas, levels.targets, strict=True))):
        start = guess = found[-1]
        if alpha != target:  # otherwise the step does nothing, and sampling does not move there either
            for iteration in range(1 + fixed_point_iterations):
                output = predict(guess, timestep, alpha)
                if not velocity:
                    guess = ddim_step(start, output, target, alpha)
                elif iteration == 0:  # the velocity is taken for that of the cleaner latent, ...
                    guess = velocity_step(start, output, target, alpha)
                else:  # ... then for that of the noisier one
                    guess = _velocity_step_undone(start, output, alpha, target)
        found.append(guess)
        on_step()
    return torch.stack(found[::-1])


def ddim_step(z: Latents, noise: Latents, alpha_from: float, alpha_to: float) -> Latents:
    """DDIM, eq. 12 without the random part: from one noise level to another, up or down, along one noise prediction.

    Raises ``ValueError`` from ``alpha_from`` 0, where z is the noise alone.
    """
    if alpha_from == 0:
        raise ValueError(
            "At alpha_bar 0 the noise says nothing about the picture; predict the velocity, and take velocity_step."
        )
    clean = (z - (1 - alpha_from) ** 0.5 * noise) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise


def velocity_step(z: Latents, velocity: Latents, alpha_from: float, alpha_to: float) -> Latents:
    """The same step along a velocity at ``alpha_from``; exact at every level, alpha_bar 0 and 1 included."""
    clean = alpha_from**0.5 * z - (1 - alpha_from) ** 0.5 * velocity
    noise = to_noise(velocity, z, alpha_from, "v_prediction")
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise


def _velocity_step_undone(z: Latents, velocity: Latents, alpha_from: float, alpha_to: float) -> Latents:
    """The latent that ``velocity_step`` turns into z: there the step is ``z = cos(d) z' - sin(d) v``, a rotation."""
    cos = (alpha_from * alpha_to) ** 0.5 + ((1 - alpha_from) * (1 - alpha_to)) ** 0.5
    sin = ((1 - alpha_from) * alpha_to) ** 0.5 - (alpha_from * (1 - alpha_to)) ** 0.5
    return (z + sin * velocity) / cos


def to_noise(output: Latents, z: Latents, alpha: float, prediction_type: str) -> Latents:
    """The noise e that a network's output means: itself, or what its velocity or its clean latent says of z."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
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


def output_predictor(pipe, embeddings: dict[str, Tensor], guidance_scale: float) -> Predict:
    """``predict(z, timestep, alpha_bar)``: the guided output of the pipeline's U-Net for the references' prompts."""
    unet = pipe.unet
    branches = ("cond",) if guidance_scale == 1 else ("uncond", "cond")
    like = torch.empty((), dtype=unet.dtype, device=pipe._execution_device)
    texts, added = conditions(embeddings, branches, like)

    def predict(z: Latents, timestep: float, alpha: float) -> Latents:
        rows = repeat(z, "references ... -> (branches references) ...", branches=len(branches)).to(texts.dtype)
        time = torch.tensor(int(timestep) if timestep == int(timestep) else timestep, device=z.device)
        with without_ip_adapter(unet):  # a reference is what its prompt and its pixels say
            output = unet(rows, time, encoder_hidden_states=texts, added_cond_kwargs=added, return_dict=False)[0]
        outputs = rearrange(output.to(z.dtype), "(branches refs) ... -> branches refs ...", branches=len(branches))
        return outputs[0] if guidance_scale == 1 else torch.lerp(outputs[0], outputs[1], guidance_scale)

    return predict


def noise_predictor(pipe, embeddings: dict[str, Tensor], guidance_scale: float) -> Predict:
    """``predict(z, timestep, alpha_bar)``: the noise that the guided output means."""
    predict = output_predictor(pipe, embeddings, guidance_scale)
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    return lambda z, timestep, alpha: to_noise(predict(z, timestep, alpha), z, alpha, kind)


def _check_levels(levels: Levels, velocity: bool) -> None:
    """Refuse levels on which a picture cannot be climbed back to its noise."""
    for timestep, alpha, target in zip(levels.timesteps, levels.alphas, levels.targets, strict=True):
        if alpha == 0 and not velocity:
            raise ValueError(
                f"At time step {timestep:g} alpha_bar is 0 (zero terminal SNR): a noise prediction says nothing about "
                "the picture there; use a model that predicts the velocity (prediction_type='v_prediction')."
            )
        if alpha == 0 and target == 1:
            raise ValueError(
                "A single step from pure noise (alpha_bar 0) to the picture leaves no trace of the noise; take 2 steps "
                "or more."
            )


def _check(pipe, image, latents, steps: int, guidance_scale: float) -> None:
    """Everything that can be wrong with the arguments, before any model runs."""
    if getattr(pipe, "unet", None) is None or not hasattr(pipe, "encode_prompt"):
        raise TypeError(
            f"DDIM inversion needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL); got {type(pipe).__name__} "
            "(flow_invert inverts on transformers)."
        )
    check_source(without_compilation(pipe.unet), image, latents)
    if isinstance(image, list | tuple) and not image:
        raise ValueError("At least one picture is needed; the list of images is empty.")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"This U-Net takes {pipe.unet.config.in_channels} channels (an inpainting model's does); invert with a "
            f"text-to-image model, which takes the VAE's {pipe.vae.config.latent_channels}."
        )
    if latents is not None:
        if not isinstance(latents, Tensor):
            raise TypeError(
                f"latents are a tensor (references, channels, height, width), not {type(latents).__name__}."
            )
        if latents.ndim not in (3, 4) or latents.shape[-3] != pipe.vae.config.latent_channels:
            raise ValueError(
                f"Latents are (references, channels, height, width); got the shape {tuple(latents.shape)}."
            )
        if not latents.isfinite().all():
            raise ValueError("Latents are finite; these hold NaN or infinity.")
    if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"DDIM inversion needs a scheduler with alphas_cumprod; {type(pipe.scheduler).__name__} has none."
        )
    check_count("num_inference_steps", steps, pipe.scheduler.config.num_train_timesteps)
    check_number("guidance_scale", guidance_scale, -math.inf)
