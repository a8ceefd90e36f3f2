"""The two equations of StyleAligned: AdaIN over tokens, and attention that also sees the references.

A target with queries Q, keys K and values V attends to itself and to each reference r (Hertz et al. 2024, section
3.2), ``softmax([Q K^T / sqrt(d), s_r Q K_r^T / sqrt(d) + b_r]) [V; V_r]``, where s_r scales the reference's scores and
b_r shifts them: each of its tokens counts exp(b_r) times.

A softmax over a union is the mean of the two softmaxes, weighted by their normalizers. So each part is an ordinary
fused attention that also returns the log of its normalizer (log-sum-exp), nothing is concatenated, no score matrix
exists, and a shift costs one addition. Tensors are (branches, images, tokens, channels), branches being those of
guidance; the images of a branch are folded into its queries, which is a view.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "branches images tokens channels"]


class Moments(NamedTuple):
    """Mean and (unbiased) variance over tokens, in float32, the token axis kept with length 1."""

    mean: Float[Tensor, "*batch 1 channels"]
    var: Float[Tensor, "*batch 1 channels"]


class Reference(NamedTuple):
    """What a target sees of a reference in one layer: one row of tokens per guidance branch."""

    key: Float[Tensor, "branches tokens channels"]
    value: Float[Tensor, "branches tokens channels"]
    scale: float = 1.0
    shift: float = 0.0


def moments(features: Float[Tensor, "*batch tokens channels"]) -> Moments:
    """The mean and variance of each channel over the tokens."""
    mean = features.mean(dim=-2, keepdim=True, dtype=torch.float32)
    return Moments(mean, centred_variance(features - mean.to(features.dtype), dim=-2, correction=1))


def centred_variance(centred: Float[Tensor, "..."], dim: int, correction: int = 0) -> Float[Tensor, "..."]:
    """The variance, in float32, of what has mean 0; ``torch.var`` over a strided axis is an order slower on a CPU."""
    if centred.device.type == "cpu":
        total = centred.float().square().sum(dim, keepdim=True)
    else:
        total = torch.linalg.vector_norm(centred, dim=dim, keepdim=True, dtype=torch.float32).square()
    return total / max(centred.shape[dim] - correction, 1)


def mix_moments(style: Moments, weights: Float[Tensor, " references"], dim: int = 1) -> Moments:
    """The moments of several references taken together, each token with its reference's weight.

    The law of total variance: ``mean = sum w_r m_r``, ``var = sum w_r (v_r + m_r^2) - mean^2``. It is the set of tokens
    that attention sees, so equal weights give the moments of all tokens as if they were one reference's.
    """
    if style.mean.shape[dim] == 1:
        return style
    shape = [1] * style.mean.ndim
    shape[dim] = -1
    weights = weights.to(style.mean).view(shape)
    mean = (weights * style.mean).sum(dim, keepdim=True)
    var = (weights * (style.var + (style.mean - mean) ** 2)).sum(dim, keepdim=True)
    return Moments(mean, var)


def adain(
    features: Float[Tensor, "*batch tokens channels"], style: Moments, eps: float = 1e-5, *, inplace: bool = False
) -> Float[Tensor, "*batch tokens channels"]:
    """Adaptive instance normalization: give each channel the mean and variance of the reference.

    ``sigma_r (x - mean(x)) / sigma(x) + mean_r`` (Huang and Belongie 2017, eq. 8), ``sigma = sqrt(var + eps)``, over
    the tokens of one image. ``inplace=True`` writes over ``features``.
    """
    mean = features.mean(dim=-2, keepdim=True, dtype=torch.float32).to(features.dtype)
    centred = (
        features.sub_(mean) if inplace else features - mean
    )  # first, or a nearly constant channel loses its digits
    ratio = ((style.var + eps) / (centred_variance(centred, dim=-2, correction=1) + eps)).sqrt().to(features.dtype)
    out = None if centred.requires_grad else centred
    return torch.addcmul(style.mean.to(features.dtype), centred, ratio, out=out)


def shared_attention(
    query: Features,
    key: Features,
    value: Features,
    references: Sequence[Reference] = (),
    *,
    heads: int,
    first_target: int = 0,
    full: bool = False,
) -> Features:
    """Attention of each image to itself and, from image ``first_target`` on, to the references.

    ``full=True`` lets every image see all images of its branch. The merge needs a kernel that returns log-sum-exp
    (:func:`lse_kernel`); elsewhere keys are concatenated and the shifts enter as one additive row.
    """
    references = [each for each in references if each.shift > -math.inf]  # exp(-inf) = 0: it counts for nothing
    first_target = 0 if full else first_target
    if not references or first_target >= query.shape[1]:
        out = _attend(F.scaled_dot_product_attention, query, key, value, heads, full)
        return out.transpose(1, 2).reshape(query.shape)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    kernel = None if needs_grad else lse_kernel(query.device, query.dtype, query.shape[-1] // heads)
    if kernel is None:
        return _by_concatenation(query, key, value, references, heads, first_target, full)
    return _by_merging(kernel, query, key, value, references, heads, first_target, full)


def _by_merging(kernel, query, key, value, references, heads, first_target, full) -> Features:
    """Own attention, then each reference's, weighted by their normalizers as they come."""
    branches, images, tokens, channels = query.shape
    own, own_lse = _attend(kernel, query, key, value, heads, full)
    result = own.transpose(1, 2).reshape(query.shape)  # (branches, images, tokens, channels)
    blend = result[:, first_target:].unflatten(-1, (heads, -1))
    log_sum = _unfold_lse(own_lse, branches, images)[:, first_target:]  # (branches, targets, tokens, heads)
    queries = _heads(query[:, first_target:].flatten(1, 2), heads)  # (branches, heads, targets * tokens, dim), a view
    for i, reference in enumerate(references):
        scale = reference.scale / math.sqrt(channels // heads)
        out, lse = kernel(queries, _heads(reference.key, heads), _heads(reference.value, heads), scale)
        lse = _unfold_lse(lse, branches, images - first_target) + reference.shift
        share = torch.sigmoid(lse - log_sum).unsqueeze(-1).to(out.dtype)
        blend.lerp_(out.transpose(1, 2).unflatten(1, (-1, tokens)), share)
        if i + 1 < len(references):
            log_sum = torch.logaddexp(log_sum, lse)
    return result


def _by_concatenation(query, key, value, references, heads, first_target, full) -> Features:
    """The same with keys and values copied side by side, and an additive row where scores are shifted."""
    branches, images, tokens, _ = query.shape
    targets = images - first_target

    def own(x: Tensor) -> Tensor:
        x = x.flatten(1, 2)[:, None].expand(-1, images, -1, -1) if full else x[:, first_target:]
        return x.flatten(0, 1)

    def seen(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, targets, -1, -1).flatten(0, 1)

    keys = torch.cat(
        [own(key), *(seen(each.key if each.scale == 1 else each.key * each.scale) for each in references)], dim=1
    )
    values = torch.cat([own(value), *(seen(each.value) for each in references)], dim=1)
    row = None
    if any(each.shift for each in references):
        shifts = [0.0, *(each.shift for each in references)]
        lengths = [tokens * (images if full else 1), *(each.key.shape[1] for each in references)]
        row = torch.cat([query.new_full((length,), shift) for shift, length in zip(shifts, lengths, strict=True)])
        row = row.view(1, 1, 1, -1)
    queries = query[:, first_target:].flatten(0, 1)
    out = F.scaled_dot_product_attention(*(_heads(x, heads) for x in (queries, keys, values)), attn_mask=row)
    out = out.transpose(1, 2).flatten(2).unflatten(0, (branches, targets))
    if not first_target:
        return out
    alone = shared_attention(*(x[:, :first_target] for x in (query, key, value)), heads=heads)
    return torch.cat([alone, out], dim=1)


def _heads(x: Float[Tensor, "rows tokens channels"], heads: int) -> Float[Tensor, "rows heads tokens dim"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(kernel: Callable, query: Tensor, key: Tensor, value: Tensor, heads: int, full: bool):
    """Attend within each image, or over all images of a branch: only the rows that are put together differ."""
    start = 1 if full else 0
    return kernel(*(_heads(x.flatten(start, start + 1), heads) for x in (query, key, value)))


def _unfold_lse(lse: Float[Tensor, "rows heads length"], branches: int, images: int):
    return lse.transpose(1, 2).reshape(branches, images, -1, lse.shape[1])


@cache
def lse_kernel(device: torch.device, dtype: torch.dtype, dim: int) -> Callable | None:
    """A fused attention ``(q, k, v, scale) -> (out, log-sum-exp)`` that is right here, or ``None``.

    These kernels are what ``scaled_dot_product_attention`` calls, but their names are not public and differ between
    devices; so each is tried on a small example, and used only if it agrees with the definition.
    """
    for kernel in _KERNELS.get(device.type, ()):
        try:
            if _agrees(kernel, device, dtype, dim):
                return kernel
        except (RuntimeError, AttributeError, TypeError, NotImplementedError):
            continue
    return None


def _agrees(kernel: Callable, device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    wave = torch.sin(torch.arange(2 * 24 * 3 * dim, device=device, dtype=torch.float32) * 1.7)
    query, key, value = (_heads(wave.roll(by).view(2, 24, -1), 3).to(dtype) for by in (0, 5, 11))
    query = query[:, :, :17]
    with torch.no_grad():
        out, lse = kernel(query, key[:1].expand_as(key), value[:1].expand_as(value), 0.3)
    scores = 0.3 * query.float() @ key[:1].float().transpose(-1, -2)
    right = scores.softmax(-1) @ value[:1].float()
    close = 1e-5 if dtype == torch.float32 else 2e-2
    return bool((out.float() - right).abs().max() < close) and bool((lse - scores.logsumexp(-1)).abs().max() < close)


def _flash_cpu(query, key, value, scale=None):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)


def _flash_cuda(query, key, value, scale=None):
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2]


def _efficient_cuda(query, key, value, scale=None):
    run = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = run(query, key, value, None, True, scale=scale)[:2]
    return out, lse[..., : query.shape[-2]]  # its rows are padded to a multiple of 32


_KERNELS = {"cpu": (_flash_cpu,), "cuda": (_flash_cuda, _efficient_cuda)}
