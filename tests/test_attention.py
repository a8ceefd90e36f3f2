"""The equations of StyleAligned: AdaIN, and shared attention against the definition written out with einsum."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from context_diffusion.alignment import equations as module
from context_diffusion.alignment.equations import (
    Moments,
    Reference,
    adain,
    lse_kernel,
    mix_moments,
    moments,
    shared_attention,
)
from context_diffusion.alignment.networks import choose_layers

BRANCHES, IMAGES, TOKENS, HEADS, WIDTH = 2, 3, 12, 2, 16


def features(*shape: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(*shape)


def batch(spread: float = 2.0) -> tuple[torch.Tensor, ...]:
    return tuple(features(BRANCHES, IMAGES, TOKENS, WIDTH, spread=spread) for _ in range(3))


def references(*settings: tuple[float, float], tokens: int = 20) -> list[Reference]:
    return [Reference(*(features(BRANCHES, tokens, WIDTH) for _ in range(2)), *each) for each in settings]


def written_out(query, key, value, refs, first_target=0, full=False) -> torch.Tensor:
    """Softmax over the scores of one image's own tokens and of the references, one head of one image at a time."""
    dim, out = WIDTH // HEADS, torch.empty_like(query)
    for g, i, h in np.ndindex(BRANCHES, IMAGES, HEADS):
        part = slice(h * dim, (h + 1) * dim)
        own = range(IMAGES) if full else [i]
        scores = [torch.einsum("id,jd->ij", query[g, i, :, part], key[g, j, :, part]) / dim**0.5 for j in own]
        values = [value[g, j, :, part] for j in own]
        for ref in refs if i >= first_target or full else []:
            raw = torch.einsum("id,jd->ij", query[g, i, :, part], ref.key[g, :, part]) / dim**0.5
            scores.append(ref.scale * raw + ref.shift)
            values.append(ref.value[g, :, part])
        out[g, i, :, part] = torch.cat(scores, dim=1).softmax(dim=1) @ torch.cat(values)
    return out


CASES = {
    "plain": ([], {}),
    "one": ([(1.0, 0.0)], {}),
    "row zero is the reference": ([(1.0, 0.0)], {"first_target": 1}),
    "shift": ([(1.0, math.log(2))], {"first_target": 1}),
    "scale": ([(0.5, 0.0)], {}),
    "three, each its own": ([(1.0, -1.0), (0.7, 0.5), (1.2, 2.0)], {"first_target": 1}),
    "full": ([], {"full": True}),
    "full and reference": ([(0.8, 0.3)], {"full": True}),
}


@pytest.mark.parametrize("merging", [True, False], ids=["log-sum-exp", "concatenation"])
@pytest.mark.parametrize("case", CASES)
def test_shared_attention_is_the_definition(case, merging, monkeypatch):
    if not merging:
        monkeypatch.setattr(module, "lse_kernel", lambda *_: None)
    settings, options = CASES[case]
    query, key, value = batch()
    refs = references(*settings)
    expected = written_out(query, key, value, refs, **options)
    got = shared_attention(query, key, value, refs, heads=HEADS, **options)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    if refs:
        assert (got - shared_attention(query, key, value, heads=HEADS)).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype):
    query, key, value = batch(spread=1.0)
    refs = references((1.0, 0.5), (0.5, -0.5))
    expected = written_out(query, key, value, refs)
    halves = [Reference(ref.key.to(dtype), ref.value.to(dtype), ref.scale, ref.shift) for ref in refs]
    got = shared_attention(query.to(dtype), key.to(dtype), value.to(dtype), halves, heads=HEADS)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


def test_gradients_go_through():
    query, key, value = (x.requires_grad_() for x in batch())
    (ref,) = references((1.0, 0.5))
    got = shared_attention(query, key, value, [ref], heads=HEADS)
    expected = torch.autograd.grad(written_out(query, key, value, [ref]).square().sum(), [query, key, value])
    for ours, theirs in zip(torch.autograd.grad(got.square().sum(), [query, key, value]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_shift_of_minus_infinity_is_plain_attention_bit_for_bit():
    query, key, value = batch()
    plain = shared_attention(query, key, value, heads=HEADS)
    assert torch.equal(shared_attention(query, key, value, references((1.0, -math.inf)), heads=HEADS), plain)
    near = shared_attention(query, key, value, references((1.0, -40.0)), heads=HEADS)
    torch.testing.assert_close(near, plain, atol=1e-6, rtol=0)


def test_a_large_shift_leaves_only_the_reference():
    query, key, value = batch()
    (ref,) = references((1.0, 60.0))
    got = shared_attention(query, key, value, [ref], heads=HEADS)
    others = [x[:, None].expand(-1, IMAGES, -1, -1) for x in ref[:2]]
    heads = [x.flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, *others)]
    alone = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(query.shape)
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_log_weights_split_a_reference_without_changing_it():
    query, key, value = batch()
    (one,) = references((1.0, 0.4))
    parts = [one._replace(shift=0.4 + math.log(weight)) for weight in (0.2, 0.3, 0.5)]
    expected = shared_attention(query, key, value, [one], heads=HEADS)
    torch.testing.assert_close(shared_attention(query, key, value, parts, heads=HEADS), expected, atol=1e-5, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("merging", [True, False], ids=["log-sum-exp", "concatenation"])
def test_no_score_matrix_exists_and_nothing_is_concatenated_where_views_do(merging, monkeypatch):
    if not merging:
        monkeypatch.setattr(module, "lse_kernel", lambda *_: None)
    tokens = 300
    query, key, value = (features(1, 4, tokens, WIDTH) for _ in range(3))
    refs = [Reference(features(1, tokens, WIDTH), features(1, tokens, WIDTH), 0.9, shift) for shift in (0.5, -0.5)]
    lse_kernel(query.device, query.dtype, WIDTH // HEADS)  # tried out before, once per process
    with torch.no_grad(), LargestTensor() as largest:
        shared_attention(query, key, value, refs, heads=HEADS, first_target=1)
    limit = query.numel() if merging else 3 * query.numel()
    assert largest.numel <= limit < HEADS * tokens * tokens


def test_the_fast_kernel_is_used_here_and_a_wrong_one_is_not(monkeypatch):
    assert lse_kernel(torch.device("cpu"), torch.float32, 8) is not None

    def wrong(query, key, value, scale=None):
        out, lse = module._flash_cpu(query, key, value, scale)
        return out, lse * 1.01

    def missing(query, key, value, scale=None):
        raise AttributeError("no such operator")

    monkeypatch.setattr(module, "_KERNELS", {"cpu": (missing, wrong)})
    assert lse_kernel.__wrapped__(torch.device("cpu"), torch.float32, 8) is None


def test_adain_gives_the_statistics_of_the_reference_and_keeps_its_own():
    content, style = features(2, 3, 400, 8, spread=3.0) + 1, features(2, 1, 500, 8, spread=0.5) - 2
    aligned = adain(content, moments(style))
    torch.testing.assert_close(aligned.mean(2), style.mean(2).expand(-1, 3, -1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(aligned.std(2), style.std(2).expand(-1, 3, -1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adain(style, moments(style)), style, atol=1e-5, rtol=1e-5)
    order = aligned[0, 0, :, 0].argsort()
    assert torch.equal(order, content[0, 0, :, 0].argsort())  # each channel is only stretched and moved


def test_adain_of_a_constant_is_the_mean_of_the_reference():
    style = features(1, 50, 4)
    torch.testing.assert_close(
        adain(torch.full((1, 50, 4), 7.0), moments(style)), style.mean(1, keepdim=True).expand(1, 50, 4)
    )


def test_mixed_moments_are_those_of_the_weighted_tokens():
    tokens, weights = features(1, 3, 4000, 5).double() * torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1) + 1, [0.2, 0.3, 0.5]
    tokens[:, 1] += 4
    mixed = mix_moments(
        Moments(*(x.double() for x in torch.var_mean(tokens, dim=-2, keepdim=True)[::-1])), torch.tensor(weights)
    )
    per_token = np.repeat(weights, 4000)
    flat = tokens[0].flatten(0, 1).numpy()
    mean = np.average(flat, axis=0, weights=per_token)
    np.testing.assert_allclose(mixed.mean[0, 0, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(mixed.var[0, 0, 0], np.average((flat - mean) ** 2, axis=0, weights=per_token), rtol=1e-3)


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 70), (0.5, 35), (0.1, 7), (0.001, 1), (0, 0)])
def test_a_fraction_of_the_layers_is_evenly_spaced(fraction, count):
    names = [str(i) for i in range(70)]
    chosen = [int(name) for name in choose_layers(names, fraction)]
    assert len(chosen) == len(set(chosen)) == count
    if count > 1:
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1
        assert max(chosen[0], 69 - chosen[-1]) <= gaps.max() / 2 + 1


def test_layers_by_word():
    names = ["down_blocks.0.attn1", "mid_block.attn1", "up_blocks.0.attn1", "up_blocks.1.attn1"]
    assert choose_layers(names, "up_blocks") == names[2:]
    assert choose_layers(names, ["mid", "up_blocks.1"]) == [names[1], names[3]]
    with pytest.raises(ValueError, match="'top' in its name"):
        choose_layers(names, ["top"])
