"""The two equations of StyleAligned: AdaIN over tokens, and attention that also sees the references.

A target with queries Q, keys K and values V attends to itself and to each reference r (Hertz et al. 2024, section
3.2), ``softmax([Q K^T / sqrt(d), s_r Q K_r^T / sqrt(d) + b_r]) [V; V_r]``. Here s_r scales the reference's scores and
b_r shifts them: each of its tokens counts exp(b_r) times.

Attention over the union of two sets of tokens is the mean of the attentions over each, weighted by the normalizers of
their softmaxes. So each part is an ordinary fused attention that also returns the log of its normalizer (log-sum-exp).
Nothing is concatenated, no score matrix is formed, and a shift costs one addition. Tensors are (branches, images,
tokens, channels), with one branch per guidance branch; the images of a branch are folded into its queries, as a view.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

Features = Float[Tensor, "branches images tokens channels"]
Mask = Bool[Tensor, "rows heads queries keys"] | Float[Tensor, "rows heads queries keys"]  # any axis but keys may be 1


class Moments(NamedTuple):
    """Mean and unbiased variance over tokens, in float32; the token axis is kept with length 1."""

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
    """The variance, in float32, of features with mean 0; on a CPU ``torch.var`` over a strided axis is far slower."""
    if centred.device.type == "cpu":
        total = centred.float().square().sum(dim, keepdim=True)
    else:
        total = torch.linalg.vector_norm(centred, dim=dim, keepdim=True, dtype=torch.float32).square()
    return total / max(centred.shape[dim] - correction, 1)


def mix_moments(style: Moments, weights: Float[Tensor, " references"], dim: int = 1) -> Moments:
    """The moments of several references taken together, each token counting with its reference's weight.

    By the law of total variance, ``mean = sum w_r m_r`` and ``var = sum w_r (v_r + m_r^2) - mean^2``. The set of tokens
    is the one that attention sees, so equal weights give the moments of all tokens as if one reference held them.
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
    """Adaptive instance normalization: give each channel the reference's mean and variance.

    ``sigma_r (x - mean(x)) / sigma(x) + mean_r`` (Huang and Belongie 2017, eq. 8) with ``sigma = sqrt(var + eps)``,
    over the tokens of one image. ``inplace=True`` writes over ``features``.
    """
    mean = features.mean(dim=-2, keepdim=True, dtype=torch.float32).to(features.dtype)
    # centred first, otherwise a nearly constant channel loses precision to cancellation
    centred = features.sub_(mean) if inplace else features - mean
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
    mask: Mask | None = None,
) -> Features:
    """Attention of each image to itself and, from image ``first_target`` on, to the references.

    ``full=True`` lets every image see all images of its branch. ``mask`` says which of their own keys the images see
    (such as those of padded text), as ``scaled_dot_product_attention`` takes it; references are seen whole. Parts are
    merged where a kernel returns log-sum-exp (:func:`lse_kernel`) and nothing is masked; elsewhere keys are
    concatenated, and the shifts enter as one additive row.
    """
    references = [each for each in references if each.shift > -math.inf]  # exp(-inf) = 0
    first_target = 0 if full else first_target
    if not references or first_target >= query.shape[1]:
        plain = partial(F.scaled_dot_product_attention, attn_mask=mask)
        return _join(_attend(plain, query, key, value, heads, full), query, full)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    kernel = None if needs_grad or mask is not None else lse_kernel(query.device, query.dtype, query.shape[-1] // heads)
    if kernel is None:
        return _by_concatenation(query, key, value, references, heads, first_target, full, mask)
    return _by_merging(kernel, query, key, value, references, heads, first_target, full)


def _by_merging(kernel, query, key, value, references, heads, first_target, full) -> Features:
    """Own attention, then each reference's, weighted by their normalizers as they come."""
    own, own_lse = _attend(kernel, query, key, value, heads, full)
    result = _join(own, query, full)
    blend = rearrange(result[:, first_target:], "b images t (heads d) -> b images t heads d", heads=heads)  # a view
    log_sum = _join(own_lse[..., None], query, full)[:, first_target:]  # (branches, targets, tokens, heads)
    targets = query[:, first_target:]
    queries = rearrange(targets, "b images t (heads d) -> b heads (images t) d", heads=heads)  # a view
    for i, reference in enumerate(references):
        scale = reference.scale / math.sqrt(query.shape[-1] // heads)
        out, lse = kernel(queries, _heads(reference.key, heads), _heads(reference.value, heads), scale)
        lse = _join(lse[..., None], targets, full=True) + reference.shift
        share = torch.sigmoid(lse - log_sum).unsqueeze(-1).to(out.dtype)
        blend.lerp_(rearrange(out, "b heads (images t) d -> b images t heads d", images=targets.shape[1]), share)
        if i + 1 < len(references):
            log_sum = torch.logaddexp(log_sum, lse)
    return result


def swapped_attention(query: Features, references: Sequence[Reference], *, heads: int) -> Features:
    """Attention of each image to the references in place of itself, ``softmax(s_r Q K_r^T / sqrt(d) + b_r) V_r``.

    Visual style prompting (Jeong et al. 2024, section 3.2): queries say what is where, keys and values how it looks.
    """
    keys = torch.cat([each.key if each.scale == 1 else each.key * each.scale for each in references], dim=1)
    values = torch.cat([each.value for each in references], dim=1)
    row = None
    if len({each.shift for each in references}) > 1:  # a shift that all share changes nothing
        row = shift_row([each.shift for each in references], [each.key.shape[1] for each in references], query)
    queries = rearrange(query, "b images t (heads d) -> b heads (images t) d", heads=heads)
    out = F.scaled_dot_product_attention(queries, _heads(keys, heads), _heads(values, heads), attn_mask=row)
    return _join(out, query, full=True)


def shift_row(shifts: Sequence[float], lengths: Sequence[int], like: Tensor) -> Float[Tensor, "1 1 1 tokens"]:
    """The shifts as one additive row: each repeated over the tokens of its part."""
    parts = [like.new_full((length,), shift) for shift, length in zip(shifts, lengths, strict=True)]
    return torch.cat(parts).view(1, 1, 1, -1)


def _by_concatenation(query, key, value, references, heads, first_target, full, mask) -> Features:
    """The same with keys and values copied next to each other, and an additive row where scores are shifted."""
    branches, images, tokens, _ = query.shape
    targets = images - first_target
    masks = (mask, mask)  # of the images before the first target, and of the targets
    if mask is not None and len(mask) > 1:
        of_images = rearrange(mask, "(b images) ... -> b images ...", b=branches)
        masks = tuple(x.flatten(0, 1) for x in (of_images[:, :first_target], of_images[:, first_target:]))

    def own(x: Tensor) -> Tensor:
        if full:
            return repeat(x, "b images t c -> (b targets) (images t) c", targets=images)
        return rearrange(x[:, first_target:], "b targets t c -> (b targets) t c")

    def seen(x: Tensor) -> Tensor:
        return repeat(x, "b t c -> (b targets) t c", targets=targets)

    keys = torch.cat(
        [own(key), *(seen(each.key if each.scale == 1 else each.key * each.scale) for each in references)], dim=1
    )
    values = torch.cat([own(value), *(seen(each.value) for each in references)], dim=1)
    row = None
    if any(each.shift for each in references):
        shifts = [0.0, *(each.shift for each in references)]
        lengths = [tokens * (images if full else 1), *(each.key.shape[1] for each in references)]
        row = shift_row(shifts, lengths, query)
    if masks[1] is not None:
        row = _beside(masks[1], keys.shape[1], query.dtype, row)
    queries = rearrange(query[:, first_target:], "b targets t c -> (b targets) t c")
    q, k, v = (_heads(x, heads) for x in (queries, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=row)
    out = rearrange(out, "(b targets) heads t d -> b targets t (heads d)", b=branches)
    if not first_target:
        return out
    alone = shared_attention(*(x[:, :first_target] for x in (query, key, value)), heads=heads, mask=masks[0])
    return torch.cat([alone, out], dim=1)


def _beside(
    mask: Mask, length: int, dtype: torch.dtype, row: Float[Tensor, "1 1 1 length"] | None
) -> Float[Tensor, "rows heads queries length"]:
    """A mask with columns for the references' keys, up to ``length``, and with their shifts added."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
    mask = F.pad(mask, (0, length - mask.shape[-1]))
    return mask if row is None else mask + row


def _heads(x: Float[Tensor, "rows tokens channels"], heads: int) -> Float[Tensor, "rows heads tokens dim"]:
    return rearrange(x, "rows t (heads d) -> rows heads t d", heads=heads)


def _attend(kernel: Callable, query: Features, key: Features, value: Features, heads: int, full: bool):
    """Attend within each image, or over all images of a branch; :func:`_join` undoes the split into heads."""
    rows = "b heads (images t) d" if full else "(b images) heads t d"
    return kernel(*(rearrange(x, f"b images t (heads d) -> {rows}", heads=heads) for x in (query, key, value)))


def _join(attended: Float[Tensor, "rows heads length dim"], like: Features, full: bool) -> Float[Tensor, "*shape"]:
    rows = "b heads (images t) d" if full else "(b images) heads t d"
    return rearrange(attended, f"{rows} -> b images t (heads d)", b=like.shape[0], images=like.shape[1])


@cache
def lse_kernel(device: torch.device, dtype: torch.dtype, dim: int) -> Callable | None:
    """A fused attention ``(q, k, v, scale) -> (out, log-sum-exp)`` that is correct on this device, or ``None``.

    ``scaled_dot_product_attention`` calls these kernels, but their names are not public and differ between devices.
    So each is tried on a small example first, and used only if it agrees with the definition.
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
