"""The judge: offline, right on scenes it never saw, and clear about folders that hold none."""

from functools import cache

import numpy as np
import pytest

from context_diffusion.files import TINY_SCENES
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Judge, TinyScenes, labels
from context_diffusion.scenes.judge import HEADS, SIDE, shrink, split

COUNT = 60


@cache
def judge() -> Judge:
    return Judge.from_pretrained()


@cache
def unseen() -> list:
    world = TinyScenes(COUNT, first_group=TinyScenes.HELD_OUT)
    return [world.rendering(4 * group + group % 4) for group in range(COUNT)]  # one scene of each style draw


def test_right_on_unseen_scenes_as_its_card_says():
    found = judge()([drawn.image for drawn in unseen()])
    right = {head: np.mean(found[head] == [labels(drawn)[head] for drawn in unseen()]) for head in HEADS}
    assert right["object"] >= 0.95 and right["style"] >= 0.95 and right["background"] >= 0.9, right


def test_a_verdict_does_not_depend_on_the_batch_or_on_how_a_picture_is_given():
    images = [drawn.image for drawn in unseen()[:3]]
    together = judge()(images)
    for i, image in enumerate(images):
        for given in (image, np.asarray(image), image.resize((256, 256), 0)):
            alone = judge()([given])
            assert all(alone[head][0] == together[head][i] for head in HEADS)


def test_more_pictures_than_a_batch_come_back_in_order():
    images = [drawn.image for drawn in unseen()[:5]]
    once, often = judge()(images), judge()(images * 14)
    for head in HEADS:
        np.testing.assert_array_equal(often[head], np.tile(once[head], 14))


def test_no_picture_no_verdict():
    for indices in judge()([]).values():
        assert indices.shape == (0,) and indices.dtype == np.int64


def test_the_heads_are_the_words_of_the_world_and_share_out_the_logits():
    assert HEADS == {"object": OBJECTS, "background": BACKGROUNDS, "style": STYLES}
    network = judge().network
    parts = split(network.classifier[-1].bias[None])
    assert [part.shape[1] for part in parts.values()] == [12, 4, 10]
    assert network.config.num_labels == 26


def test_shrinking_averages():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    expected = pixels.reshape(2, SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrink(pixels) - expected).max() <= 0.51


def test_a_folder_without_a_judge_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no judge in .*missing; `python -m experiments\.training\.judge`"):
        Judge.from_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="does not load as ResNetForImageClassification"):
        Judge.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another class: .vit., where resnet is wanted"):
        Judge.from_pretrained(TINY_SCENES / "dino")
