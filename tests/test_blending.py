"""Blending: closed forms of the arc, invariance of the mean on the sphere, and what has no answer."""

import itertools
import math

import pytest
import torch

from context_diffusion.alignment.blending import linear, slerp, weighted_slerp
from context_diffusion.checks import normalized_weights


def vectors(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape or (4, 16, 16), generator=generator, dtype=torch.float64) for _ in range(count)]


def test_slerp_walks_a_circle_at_constant_speed():
    radius, angle = 3.0, 2.0
    start = torch.tensor([radius, 0.0], dtype=torch.float64)
    end = radius * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    for t in torch.linspace(0, 1, 9).tolist():
        expected = radius * torch.tensor([math.cos(t * angle), math.sin(t * angle)], dtype=torch.float64)
        torch.testing.assert_close(slerp(start, end, t), expected, atol=1e-12, rtol=0)


def test_slerp_end_points_symmetry_and_norm():
    a, b = vectors(2)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7), atol=1e-12, rtol=0)
    for t in (0.1, 0.5, 0.8):
        torch.testing.assert_close(slerp(a, b, t).norm(), (1 - t) * a.norm() + t * b.norm())


def test_the_arc_keeps_the_norm_of_noise_and_the_line_does_not():
    a, b = vectors(2, 4, 64, 64)
    assert slerp(a, b, 0.5).std().item() == pytest.approx(1.0, abs=0.02)
    assert linear([a, b]).std().item() == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_slerp_of_near_vectors_is_the_line():
    a, d = vectors(2)
    b = a + 1e-9 * d
    torch.testing.assert_close(slerp(a, b, 0.3), a + 0.3e-9 * d, atol=1e-14, rtol=0)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_zero_has_no_direction():
    (a,) = vectors(1)
    zero = torch.zeros_like(a)
    torch.testing.assert_close(slerp(zero, a, 0.25), 0.25 * a)
    torch.testing.assert_close(weighted_slerp([zero, a, a], [0.5, 0.25, 0.25]), 0.5 * a)
    assert torch.equal(weighted_slerp([zero, zero]), zero)


def test_opposite_vectors_are_refused_in_a_sentence():
    (a,) = vectors(1)
    with pytest.raises(ValueError, match="no shortest arc"):
        slerp(a, -2 * a, 0.5)
    with pytest.raises(ValueError, match="no shortest arc"):
        weighted_slerp([a, -a])
    assert torch.equal(weighted_slerp([a, -a], [1, 0]), a)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9])
def test_two_way_mean_is_slerp(weight):
    a, b = vectors(2)
    torch.testing.assert_close(weighted_slerp([a, 2 * b], [1 - weight, weight]), slerp(a, 2 * b, weight))


def test_order_does_not_matter():
    parts, weights = vectors(3), [0.2, 0.3, 0.5]
    expected = weighted_slerp(parts, weights)
    for order in itertools.permutations(range(3)):
        got = weighted_slerp([parts[i] for i in order], [weights[i] for i in order])
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=0)


def test_mean_of_orthogonal_axes_is_the_diagonal():
    axes = list(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(weighted_slerp(axes), torch.full((3,), 3**-0.5, dtype=torch.float64))


def test_mean_has_the_least_weighted_squared_angle():
    parts, weights = vectors(4, 6), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    units = torch.stack([part / part.norm() for part in parts])
    mean = weighted_slerp(parts, weights.tolist())
    direction = (mean / mean.norm()).requires_grad_()
    loss = (weights * torch.acos(units @ (direction / direction.norm())) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, direction)
    assert gradient.norm() < 1e-7
    for step in vectors(20, 6, seed=1):
        other = direction.detach() + 0.05 * step
        assert (weights * torch.acos(units @ (other / other.norm())) ** 2).sum() > loss.detach()


def test_rotation_goes_through():
    parts, weights = vectors(3, 8), [0.5, 0.3, 0.2]
    rotation, _ = torch.linalg.qr(torch.stack(vectors(8, 8, seed=2)))
    rotated = weighted_slerp([rotation @ part for part in parts], weights)
    torch.testing.assert_close(rotated, rotation @ weighted_slerp(parts, weights))


def test_half_precision_in_is_half_precision_out():
    a, b = (vector.half() for vector in vectors(2))
    assert slerp(a, b, 0.5).dtype == linear([a, b]).dtype == weighted_slerp([a, b]).dtype == torch.float16
    torch.testing.assert_close(slerp(a, b, 0.5).double(), slerp(a.double(), b.double(), 0.5), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [([1.0], "one weight"), ([0.5, -0.1], "not negative"), ([0, 0], "not all zero"), ([1, math.nan], "finite")],
)
def test_bad_weights_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        normalized_weights(weights, 2)


def test_weights_are_shares():
    assert normalized_weights([3, 1], 2) == (0.75, 0.25)
    assert normalized_weights(None, 4) == (0.25,) * 4
    assert normalized_weights([1e308, 1e308], 2) == (0.5, 0.5)


@pytest.mark.parametrize("blend", [linear, weighted_slerp])
def test_bad_vectors_are_refused(blend):
    with pytest.raises(ValueError, match="empty"):
        blend([])
    with pytest.raises(ValueError, match="one shape"):
        blend([torch.ones(3), torch.ones(4)])
    with pytest.raises(ValueError, match="NaN"):
        blend([torch.ones(3), torch.full((3,), math.nan)])
    with pytest.raises(ValueError, match="0 .*1"):
        slerp(torch.ones(3), torch.ones(3), 1.5)
