"""Blending of latents: the straight line, the arc, and the weighted mean of any number of them on the sphere.

A diffusion model's noise lives near a sphere. The straight line between two noises passes inside it, where the model
has never been (the mean of two independent noises has 0.71 of their norm); the arc stays on it. A latent is one vector
here: all of its channels and pixels together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import normalized_weights, shown
from ..signatures import checked
from .flow import flow_invert
from .inversion import ddim_invert, noised_reference
from .networks import architecture_of
from .trajectory import Trajectory

TOLERANCE = 1e-6  # two directions closer than this to opposite, or a mean closer to zero, have no shortest arc


@checked
def linear(
    vectors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float] | None = None
) -> Float[Tensor, "*shape"]:
    """The weighted mean ``sum_i w_i v_i``, the weights divided by their sum."""
    stacked, normalized = _rows(vectors, weights)
    return _like(normalized @ stacked, vectors[0])


@checked
def slerp(start: Float[Tensor, "*shape"], end: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """Spherical interpolation from ``start`` (t = 0) to ``end`` (t = 1) along the shortest arc.

    With the angle W between the directions u, v: ``sin((1-t) W)/sin W u + sin(t W)/sin W v`` (Shoemake 1985), times
    the norm ``(1-t) |start| + t |end|``. A zero vector has no direction and takes the other's:
    ``slerp(0, v, t) = t v``. Raises ``ValueError`` for opposite vectors, between which all arcs are equally short.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.7071, 0.7071])
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t runs from 0 (the start) to 1 (the end); got {t}.")
    stacked, weights = _rows([start, end], [1 - t, t])
    norms, directions = _directions(stacked)
    (first, second), keep = directions, norms > 0
    if not keep.all() or t in (0, 1):
        return _like(weights @ stacked if not keep.all() else stacked[round(t)], start)
    apart, together = (first - second).norm(), (first + second).norm()
    if together < TOLERANCE:
        raise ValueError("Opposite vectors have no shortest arc between them; add a third one, or use linear blending.")
    angle = 2 * torch.atan2(apart, together)  # accurate for small angles too, where acos is not

    def coefficient(part: float) -> Tensor:  # sin(part * angle) / sin(angle), and its limit at angle 0
        return part * torch.sinc(part * angle / math.pi) / torch.sinc(angle / math.pi)

    return _like((weights @ norms) * (coefficient(1 - t) * first + coefficient(t) * second), start)


@checked
def weighted_slerp(
    vectors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float] | None = None, *, max_iterations: int = 100
) -> Float[Tensor, "*shape"]:
    """The weighted mean on the sphere: the direction m with the least ``sum_i w_i angle(m, v_i)^2``.

    Each step adds up the arcs to all vectors in the tangent plane at m and walks along their sum, ``m <- exp_m(sum_i
    w_i log_m(u_i))``, until m stays put (Buss and Fillmore 2001). The norm is ``sum_i w_i |v_i|``. The order of the
    vectors has no effect, and two vectors give :func:`slerp`. Zero vectors count towards the norm only. Raises
    ``ValueError`` if the directions cancel out, as those of opposite vectors do.
    """
    stacked, normalized = _rows(vectors, weights)
    stacked, normalized = stacked[normalized > 0], normalized[normalized > 0]
    norms, directions = _directions(stacked)
    keep = norms > 0
    if keep.sum() < 2:
        return _like(normalized @ stacked, vectors[0])
    directions, shares = directions[keep], normalized[keep] / normalized[keep].sum()
    mean = shares @ directions
    if mean.norm() < TOLERANCE:
        raise ValueError(
            "These vectors cancel out (opposite ones have no shortest arc between them); change a weight, add "
            "another vector, or use linear blending."
        )
    mean = mean / mean.norm()
    for _ in range(max_iterations):
        cosines = directions @ mean
        across = directions - cosines[:, None] * mean  # the part of each direction in the tangent plane
        lengths = across.norm(dim=1)
        arcs = torch.where(lengths > 0, torch.atan2(lengths, cosines) / lengths.clamp(min=1e-300), 1.0)
        step = (shares * arcs) @ across
        size = step.norm()
        mean = torch.cos(size) * mean + torch.sinc(size / math.pi) * step
        mean = mean / mean.norm()
        if size < 1e-13:
            break
    return _like((normalized @ norms) * mean, vectors[0])


BLENDS: dict[str, Callable] = {"linear": linear, "slerp": weighted_slerp}


@checked
def blend_trajectories(
    pipe, references: Sequence[Trajectory], weights: Sequence[float] | None = None, blend: str = "slerp"
) -> Trajectory:
    """Blend the clean latents of several references into one, and make a reference of the blend as they were made.

    Its prompt is the references' different prompts joined by "and"; everything else is theirs. Costs one inversion, or
    for noised references nothing. Raises ``ValueError`` if these do not agree, or for an unknown ``blend``.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend is one of {', '.join(map(repr, BLENDS))}; got {blend!r}.")
    joined = Trajectory.join(references)
    latents = BLENDS[blend](list(joined.clean), normalized_weights(weights, len(joined)))
    given: dict[str, Any] = {
        "latents": latents[None],
        "prompt": " and ".join(dict.fromkeys(prompt for prompt in joined.prompts if prompt)),
        "negative_prompt": joined.negative_prompt,
        "num_inference_steps": joined.num_inference_steps,
    }
    architecture = architecture_of(pipe)
    if architecture.grid is not None:  # latents may be packed into a sequence, which says nothing of their shape
        grid = architecture.grid_of(pipe.transformer, joined.clean, joined.embeddings, joined.shared)
        given |= {"height": 2 * pipe.vae_scale_factor * grid[0], "width": 2 * pipe.vae_scale_factor * grid[1]}
    if joined.method == "added noise":
        return noised_reference(pipe, **given, seed=joined.seed or 0)
    invert = ddim_invert if architecture.grid is None else flow_invert
    return invert(
        pipe,
        **given,
        guidance_scale=joined.guidance_scale,
        fixed_point_iterations=joined.fixed_point_iterations,
    )


def _rows(vectors: Sequence[Tensor], weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """The vectors as rows of a float64 matrix, with their normalized weights."""
    if len(vectors) == 0:
        raise ValueError("There is nothing to blend: the list of vectors is empty.")
    for vector in vectors:
        if not isinstance(vector, Tensor):
            raise TypeError(f"Vectors to blend are tensors of one shape, not {shown(vector)}.")
    shapes = {tuple(vector.shape) for vector in vectors}
    if len(shapes) > 1:
        raise ValueError(f"Vectors to blend have one shape; got {', '.join(map(str, sorted(shapes)))}.")
    stacked = torch.stack([vector.detach().double().flatten() for vector in vectors])
    if not torch.isfinite(stacked).all():
        raise ValueError("Vectors to blend are finite; one of these holds NaN or infinity.")
    return stacked, torch.tensor(normalized_weights(weights, len(vectors)), dtype=torch.float64, device=stacked.device)


def _directions(stacked: Tensor) -> tuple[Tensor, Tensor]:
    norms = stacked.norm(dim=1)
    return norms, stacked / norms.clamp(min=torch.finfo(torch.float64).tiny)[:, None]


def _like(values: Tensor, vector: Tensor) -> Tensor:
    dtype = vector.dtype if vector.is_floating_point() else torch.get_default_dtype()
    return values.reshape(vector.shape).to(dtype)
