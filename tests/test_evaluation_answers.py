"""What an encoder answers to: scenes with one factor changed, and encoders that see one factor alone."""

import numpy as np
import torch

from context_diffusion.scenes import STYLES
from experiments.evaluation.answers import FACTORS, another_style, changed, colour_copy, cosines
from experiments.evaluation.unseen import ANSWERS, unseen
from experiments.training.dino import recoloured
from experiments.training.draws import Draws


def test_each_version_differs_in_one_factor_alone():
    drawn = unseen(ANSWERS, "flat")
    versions = changed(0, drawn)
    assert tuple(versions) == FACTORS
    palette, texture, content = versions.values()
    assert palette.scene == texture.scene == drawn.scene and content.scene != drawn.scene
    assert content.style == drawn.style
    assert texture.style.palette == drawn.style.palette and texture.style.name != drawn.style.name
    assert palette.style.palette != drawn.style.palette
    assert (palette.style.name, palette.style.period) == (drawn.style.name, drawn.style.period)
    np.testing.assert_array_equal(palette.segments, drawn.segments)


def test_the_other_style_is_never_the_one_whose_turn_it_is_and_each_comes_as_often():
    pairs = [(STYLES[i % 10], another_style(i)) for i in range(90)]
    assert len(set(pairs)) == 90 and all(own != other for own, other in pairs)


def test_a_colour_copy_has_the_other_pictures_means():
    first, second = unseen(ANSWERS, "flat").image, unseen(ANSWERS + 1, "watercolor").image
    copied = np.asarray(colour_copy(first, second), dtype=float)
    np.testing.assert_allclose(copied.mean((0, 1)), np.asarray(second, dtype=float).mean((0, 1)), atol=6)  # clipped


def test_cosines_are_those_of_torch():
    first, second = np.random.default_rng(0).standard_normal((2, 5, 7))
    expected = torch.nn.functional.cosine_similarity(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(cosines(first, second), expected.numpy())


def test_recolouring_keeps_greys_and_turns_hues_without_stretching():
    pictures = torch.rand(64, 3, 4, 4) * 2 - 1
    draws = Draws(0, range(64), 0)
    turned = recoloured(pictures, draws)
    torch.testing.assert_close(turned.mean(dim=1), pictures.mean(dim=1), atol=1e-6, rtol=0)
    length = [(x - x.mean(dim=1, keepdim=True)).norm(dim=1) for x in (turned, pictures)]
    ratio = (length[0] / length[1]).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3, rtol=1e-3)  # one for each picture
    grey = ratio[:, 0] < 1e-5
    assert 3 <= int(grey.sum()) <= 25
    assert (ratio[~grey] > 0.49).all() and (ratio[~grey] < 2.01).all()
    flat = pictures[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recoloured(flat, draws), flat, atol=1e-6, rtol=0)
