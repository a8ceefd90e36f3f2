"""The world: a pure function of a seed, with maps that agree with the picture."""

import numpy as np
import pytest
import torch

from context_diffusion import scenes
from context_diffusion.scenes import Scene, Style, TinyScenes


@pytest.mark.parametrize("style", scenes.STYLES)
def test_a_picture_is_a_pure_function_of_its_seed(style):
    draws = [scenes.render(Scene.draw(5), Style.draw(6, name=style), 7) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].pixels, draws[1].pixels)
    assert draws[0].caption == draws[1].caption
    assert draws[0].pixels.shape == (128, 128, 3)
    assert draws[0].pixels.dtype == np.uint8


@pytest.mark.parametrize("style", ["watercolor", "mosaic", "crayon"])
def test_the_render_seed_moves_only_the_texture(style):
    first, second = (scenes.render(Scene.draw(5), Style.draw(6, name=style), seed) for seed in (0, 1))
    assert (first.pixels != second.pixels).any()
    for truth in ("depth", "edges", "segments"):
        np.testing.assert_array_equal(getattr(first, truth), getattr(second, truth))


def test_ground_truth_does_not_depend_on_the_style():
    scene = Scene.draw(11)
    first, second = (scenes.render(scene, Style.draw(i, name=n)) for i, n in enumerate(["neon", "halftone"]))
    np.testing.assert_array_equal(first.depth, second.depth)
    np.testing.assert_array_equal(first.edges, second.edges)


@pytest.mark.parametrize("kind", scenes.OBJECTS)
def test_every_object_is_visible_whole_and_nearest(kind):
    for seed in range(5):
        drawn = scenes.render(Scene.draw(seed, object=kind), Style.draw(seed, name="flat"))
        mask = drawn.segments == scenes.SEGMENTS.index("object")
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert mask.mean() > 0.04 and not border.any()
        behind = drawn.depth[~mask & ~drawn.edges]
        assert drawn.depth[mask & ~drawn.edges].min() > behind.max() - 0.02
        assert drawn.depth.min() >= 0 and drawn.depth.max() <= 1


def test_edges_lie_where_the_flat_picture_changes_colour():
    for seed in range(8):
        drawn = scenes.render(Scene.draw(seed), Style.draw(seed, name="flat"))
        pixels = drawn.pixels.astype(int)
        steps = np.zeros((128, 128), dtype=bool)
        steps[:, 1:] |= np.abs(pixels[:, 1:] - pixels[:, :-1]).max(axis=2) > 40
        steps[1:] |= np.abs(pixels[1:] - pixels[:-1]).max(axis=2) > 40
        near_edge = np.pad(drawn.edges, 1)
        near_edge = np.lib.stride_tricks.sliding_window_view(near_edge, (3, 3)).any(axis=(2, 3))
        assert steps.any() and (steps & ~near_edge).mean() == 0


def test_a_group_shares_palette_and_parameters_but_not_content():
    group = scenes.context_group(seed=3, size=4)
    assert len({drawn.style for drawn in group}) == 1
    assert len({drawn.scene for drawn in group}) == 4
    assert scenes.context_group(3, 2)[1].scene == group[1].scene


def test_captions_name_the_style_loosely_and_the_object_first():
    scene, style = Scene("boat", "hills", True), Style.draw(0, name="pixel art")
    assert scenes.caption(scene, style) == "a boat among hills under the sun, pixel art style"
    varied = [scenes.caption(scene, style, seed) for seed in range(300)]
    first_nouns = {caption.split()[1].rstrip(",") for caption in varied}
    assert first_nouns == {"boat", "ship", "sailboat"}
    named = np.mean(["pixel art style" in caption for caption in varied])
    assert 0.65 < named < 0.85  # the wording leaves the style out in a quarter of the captions
    assert not any(str(round(style.period)) in caption for caption in varied)


def test_every_word_of_every_caption_is_in_the_vocabulary():
    known = set(scenes.words())
    for i in range(300):
        caption = scenes.caption(Scene.draw(i), Style.draw(i), i)
        assert set(caption.replace(",", "").split()) <= known


def test_the_dataset_gives_tensors_in_range_and_leaves_held_out_groups_alone():
    data = TinyScenes(groups=2, first_group=9)
    assert len(data) == 8
    item = data[5]
    assert item["image"].shape == (3, 128, 128) and item["image"].abs().max() <= 1
    assert item["group"] == 10 and item["segments"].dtype == torch.int64
    drawn = data.rendering(5)
    restored = ((item["image"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(restored, drawn.pixels)
    assert scenes.OBJECTS[item["object"]] == drawn.scene.object
    with pytest.raises(IndexError, match="8 pictures"):
        data[8]
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    assert batch["image"].shape == (4, 3, 128, 128)


def test_styles_are_told_apart_by_their_texture_alone():
    """Same scene and palette: every pair of styles gives clearly different pictures."""
    scene, base = Scene.draw(2), Style.draw(1)
    drawn = [scenes.render(scene, Style.draw(1, name=name)).pixels.astype(float) for name in scenes.STYLES]
    assert Style.draw(1, name="neon").palette == base.palette
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert np.abs(first - second).mean() > 4


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="'house', 'tree'"):
        Scene.draw(0, object="dragon")
    with pytest.raises(ValueError, match="blueprint"):
        Style.draw(0, name="cubism")
    with pytest.raises(ValueError, match="at least one"):
        scenes.context_group(0, 0)
