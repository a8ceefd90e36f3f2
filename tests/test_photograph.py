"""A photographed picture: projective geometry, light, blur and noise, each against what optics says of it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from context_diffusion.scenes import Scene, Style, render
from experiments.evaluation.photograph import FRAME, Camera, encoded, lamp, linear, photographed, slanted

SCENE = render(Scene.draw(1_000_000), Style.draw(1_000_000, name="flat")).image
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG has it
GREY = Image.new("RGB", (64, 64), (188, 188, 188))  # half of white's light


def light_of(photograph: Image.Image) -> np.ndarray:
    return linear(np.asarray(photograph, dtype=float) / 255)


def test_a_perfect_camera_gives_the_picture_back():
    seen = np.asarray(Camera()(SCENE).resize(SCENE.size, Image.Resampling.BOX), dtype=float)
    error = np.abs(seen - np.asarray(SCENE, dtype=float))
    assert error.mean() < 2 and np.median(error) <= 1  # all but the contours, which interpolation softens


def test_light_and_values_are_inverse_and_half_the_light_is_188():
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(encoded(linear(values)), values, atol=1e-6)
    assert round(255 * float(encoded(np.array([0.5]))[0])) == 188


@pytest.mark.parametrize("seed", range(5))
def test_the_middle_of_the_frame_sees_where_the_diagonals_cross(seed):
    """A projective map takes lines to lines, so the crossing of the frame's diagonals to that of its image's."""
    corners = Camera.draw(seed).corners
    assert all(0 <= side <= 1 and min(side, 1 - side) <= 0.08 for corner in corners for side in corner)
    v, u = (np.mgrid[:128, :128] + 0.5) / 128
    places = slanted(np.stack([u, v, np.zeros_like(u)], axis=2), corners)[..., :2]
    a, b, c, d = (np.array(corner) for corner in corners)
    s, _ = np.linalg.solve(np.stack([c - a, b - d], axis=1), b - a)
    np.testing.assert_allclose(
        places[FRAME // 2 - 1 : FRAME // 2 + 1, FRAME // 2 - 1 : FRAME // 2 + 1].mean(axis=(0, 1)),
        a + s * (c - a),
        atol=2e-3,
    )
    for corner, (row, column) in zip((a, b, c, d), ((0, 0), (0, -1), (-1, -1), (-1, 0)), strict=True):
        np.testing.assert_allclose(places[row, column], corner, atol=8e-3)  # half a pixel of either


@pytest.mark.parametrize("towards", [0.0, 1.0, np.pi / 2, 4.0])
def test_light_falls_evenly_from_all_to_what_the_falloff_leaves(towards):
    share = lamp(0.4, towards)[..., 0]
    assert 0.995 < share.max() <= 1 and 0.6 <= share.min() < 0.605
    np.testing.assert_allclose(np.diff(share, 2, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(share, 2, axis=1), 0, atol=1e-12)
    down, right = np.diff(share, axis=0).mean(), np.diff(share, axis=1).mean()
    np.testing.assert_allclose(
        [right, down], -np.hypot(down, right) * np.array([np.cos(towards), np.sin(towards)]), atol=1e-12
    )


def test_a_lamp_dims_light_and_not_the_values_of_the_file():
    seen = light_of(Camera(falloff=0.4)(GREY))
    np.testing.assert_allclose(seen.mean(axis=(0, 2)), 0.5 * lamp(0.4, 0.0)[0, :, 0], atol=0.01)


def test_noise_grows_with_the_root_of_the_light():
    spreads = {}
    for level in (0.05, 0.2, 0.8):
        value = round(255 * float(encoded(np.array([level]))[0]))
        seen = light_of(Camera(noise=0.03)(Image.new("RGB", (64, 64), (value,) * 3), seed=1))
        spreads[level] = (seen @ LUMA).std()  # JPEG keeps this sharp, and halves the resolution of colour
    assert spreads[0.2] / spreads[0.05] == pytest.approx(2, rel=0.1)
    assert spreads[0.8] / spreads[0.2] == pytest.approx(2, rel=0.1)
    assert spreads[0.8] == pytest.approx(0.03 * np.sqrt(0.8) * np.linalg.norm(LUMA), rel=0.1)


def test_blur_keeps_the_light_and_takes_the_contrast():
    checks = Image.fromarray(np.uint8(255 * (np.indices((64, 64)).sum(axis=0) % 2)))
    sharp, soft = (light_of(Camera(blur=blur)(checks)) for blur in (0.0, 3.0))
    assert soft.std() < 0.5 * sharp.std() and soft.mean() == pytest.approx(sharp.mean(), abs=0.01)


def test_a_photograph_is_its_seeds_and_shows_nothing_but_the_picture():
    first, again, other = (np.asarray(photographed(SCENE, seed), dtype=int) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 3 and first.shape == (FRAME, FRAME, 3)
    lit = dataclasses.replace(Camera.draw(7), falloff=0.0, noise=0.0)
    assert np.asarray(lit(Image.new("RGB", (128, 128), "white"))).min() >= 254
