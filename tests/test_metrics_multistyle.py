"""Several styles at once: the published score by its equation, and the collapse that cannot win ours."""

import math

import numpy as np
import pytest
import torch

from context_diffusion.metrics import blend_score, blend_scores, style_shares, weighted_multi_style

EYE = torch.eye(4, dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b) -> float:
    a, b = (np.asarray(v, dtype=np.float64) for v in (a, b))
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_published_multi_style_score_is_the_weighted_sum_of_mean_cosines():
    pictures, references = noise(5, 7), noise(3, 7, seed=1)
    weights = [0.2, 0.3, 0.5]
    means = [np.mean([cosine(p, r) for p in pictures]) for r in references]
    found = weighted_multi_style(pictures, references, weights)
    assert found.value == pytest.approx(np.dot(weights, means))
    assert weighted_multi_style(pictures, references, [4, 6, 10]).value == pytest.approx(found.value)


def blend(weights, references):
    return torch.as_tensor(weights, dtype=torch.float64) @ references


def two_references(overlap: float) -> torch.Tensor:
    return torch.stack([EYE[0], overlap * EYE[0] + math.sqrt(1 - overlap**2) * EYE[1]])


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("weight", [0.5, 0.7, 0.85])
def test_a_collapse_scores_zero_and_the_asked_blend_one(weight, overlap):
    references, weights = two_references(overlap), [weight, 1 - weight]
    scores = blend_scores(torch.stack([*references, blend(weights, references)]), references, weights)
    np.testing.assert_allclose(scores, [0, 0, 1], atol=1e-7)


def test_single_style_pictures_win_the_published_score_and_lose_ours():
    references, weights = two_references(0.4), [0.85, 0.15]
    content = 1.5 * torch.cat([torch.zeros(20, 4, dtype=torch.float64), noise(20, 30)], dim=1) / 5
    wide = torch.nn.functional.pad(references, (0, 30))
    collapsed, mixed = content + wide[0], content + wide[[0] * 17 + [1] * 3]
    blended = content + 0.9 * blend(weights, wide)  # a blend that carries slightly less style
    published = [weighted_multi_style(p, wide, weights).value for p in (collapsed, mixed, blended)]
    ours = [blend_score(p, wide, weights) for p in (collapsed, mixed, blended)]
    assert published[0] == max(published)
    assert ours[2].low > max(ours[0].high, ours[1].high)


def test_shares_are_the_mixing_weights_whatever_the_content():
    references = torch.nn.functional.pad(noise(3, 5, seed=2).abs(), (0, 6))
    references = references / references.norm(dim=1, keepdim=True)
    weights = torch.tensor([[0.1, 0.3, 0.6], [0.5, 0.5, 0.0]], dtype=torch.float64)
    content = torch.nn.functional.pad(noise(2, 6, seed=3), (5, 0))
    shares, fidelity = style_shares(weights @ references + content, references)
    np.testing.assert_allclose(shares, weights, atol=1e-8)
    wanted = [cosine(w @ references, w @ references + c) for w, c in zip(weights, content, strict=True)]
    np.testing.assert_allclose(fidelity, wanted)


def test_a_picture_of_no_style_scores_zero():
    shares, fidelity = style_shares(EYE[[3]], two_references(0.3))
    assert fidelity[0] == 0
    np.testing.assert_array_equal(shares, [[0.5, 0.5]])


def test_center_removes_the_direction_that_all_pictures_share():
    common = 3 * EYE[3]
    references = EYE[:2] + common
    collapsed = references[[0]]
    shares, _ = style_shares(collapsed, references, center=common)
    np.testing.assert_allclose(shares, [[1, 0]], atol=1e-12)
    assert blend_score(common[None] + 1e-3 * EYE[[2]], references, [0.5, 0.5], center=common).value == 0
    assert blend_score(common[None] + 1e-3 * EYE[[2]], references, [0.5, 0.5]).value > 0.9


def test_one_style_asked_for_rewards_that_style():
    references = two_references(0.4)
    np.testing.assert_allclose(blend_scores(references, references, [1, 0]), [1, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_multi_style(EYE, EYE, [1.0]), r"4 reference\(s\), 1 weight\(s\)"),
        (lambda: blend_score(EYE, EYE[:2], [0.5, -0.5]), "not negative, and not all zero"),
        (lambda: style_shares(EYE, EYE[[0, 0]]), "references that differ"),
        (lambda: style_shares(EYE, EYE[:2], center=EYE[0, :3]), "one embedding of 4 numbers"),
    ],
)
def test_bad_styles_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
