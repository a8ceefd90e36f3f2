import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import AutoModelForDepthEstimation
from worlds import hub_folder, scenes_folder

from context_diffusion.control import DepthEstimator, canny_map, control_image, depth_map, stretch
from context_diffusion.images import load_image_as_tensor


def square() -> Image.Image:
    picture = Image.new("RGB", (60, 40), "black")
    ImageDraw.Draw(picture).rectangle((20, 10, 39, 29), fill="white")
    return picture


def test_edges_are_where_a_square_ends_and_nowhere_else():
    edges = canny_map(square()).numpy()
    assert edges.shape == (40, 60) and set(np.unique(edges)) == {0.0, 1.0}
    rows, columns = np.nonzero(edges)
    outside = np.maximum(np.abs(columns - 29.5) - 9.5, np.abs(rows - 19.5) - 9.5)
    assert np.abs(outside).max() <= 1  # within a pixel of the outline
    assert len(rows) >= 4 * 19


def test_edges_are_those_of_opencv():
    picture = Image.effect_noise((64, 48), 120).convert("RGB")
    expected = cv2.Canny(np.asarray(picture.convert("L")), 80, 160) / 255
    np.testing.assert_array_equal(canny_map(picture, 80, 160), expected)


@given(st.floats(0, 700), st.floats(0, 700))
@settings(max_examples=20, deadline=None)
def test_higher_thresholds_never_add_an_edge(first, second):
    low, high = sorted((first, second))
    picture = Image.effect_noise((32, 32), 100).convert("RGB")
    assert (canny_map(picture, low, high) <= canny_map(picture, low / 2, high / 2)).all()


def test_blur_removes_texture_and_keeps_shape():
    noisy = np.asarray(square(), int) + np.random.default_rng(0).integers(-90, 90, (40, 60, 1))
    noisy = np.clip(noisy, 0, 255).astype(np.uint8)
    blurred, inside = canny_map(noisy, blur=2.0), (slice(15, 25), slice(25, 35))
    assert canny_map(noisy)[inside].sum() > 0 and blurred[inside].sum() == 0
    assert blurred.sum() > 50


@pytest.mark.parametrize("thresholds", [(200, 100), (-1, 5), (0, float("inf")), (float("nan"), 5)])
def test_thresholds_out_of_order_are_refused(thresholds):
    with pytest.raises(ValueError, match="0 <= low <= high"):
        canny_map(square(), *thresholds)


def test_a_constant_image_has_no_edges():
    assert canny_map(Image.new("L", (9, 9), 77)).sum() == 0


def test_depth_is_the_networks_stretched_to_the_pictures_size():
    picture = Image.effect_noise((28, 28), 100).convert("RGB")
    network = AutoModelForDepthEstimation.from_pretrained(scenes_folder() / "depth")
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        raw = network(pixel_values=pixels).predicted_depth[0]
    estimator = DepthEstimator.from_pretrained(scenes_folder())
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    assert raw.shape == (28, 28) and expected.std() > 0.05
    torch.testing.assert_close(estimator(picture), expected, atol=1e-4, rtol=0)
    assert depth_map(load_image_as_tensor(picture), estimator).shape == (224, 224)
    assert estimator(picture.resize((50, 30))).shape == (30, 50)


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
@settings(max_examples=30, deadline=None)
def test_stretching_knows_neither_offset_nor_unit(offset, unit):
    depth = torch.rand(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stretched = stretch(depth * unit + offset)
    assert (stretched.min(), stretched.max()) == (0, 1)
    torch.testing.assert_close(stretched, stretch(depth), atol=1e-6, rtol=0)


def test_equal_depth_everywhere_is_zero_and_nan_is_refused():
    assert torch.equal(stretch(torch.full((4, 4), 3.3)), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="NaN"):
        stretch(torch.tensor([[0.0, float("nan")]]))


def test_a_control_image_is_the_map_in_grey():
    control = torch.tensor([[0.0, 0.5, 1.0]])
    assert np.asarray(control_image(control)).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_a_model_without_depth_says_what_to_do():
    with pytest.raises(ValueError, match="no depth estimator beside it"):
        DepthEstimator.from_pretrained(hub_folder())
    with pytest.raises(FileNotFoundError, match="hf download depth-anything"):
        DepthEstimator.from_pretrained("sd15")
