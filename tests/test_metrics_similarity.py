"""Cosine scores: hand-computed values, references in plain loops, and invariances."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion.metrics import (
    pairwise_scores,
    pairwise_similarity,
    reference_scores,
    reference_similarity,
    set_consistency,
    text_image_scores,
    text_image_similarity,
)

EYE = torch.eye(4, dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """Stand in for an encoder: the mean colour and two corner colours of each picture."""
    arrays = [np.asarray(image, dtype=np.float32) / 255 for image in images]
    return torch.tensor(np.stack([np.concatenate([a.mean((0, 1)), a[0, 0], a[-1, -1]]) for a in arrays]))


def words(texts: list[str]) -> torch.Tensor:
    return torch.stack([noise(9, seed=len(text)) for text in texts]).float()


def some_pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 6, 5, generator=torch.Generator().manual_seed(seed))


def cosine(a, b) -> float:
    a, b = (np.asarray(v, dtype=np.float64) for v in (a, b))
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_text_score_is_the_cosine_of_each_picture_with_its_own_text():
    space = {"a": [1.0, 0.0], "b": [3.0, 4.0]}
    scores = text_image_scores(
        some_pictures(3),
        ["a", "b", "a"],
        encode_images=lambda batch: torch.tensor([[2.0, 0.0]] * len(batch)),
        encode_text=lambda texts: torch.tensor([space[text] for text in texts]),
    )
    np.testing.assert_allclose(scores, [1.0, 0.6, 1.0])


def test_text_scores_do_not_depend_on_batch_size_order_or_container():
    images, texts = some_pictures(7), ["x" * (i % 3 + 1) for i in range(7)]
    wanted = [cosine(pixels([p])[0], words([t])[0]) for p, t in zip(_pil(images), texts, strict=True)]
    encoders = {"encode_images": pixels, "encode_text": words}
    for size in (1, 3, 32):
        np.testing.assert_allclose(text_image_scores(images, texts, **encoders, batch_size=size), wanted)
    stream = (image for image in _pil(images))
    np.testing.assert_allclose(text_image_scores(stream, iter(texts), **encoders), wanted)
    order = [3, 1, 6, 0, 2, 5, 4]
    shuffled = text_image_similarity(images[order], [texts[i] for i in order], **encoders)
    plain = text_image_similarity(images, texts, **encoders)
    assert shuffled.value == pytest.approx(plain.value)
    assert shuffled.high == pytest.approx(plain.high)


def _pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((i * 255).round().byte().permute(1, 2, 0).numpy()) for i in images]


def test_pairwise_score_is_the_mean_of_the_upper_triangle():
    hand = [EYE[[0, 0, 1]], EYE[[0, 1]], torch.stack([EYE[0], (EYE[0] + EYE[1]) * 7])]
    np.testing.assert_allclose(pairwise_scores(hand), [1 / 3, 0, math.sqrt(0.5)], atol=1e-15)
    rows = noise(9, 16)
    wanted = np.mean([cosine(a, b) for a, b in itertools.combinations(rows, 2)])
    assert pairwise_scores([rows])[0] == pytest.approx(wanted)
    assert pairwise_similarity(rows).value == pytest.approx(wanted)
    assert pairwise_similarity([rows[:4], rows[4:]]).value == pytest.approx(wanted)


def test_sets_are_encoded_across_their_borders_without_mixing():
    images = some_pictures(11)
    sets = [images[:4], _pil(images[4:6]), images[6:]]
    wanted = [
        np.mean([cosine(a, b) for a, b in itertools.combinations(pixels(_pil(part)), 2)])
        for part in (images[:4], images[4:6], images[6:])
    ]
    sizes = []

    def counted(batch):
        sizes.append(len(batch))
        return pixels(batch)

    np.testing.assert_allclose(pairwise_scores(iter(sets), counted, batch_size=8), wanted)
    assert sizes == [8, 3]
    assert set_consistency(sets, pixels).n == 3


def test_pairwise_error_of_one_set_is_the_jackknifes():
    rows = noise(8, 5) + 1
    units = (rows / rows.norm(dim=1, keepdim=True)).numpy()

    def mean_pair(u):
        return np.mean([a @ b for a, b in itertools.combinations(u, 2)])

    without = np.array([mean_pair(np.delete(units, i, axis=0)) for i in range(8)])
    wanted = math.sqrt(7 / 8 * ((without - without.mean()) ** 2).sum())
    assert pairwise_similarity(rows).standard_error == pytest.approx(wanted)


def test_pairwise_interval_of_a_large_set_covers_at_its_rate():
    mean = torch.zeros(6, dtype=torch.float64)
    mean[0] = 1.0
    crowd = noise(100_000, 6, seed=1) + mean
    truth = float((crowd / crowd.norm(dim=1, keepdim=True)).mean(dim=0).square().sum())
    found = [pairwise_similarity(noise(230, 6, seed=10 + i) + mean) for i in range(100)]  # more than its 200 blocks
    assert np.mean([e.low <= truth <= e.high for e in found]) == pytest.approx(0.95, abs=0.065)


def test_cosines_ignore_the_length_of_embeddings():
    rows, lengths = noise(6, 4), torch.tensor([[0.1], [3], [50], [1e-3], [7], [2]])
    assert pairwise_similarity(rows * lengths).value == pytest.approx(pairwise_similarity(rows).value)
    np.testing.assert_allclose(reference_scores(rows * lengths, EYE), reference_scores(rows, EYE))


def test_reference_scores_are_cosines_and_all_references_count_alike():
    pictures = torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 0]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(reference_scores(pictures, EYE[:3]), [[half, half, 0], [0, 0, 1]], atol=1e-15)
    assert reference_similarity(pictures, EYE[:3]).value == pytest.approx((2 * half / 3 + 1 / 3) / 2)


def test_references_encoded_before_serve_pictures():
    images, references = some_pictures(5), some_pictures(2, seed=1)
    kept = pixels(_pil(references))
    wanted = [[cosine(pixels([p])[0], r) for r in kept] for p in _pil(images)]
    np.testing.assert_allclose(reference_scores(images, kept, pixels), wanted)
    np.testing.assert_allclose(reference_scores(images, references, pixels), wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pairwise_scores([EYE[:1]]), ValueError, "Set 0 has 1 picture"),
        (lambda: pairwise_scores([EYE, torch.zeros(0, 4)]), ValueError, r"Set 1 has 0 picture"),
        (lambda: pairwise_similarity(EYE[:1]), ValueError, "at least two pictures; there are 1"),
        (lambda: pairwise_similarity(torch.zeros(2, 3)), ValueError, "embedding 0 of the batch is all zeros"),
        (lambda: pairwise_similarity(torch.full((2, 3), torch.nan)), ValueError, "must be finite"),
        (lambda: pairwise_similarity(_pil(some_pictures(2))), TypeError, "pass encode=encoder.encode_images"),
        (lambda: reference_scores(some_pictures(2), EYE, lambda b: EYE[:1]), ValueError, r"\(2, d\), one row for"),
        (
            lambda: text_image_scores(_pil(some_pictures(3)), ["a"], encode_images=pixels, encode_text=words),
            ValueError,
            "3 pictures and 1 texts",
        ),
        (
            lambda: text_image_scores(some_pictures(3), iter("ab"), encode_images=pixels, encode_text=words),
            ValueError,
            "runs out first",
        ),
        (
            lambda: text_image_scores(some_pictures(1), "a cat", encode_images=pixels, encode_text=words),
            TypeError,
            "texts is a list of texts",
        ),
        (
            lambda: text_image_scores(some_pictures(1), ["a"], encode_images=pixels, encode_text=lambda t: EYE[:1]),
            ValueError,
            "one space; the pictures have 9 numbers, the texts 4",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
