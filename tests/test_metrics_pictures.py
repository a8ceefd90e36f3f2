"""Scores of pictures: edges, depth order, leakage, and the preparation of pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from context_diffusion.metrics import (
    CLIP_PREPROCESS,
    Preprocess,
    classified,
    content_leakage,
    depth_rank_correlation,
    depth_rank_correlations,
    edge_f1,
    edge_f1_scores,
    object_accuracy,
)
from context_diffusion.metrics.inputs import embeddings, pictures


def column(x: int, size: int = 20) -> np.ndarray:
    edges = np.zeros((size, size), dtype=bool)
    edges[:, x] = True
    return edges


def flat(*rgb: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), rgb)


# -- edges -------------------------------------------------------------------------------------------------------------


def test_edges_within_the_tolerance_agree_and_beyond_it_do_not():
    maps = np.stack([column(5 + shift) for shift in range(4)])
    np.testing.assert_array_equal(edge_f1_scores(maps, [column(5)] * 4), [1, 1, 1, 0])
    np.testing.assert_array_equal(edge_f1_scores(maps, [column(5)] * 4, tolerance=0), [1, 0, 0, 0])


def test_distance_is_euclidean():
    corner, other = np.zeros((9, 9), dtype=bool), np.zeros((9, 9), dtype=bool)
    corner[2, 2], other[4, 4] = True, True  # two down, two right: 2.83 pixels
    assert edge_f1_scores(corner, other, tolerance=2.8)[0] == 0
    assert edge_f1_scores(corner, other, tolerance=2.9)[0] == 1


def test_precision_and_recall_by_hand():
    both = column(3) | column(15)  # half of what was found is wanted, all that was wanted is found
    assert edge_f1_scores(both, column(3))[0] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert edge_f1_scores(column(3), both)[0] == pytest.approx(2 / 3)
    nothing = np.zeros((20, 20), dtype=bool)
    assert edge_f1_scores(np.stack([nothing, nothing]), np.stack([nothing, both])).tolist() == [1, 0]


def test_edge_f1_equals_a_reference_from_scipy():
    rng = np.random.default_rng(0)
    found, wanted = rng.random((6, 30, 25)) < 0.03, rng.random((6, 30, 25)) < 0.05
    expected = []
    for a, b in zip(found, wanted, strict=True):
        near_a, near_b = (ndimage.binary_dilation(m, _disc(2)) for m in (a, b))  # no distance transform
        precision, recall = (a & near_b).sum() / a.sum(), (b & near_a).sum() / b.sum()
        expected.append(stats.hmean([precision, recall]))
    np.testing.assert_allclose(edge_f1_scores(torch.from_numpy(found)[:, None], wanted), expected)
    estimate = edge_f1(found, wanted, sets=[0, 0, 1, 1, 2, 2])
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(expected)), 3)


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def test_canny_finds_the_edges_of_pictures_whatever_their_colours():
    def square(left, inside, outside):
        image = Image.new("RGB", (40, 40), outside)
        image.paste(inside, (left, 10, left + 16, 30))
        return image

    night, day = square(10, "white", "black"), square(10, (10, 10, 120), "yellow")
    assert edge_f1_scores([night], [day], thresholds=(100, 200))[0] == 1
    assert edge_f1_scores([square(18, "white", "black")], [day], thresholds=(100, 200))[0] < 0.8


# -- depth -------------------------------------------------------------------------------------------------------------


def test_rank_correlation_equals_spearman_with_ties_and_ignores_increasing_functions():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 6, (12, 10)).astype(float)
    guess = target + rng.integers(0, 4, (12, 10))
    wanted = stats.spearmanr(guess.ravel(), target.ravel()).statistic
    batch = torch.from_numpy(np.stack([guess, np.exp(guess), -guess]))[:, None]
    np.testing.assert_allclose(depth_rank_correlations(batch, [target] * 3), [wanted, wanted, -wanted])


def test_rank_correlation_by_hand_and_flat_guesses_order_nothing():
    depth = np.array([[1.0, 2.0], [3.0, 4.0]])
    swapped = np.array([[1.0, 2.0], [4.0, 3.0]])
    maps = np.stack([swapped, np.ones((2, 2))])
    np.testing.assert_allclose(depth_rank_correlations(maps, [depth] * 2), [1 - 6 * 2 / (4 * 15), 0])
    assert depth_rank_correlation(maps, [depth] * 2).value == pytest.approx(0.4)
    image = Image.fromarray((depth * 9).astype(np.uint8))
    assert depth_rank_correlations([image], depth)[0] == pytest.approx(1)


# -- leakage -----------------------------------------------------------------------------------------------------------


def by_red(batch):
    """Stand in for a classifier of three objects: it reads the class from the red of the first pixel."""
    return torch.eye(3)[[image.getpixel((0, 0))[0] // 100 for image in batch]]


def test_leakage_counts_the_references_object_and_nothing_else():
    seen = [flat(100 * label, 0, 0) for label in (0, 1, 2, 1)]
    estimate = content_leakage(seen, [0, 0, 0, 1], [1, 1, 1, 2], by_red, batch_size=3)
    assert estimate.value == 0.25
    assert 0 < estimate.low < 0.25 < estimate.high < 1
    assert object_accuracy(seen, [0, 0, 0, 1], by_red).value == 0.5
    assert classified(seen, by_red).tolist() == [0, 1, 2, 1]
    assert content_leakage(seen, [0, 0, 0, 1], [1, 1, 1, 2], by_red, sets="aabb").n == 2


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_preprocessing_by_hand():
    image = Image.new("RGB", (12, 6), "black")
    image.paste((255, 128, 0), (3, 0, 9, 6))
    found = Preprocess(6, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))([image, image])
    assert found.shape == (2, 3, 6, 6)
    for channel, value in enumerate((1.0, (128 / 255 - 0.5) / 0.25, -0.5)):
        torch.testing.assert_close(found[1, channel], torch.full((6, 6), value))


def test_preprocessing_equals_the_processor_of_the_published_clip():
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    rng = np.random.default_rng(5)
    for size in ((300, 231), (100, 167), (224, 224)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        wanted = module.CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(CLIP_PREPROCESS([image]), wanted, atol=1e-5, rtol=0)


def test_any_container_of_pictures_gives_the_same_stream():
    batch = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (4, 3, 5, 7), dtype=np.uint8))
    listed = list(pictures(batch))
    wanted = [np.asarray(image) for image in listed]
    others = [
        batch.float() / 255,
        batch.permute(0, 2, 3, 1).numpy(),
        listed,
        (i for i in batch),
        [batch[:3], listed[3]],
    ]
    for container in others:
        np.testing.assert_array_equal([np.asarray(image) for image in pictures(container)], wanted)
    assert len(list(pictures(listed[0]))) == len(list(pictures(batch[0]))) == 1


def test_streaming_draws_one_batch_at_a_time():
    drawn = 0

    def draw():
        nonlocal drawn
        for drawn in range(1, 11):
            yield flat(drawn, 0, 0)

    stream = embeddings(draw(), lambda batch: torch.ones(len(batch), 2), batch_size=4)
    seen = [(len(rows), drawn) for rows in stream]
    assert seen == [(4, 4), (4, 8), (2, 10)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: edge_f1(column(1), column(1, 30)),
            ValueError,
            r"The maps of pair 0 differ in size, \(20, 20\) and \(30, 30\)",
        ),
        (lambda: edge_f1([column(1)] * 2, column(1)), ValueError, "runs out after 1"),
        (lambda: edge_f1(np.arange(6.0).reshape(2, 3), column(1)), ValueError, r"pass thresholds=\(100, 200\)"),
        (lambda: edge_f1(column(1), column(1), tolerance=-1), ValueError, "0 or more; got -1"),
        (lambda: edge_f1(column(1), column(1), thresholds=(200, 100)), ValueError, "low <= high"),
        (lambda: edge_f1([flat(0, 0, 0)], column(1)), ValueError, "this image is RGB"),
        (lambda: edge_f1("edges.png", column(1)), TypeError, "got a str"),
        (lambda: depth_rank_correlation(column(1), np.ones((20, 20))), ValueError, "Target 0 has one depth"),
        (lambda: depth_rank_correlation(column(1) + math.inf, column(1)), ValueError, "finite numbers"),
        (lambda: content_leakage([], [1], [1], by_red), ValueError, "picture 0 has class 1 for both"),
        (lambda: content_leakage([], [1, 0], [2], by_red), ValueError, "got 2 and 1 classes"),
        (lambda: object_accuracy([flat(0, 0, 0)], [1, 2], by_red), ValueError, "1 pictures and 2 classes"),
        (lambda: object_accuracy([flat(0, 0, 0)], [-1], by_red), ValueError, "counted from 0; got -1"),
        (lambda: list(embeddings([flat(0, 0, 0)], by_red, batch_size=0)), ValueError, "at least 1; got 0"),
        (lambda: list(pictures([torch.full((3, 4, 4), 2.0)])), ValueError, r"\[0, 1\]"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
