"""The eleventh style: what a linocut is made of, and that the pictures learned from are not those it is judged by."""

import numpy as np

from context_diffusion.scenes import OBJECTS
from experiments.evaluation.finetuned import INK, PAPER, TRAINED_ON, flat_scenes, linocut


def test_a_linocut_lies_between_its_two_colours_and_its_outlines_are_the_reverse():
    (drawn,) = flat_scenes(0, ["boat"])
    cut = linocut(drawn)
    share = (cut - np.array(INK)) / (np.array(PAPER) - np.array(INK))
    assert cut.shape == (128, 128, 3) and cut.dtype == np.float32
    np.testing.assert_allclose(share, share[..., :1].repeat(3, axis=2), atol=1e-5)  # one mixture in all channels
    assert share.min() > -1e-5 and share.max() < 1 + 1e-5
    inside = drawn.segments == 3
    assert share[inside & ~drawn.edges].mean() > 0.5 > share[inside & drawn.edges].mean()


def test_other_colours_change_colours_alone():
    (drawn,) = flat_scenes(0, ["cat"])
    light, dark = linocut(drawn, (0, 0, 0), (1, 1, 1)), linocut(drawn, (1, 1, 1), (0, 0, 0))
    np.testing.assert_allclose(light, 1 - dark, atol=1e-6)


def test_pictures_to_learn_from_are_not_those_to_compare_with():
    learned, compared = flat_scenes(0, TRAINED_ON), flat_scenes(1000, OBJECTS)
    assert {one.scene.object for one in learned} == set(TRAINED_ON) < {one.scene.object for one in compared}
    assert not any(first.scene == second.scene for first in learned for second in compared)
