from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage
from transformers import AutoModelForDepthEstimation, DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil
from worlds import hub_folder, random_depth, scenes_folder, wide_open

from context_diffusion.control import DepthEstimator, canny_map, control_image, depth_map, stretch
from context_diffusion.images import load_image_as_tensor


def square() -> Image.Image:
    picture = Image.new("RGB", (60, 40), "black")
    ImageDraw.Draw(picture).rectangle((20, 10, 39, 29), fill="white")
    return picture


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_edges_are_where_a_square_ends_and_nowhere_else():
    edges = canny_map(square()).numpy()
    assert edges.shape == (40, 60) and set(np.unique(edges)) == {0.0, 1.0}
    rows, columns = np.nonzero(edges)
    outside = np.maximum(np.abs(columns - 29.5) - 9.5, np.abs(rows - 19.5) - 9.5)
    assert np.abs(outside).max() <= 1  # within a pixel of the outline
    assert len(rows) >= 4 * 19


def test_edges_are_those_of_opencv():
    picture = noise(64, 48)
    expected = cv2.Canny(np.asarray(picture.convert("L")), 80, 160) / 255
    np.testing.assert_array_equal(canny_map(picture, 80, 160), expected)


@pytest.mark.parametrize(("low", "high"), [(100, 400), (30, 300)])
def test_hysteresis_keeps_what_hangs_together_with_a_strong_edge(low, high):
    picture = noise(24, 16).resize((96, 64))
    weak, strong = (canny_map(picture, level, level).numpy() > 0 for level in (low, high))
    parts, _ = ndimage.label(weak, structure=np.ones((3, 3)))
    expected = np.isin(parts, np.unique(parts[strong])) & weak
    assert strong.sum() < expected.sum() < weak.sum()
    np.testing.assert_array_equal(canny_map(picture, low, high).numpy() > 0, expected)


def test_no_gradient_is_above_the_largest():
    corners = np.kron(np.random.default_rng(0).integers(0, 2, (20, 20)), np.full((3, 3), 255)).astype(np.uint8)
    assert canny_map(corners, 1529, 1529).any() and not canny_map(corners, 1530, 1530).any()


@given(st.floats(0, 700), st.floats(0, 700))
@settings(max_examples=20, deadline=None)
def test_higher_thresholds_never_add_an_edge(first, second):
    low, high = sorted((first, second))
    picture = noise(32, 32)
    assert (canny_map(picture, low, high) <= canny_map(picture, low / 2, high / 2)).all()


def test_blur_removes_texture_and_keeps_shape():
    noisy = np.asarray(square(), int) + np.random.default_rng(0).integers(-90, 90, (40, 60, 1))
    noisy = np.clip(noisy, 0, 255).astype(np.uint8)
    blurred, inside = canny_map(noisy, blur=2.0), (slice(15, 25), slice(25, 35))
    assert canny_map(noisy)[inside].sum() > 0 and blurred[inside].sum() == 0
    assert blurred.sum() > 50


@pytest.mark.parametrize("thresholds", [(200, 100), (-1, 5), (0, float("inf")), (float("nan"), 5)])
def test_thresholds_out_of_order_are_refused(thresholds):
    with pytest.raises(ValueError, match="0 <= low <= high|is a finite number"):
        canny_map(square(), *thresholds)


def test_a_constant_image_has_no_edges():
    assert canny_map(Image.new("L", (9, 9), 77)).sum() == 0


def test_depth_is_the_networks_stretched_to_the_pictures_size():
    picture = noise(28, 28)
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


def random_hybrid() -> DPTForDepthEstimation:
    """The structure of Intel/dpt-hybrid-midas, a convolutional stem before a ViT, at 64x64 pixels."""
    stem = {
        "global_padding": "same", "layer_type": "bottleneck", "embedding_dynamic_padding": True, "embedding_size": 16,
        "hidden_sizes": [32, 32, 64], "depths": [1, 1, 1], "num_groups": 4,
        "out_features": ["stage1", "stage2", "stage3"],
    }  # fmt: skip
    config = DPTConfig(
        is_hybrid=True, backbone_config=stem, backbone_featmap_shape=[1, 64, 4, 4], image_size=64, hidden_size=32,
        num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[32, 32, 16, 16], reassemble_factors=[1, 1, 1, 0.5], fusion_hidden_size=16,
    )  # fmt: skip
    model = DPTForDepthEstimation(config).eval()
    return wide_open(model, model.head.head[-2], 1000.0)


@pytest.mark.parametrize("build", [random_hybrid, random_depth], ids=["DPT hybrid", "Depth Anything"])
def test_a_saved_depth_network_is_run_with_its_own_preprocessing(tmp_path, build):
    network, side = build(), 64 if build is random_hybrid else 28
    network.save_pretrained(tmp_path)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    DPTImageProcessorPil(size={"height": side, "width": side}, image_mean=mean, image_std=std).save_pretrained(tmp_path)
    picture = noise(side, side)
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255)
    pixels = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]
    with torch.no_grad():
        raw = network(pixel_values=pixels).predicted_depth[0]
    raw = torch.nn.functional.interpolate(raw[None, None], (side, side), mode="bicubic", antialias=True)[0, 0]
    assert raw.std() > 1e-3
    torch.testing.assert_close(depth_map(picture, tmp_path), stretch(raw), atol=1e-3, rtol=0)
    assert torch.equal(depth_map(picture, str(tmp_path)), DepthEstimator.from_pretrained(tmp_path)(picture))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "dpt"}, [0.0, 1 / 3, 1.0]),
        ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, [0.0, 1 / 3, 1.0]),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, [1.0, 1 / 3, 0.0]),
        ({"model_type": "zoedepth"}, [1.0, 1 / 3, 0.0]),
    ],
)
def test_near_is_one_whether_a_network_gives_nearness_or_distance(config, expected):
    network = torch.nn.Module()
    network.forward = lambda **_: SimpleNamespace(predicted_depth=torch.tensor([[[1.0, 2.0, 4.0]]]))
    network.config, network.device = SimpleNamespace(**config), "cpu"
    estimate = DepthEstimator(network, load_image_as_tensor)(Image.new("RGB", (3, 1)))
    torch.testing.assert_close(estimate, torch.tensor([expected]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["Intel/dpt-hybrid-midas", "depth-anything/Depth-Anything-V2-Small-hf"])
def test_a_depth_network_of_the_hub_is_named_in_full(name):
    with pytest.raises(FileNotFoundError, match=f"hf download {name}"):
        depth_map(square(), name)


def test_what_is_no_depth_network_is_refused():
    with pytest.raises(ValueError, match=r"dino is no depth network .*ViTConfig"):
        DepthEstimator.from_pretrained(scenes_folder() / "dino")
    with pytest.raises(ValueError, match="did you mean 'tiny-scenes'"):
        depth_map(square(), "tiny_scenes")


@pytest.mark.parametrize("blur", [-1.0, float("nan"), float("inf")])
def test_a_blur_that_is_no_deviation_is_refused(blur):
    with pytest.raises(ValueError, match="blur is a (standard deviation in pixels|finite number)"):
        canny_map(square(), blur=blur)


def test_a_model_without_depth_says_what_to_do():
    with pytest.raises(ValueError, match=r"no depth estimator \(no folder depth"):
        DepthEstimator.from_pretrained(hub_folder())
    with pytest.raises(FileNotFoundError, match="hf download depth-anything"):
        DepthEstimator.from_pretrained("sd15")


def test_the_narrowest_picture_has_edges_and_a_depth_or_a_sentence(tmp_path):
    strip = np.zeros((1, 30_000, 3), np.uint8)
    assert canny_map(strip).shape == (1, 30_000)
    network = random_depth()
    estimator = DepthEstimator(network, lambda image: torch.zeros(3, 28, 28))
    assert estimator(strip).shape == (1, 30_000)
    network.save_pretrained(tmp_path)
    DPTImageProcessorPil(size={"height": 28, "width": 28}, keep_aspect_ratio=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="at most 32 times the shorter; this one has 30000x1"):
        depth_map(strip, tmp_path)
