"""Palettes: known colours, exact transport against independent solvers, and the bound on what clustering leaves out."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.optimize import linear_sum_assignment

from context_diffusion.metrics import (
    Palette,
    earth_movers_distance,
    palette_distance,
    palette_distances,
    palette_of,
    srgb_to_lab,
)


def flat(*rgb: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), rgb)


def test_lab_of_known_colours():
    known = {(0, 0, 0): (0, 0, 0), (255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20)}
    known |= {(0, 0, 255): (32.30, 79.19, -107.86), (119, 119, 119): (50.03, 0, 0)}
    for rgb, lab in known.items():
        np.testing.assert_allclose(srgb_to_lab(np.array(rgb, dtype=np.uint8)), lab, atol=0.02)


def test_lab_equals_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    np.testing.assert_allclose(srgb_to_lab(rgb), color.rgb2lab(rgb), atol=0.01)


def test_distance_of_two_plain_pictures_is_their_colour_difference():
    difference = palette_distances([flat(0, 0, 0)], [flat(255, 255, 255)])
    assert difference[0] == pytest.approx(100)
    half = Image.new("RGB", (8, 8))
    half.paste("white", (0, 0, 4, 8))
    assert palette_distances([half], [flat(255, 255, 255)])[0] == pytest.approx(50)
    assert palette_distances([half], [half.rotate(90)])[0] == pytest.approx(0, abs=1e-9)


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(values.reshape(16, 16, 1), 3, axis=2).astype(np.uint8))


def test_greys_move_along_one_line_as_the_wasserstein_distance_of_scipy():
    rng = np.random.default_rng(2)
    pairs = [rng.choice(rng.integers(0, 256, (2, 9))[side], 256) for side in (0, 1)]
    light = [srgb_to_lab(np.asarray(grey(values))).reshape(-1, 3)[:, 0] for values in pairs]
    found = palette_distances([grey(pairs[0])], [grey(pairs[1])], colors=40)[0]
    spread = sum(palette_of(grey(values), 40).spread for values in pairs)
    assert found == pytest.approx(stats.wasserstein_distance(*light), abs=spread + 1e-9)
    assert spread < 1


def some_palette(colors: int, seed: int) -> Palette:
    rng = np.random.default_rng(seed)
    weights = rng.random(colors)
    return Palette(rng.uniform((0, -50, -50), (100, 50, 50), (colors, 3)), weights / weights.sum(), 0.0)


def test_earth_movers_distance_of_equal_weights_is_the_best_assignment():
    first, second = (Palette(some_palette(9, seed).lab, np.full(9, 1 / 9), 0.0) for seed in (0, 1))
    cost = np.linalg.norm(first.lab[:, None] - second.lab[None], axis=-1)
    wanted = cost[linear_sum_assignment(cost)].mean()
    assert earth_movers_distance(first, second) == pytest.approx(wanted)


def test_earth_movers_distance_is_a_metric():
    three = [some_palette(colors, seed) for colors, seed in ((7, 0), (24, 1), (12, 2))]
    d = {(i, j): earth_movers_distance(three[i], three[j]) for i, j in itertools.product(range(3), repeat=2)}
    for i, j, k in itertools.permutations(range(3)):
        assert d[i, i] == pytest.approx(0, abs=1e-9)
        assert d[i, j] == pytest.approx(d[j, i])
        assert d[i, j] <= d[i, k] + d[k, j]
    moved = Palette(three[1].lab + [3.0, 0, 4], three[1].weights, 0.0)
    assert earth_movers_distance(three[1], moved) == pytest.approx(5)


def test_spread_bounds_what_the_palette_leaves_out():
    rng = np.random.default_rng(3)
    arrays = [np.clip(rng.normal(base, 40, (12, 12, 3)), 0, 255).astype(np.uint8) for base in (90, 150)]
    labs = [srgb_to_lab(array).reshape(-1, 3) for array in arrays]
    cost = np.linalg.norm(labs[0][:, None] - labs[1][None], axis=-1)
    exact = cost[linear_sum_assignment(cost)].mean()  # between all 144 pixels of each
    first, second = (palette_of(Image.fromarray(array)) for array in arrays)
    assert len(first.weights) == 24
    assert abs(earth_movers_distance(first, second) - exact) <= first.spread + second.spread


def test_spread_is_the_distance_of_pixels_to_their_colour():
    values = np.repeat([0, 255], 128)
    found = palette_of(grey(values), colors=1)
    np.testing.assert_allclose(found.lab, [[50, 0, 0]], atol=1e-9)
    assert found.spread == pytest.approx(50)
    assert palette_of(grey(values)).spread == pytest.approx(0, abs=1e-5)


def test_a_set_is_the_average_of_its_pictures_in_any_order_and_any_arrangement_of_pixels():
    rng = np.random.default_rng(4)
    noise = torch.from_numpy(rng.integers(0, 256, (3, 3, 16, 16), dtype=np.uint8))
    shuffled = noise.flatten(2)[:, :, torch.from_numpy(rng.permutation(256))].reshape(3, 3, 16, 16)
    assert earth_movers_distance(palette_of(noise), palette_of(shuffled.flip(0))) == pytest.approx(0, abs=1e-6)
    pair = palette_of([flat(0, 0, 0, size=4), flat(255, 255, 255, size=40)])  # each counts the same
    np.testing.assert_allclose(pair.weights, [0.5, 0.5])


def test_palette_distance_takes_sets_palettes_and_one_target_for_all():
    black, white = flat(0, 0, 0), flat(255, 255, 255)
    entries = [black, [black, white], palette_of(white)]
    np.testing.assert_allclose(palette_distances(entries, white), [100, 50, 0], atol=1e-9)
    estimate = palette_distance(iter(entries), [white, black, black])
    assert (estimate.value, estimate.n) == (pytest.approx(250 / 3), 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: palette_of([]), "at least one picture"),
        (lambda: palette_of(flat(0, 0, 0), colors=0), "at least one colour; got 0"),
        (lambda: palette_distances([flat(0, 0, 0)], []), "runs out after 0"),
    ],
)
def test_bad_palettes_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
