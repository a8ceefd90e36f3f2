"""Rotary positions: a rotation on top is a shift, in every model's own code; how loud a reference is on the whole."""

import math

import pytest
import torch
from torch.testing import assert_close

from context_diffusion.alignment.positions import Rotary, loudness, turned

FLUX = Rotary((16, 56, 56), 10_000, down=1, right=2)


def rotated_by_flux(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(tokens, heads, 128) keys at the places ``ids``, by diffusers' own code."""
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    cos_and_sin = FluxPosEmbed(theta=10_000, axes_dim=(16, 56, 56))(ids)
    return apply_rotary_emb(keys[None], cos_and_sin, sequence_dim=1)[0]


def test_a_rotation_on_top_is_a_shift():
    keys = torch.randn(12, 2, 128, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0.0, y, x] for y in range(3) for x in range(4)])
    shifted = ids + torch.tensor([0.0, 0.0, 64.0])
    flat = rotated_by_flux(keys, ids).flatten(1)
    assert_close(turned(flat, FLUX.angles(right=64)), rotated_by_flux(keys, shifted).flatten(1), atol=1e-5, rtol=1e-5)


def test_scaling_commutes_with_rotating():
    keys, scales = torch.randn(5, 128), FLUX.untwisting(0.25, 1.4)
    none = torch.zeros(64, dtype=torch.float64)
    assert_close(turned(turned(keys, none, scales), FLUX.angles(9)), turned(keys, FLUX.angles(9), scales))


def test_untwisting_leaves_the_other_axis_and_runs_from_high_to_low():
    scales = FLUX.untwisting(0.25, 1.4)
    assert_close(scales[:8], torch.ones(8, dtype=torch.float64))
    for axis in (scales[8:36], scales[36:]):
        assert math.isclose(axis[0], 0.25) and math.isclose(axis[-1], 1.4) and (axis.diff() > 0).all()


@pytest.mark.parametrize("grids", [((6, 8), (6, 8)), ((6, 8), (4, 5))], ids=["one size", "two sizes"])
@pytest.mark.parametrize("scales", [None, FLUX.untwisting(0.6, 1.5)], ids=["as they are", "untwisted"])
def test_loudness_is_the_mean_over_all_pairs_of_places(grids, scales):
    grid, other = grids
    weights = torch.ones(64, dtype=torch.float64) if scales is None else scales
    total = 0.0
    for p in ((y, x) for y in range(grid[0]) for x in range(grid[1])):
        for r in ((y, x) for y in range(other[0]) for x in range(other[1])):
            total += float((weights * torch.cos(FLUX.angles(r[1] + 8 - p[1], r[0] - p[0]))).mean())
    expected = total / math.prod(grid) / math.prod(other)
    assert math.isclose(loudness(FLUX, grid, other, FLUX.angles(8), scales), expected, rel_tol=1e-9)


def test_what_alignedgen_makes_up_for():
    """Its factor on the keys of FLUX.1 at 1024 pixels is 1.1."""
    grid = (64, 64)
    on_top, beside = (loudness(FLUX, grid, grid, FLUX.angles(by)) for by in (0, 64))
    assert round(on_top / beside, 1) == 1.1
