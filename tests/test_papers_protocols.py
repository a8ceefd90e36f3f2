"""What the papers' protocols draw and measure: the same noise under every setting, truth where it is known."""

import itertools

import numpy as np
import pytest
from worlds import scenes_folder

from context_diffusion.metrics import estimate_mean, palette_distances, palette_of
from context_diffusion.scenes import OBJECTS, STYLES
from experiments.evaluation.bench import Bench
from experiments.evaluation.papers import blends, mixtures, references, sets, three_settings
from experiments.evaluation.papers.prompts import PromptSet
from experiments.evaluation.results import Results, Unit

PROMPTS = (PromptSet("flat", ("a cat", "a boat")), PromptSet("neon", ("a house", "a fish")))


@pytest.fixture(scope="module")
def bench():
    return Bench(scenes_folder(), steps=2)


def pixels(pictures) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_set_is_drawn_from_the_same_noise_under_every_setting(bench):
    protocol = sets.StyleSets(bench, PROMPTS, seeds=1)
    drawn = {name: pixels(protocol.draw(Unit(name, 1))) for name in sets.SETTINGS}
    assert len({first for name, (first, _) in drawn.items() if name != "full sharing"}) == 1  # the reference is row 0
    assert drawn["full sharing"][0] != drawn["plain"][0]
    seconds = [second for _, second in drawn.values()]
    assert len(set(seconds)) >= len(seconds) - 1  # the tiny network has so few layers that a half may be a tenth
    assert pixels(protocol.draw(Unit("aligned", 1))) == drawn["aligned"]


def test_every_picture_of_style_sets_has_a_seed_of_its_own():
    units = itertools.product(range(100), range(3))
    seeds = [seed for index, seed in units for seed in sets.seeds_of(Unit("plain", index, seed), 4)]
    assert len(set(seeds)) == len(seeds)


def test_real_sets_share_a_draw_of_style_or_do_not():
    one = PromptSet("flat", ("a cat", "a boat", "a house", "a tree"))
    spread = {}
    for setting in (sets.REAL, sets.REAL_OTHERS):
        pictures = sets.real_set(one, Unit(setting, 3, 1))
        first, second = zip(*itertools.combinations(pictures, 2), strict=True)
        spread[setting] = palette_distances(first, second).max()
    assert spread[sets.REAL] < spread[sets.REAL_OTHERS] / 2


def test_without_a_judge_no_score_claims_to_know_the_truth(bench):
    protocol = sets.StyleSets(bench, PROMPTS, seeds=1)
    assert protocol.settings() == tuple(sets.SETTINGS)
    unit = Unit("plain", 0)
    scores = protocol.score(unit, protocol.draw(unit))
    assert set(scores) == {"DINO", "palette distance", "CLIP, object", "CLIP, prompt"}
    assert [len(scores[name]) for name in ("DINO", "palette distance", "CLIP, object")] == [1, 1, 2]


@pytest.mark.parametrize("index", range(24))
def test_no_reference_lends_an_object_that_is_asked_for(index):
    drawn, style = references.reference(index)
    nouns = [text.split()[-1] for text in references.others(index)]
    assert len(set(nouns)) == references.PICTURES and drawn.scene.object not in nouns
    assert drawn.style.name == style == STYLES[index % 10]
    mixed = mixtures.mixture(index)
    assert len({one.style.name for one in mixed.references}) == len({one.style.family for one in mixed.references}) == 3
    assert len({one.scene.object for one in mixed.references} | set(mixed.things)) == 6


def test_a_reference_is_aligned_with_from_the_step_asked_for(bench):
    protocol = references.StyleReferences(bench, count=1)
    plain, aligned, late = (pixels(protocol.draw(Unit(s, 0))) for s in ("plain", "aligned", "skip 80 %"))
    assert plain == late  # of 2 steps 80 % are both
    assert all(a != b for a, b in zip(plain, aligned, strict=True))


def test_every_sweep_passes_through_the_aligned_setting():
    rows = {name: {"DINO": estimate_mean([i, i + 1.0])} for i, name in enumerate(references.SETTINGS)}
    for title, points in references.sweeps(rows).items():
        assert points[references.NEUTRAL[title]] is rows["aligned"]
        assert list(points) == sorted(points) and len(points) == len(references.SWEEPS[title]) + 1


def test_perfect_obedience_has_slope_one_and_no_misfit():
    scores = {}
    for index, (name, (_, weights, _)) in itertools.product(range(3), blends.SETTINGS.items()):
        scores[Unit(name, index)] = {}
        blends.add_shares(scores[Unit(name, index)], "CLIP", weights, weights)
    results = Results(scores, list)
    np.testing.assert_allclose(blends.slopes_of(results, "attention", "CLIP", 3), 1)
    assert {value for name in blends.SETTINGS for value in results.values(name, "misfit, CLIP")[0]} == {0.0}


def test_a_picture_in_one_style_has_all_of_its_share():
    pictures = [one.image for one in mixtures.mixture(0).references]
    for which, picture in enumerate(pictures):
        shares = mixtures.palette_shares(picture, list(map(palette_of, pictures)))
        assert shares[which] > 0.999 and sum(shares) == pytest.approx(1)


def test_blends_at_the_ends_are_their_one_reference(bench):
    protocol = blends.StyleBlends(bench, count=1)
    ends = {blend: [pixels(protocol.draw(Unit(f"{blend} {w}", 0))) for w in (0, 1)] for blend in blends.BLENDS}
    assert all(first != second for first, second in ends.values())


def test_the_three_settings_share_query_seed_and_contexts():
    case = three_settings.case_of(three_settings.IN, 7)
    assert case.thing == OBJECTS[7] and case.prompt == f"a {OBJECTS[7]}, {STYLES[7]} style"
    assert len(case.contexts) == max(three_settings.SHOTS)
    assert three_settings.parsed("C+P, 3 contexts, in domain") == ("C+P", "in domain", 3)
    assert three_settings.parsed("P, out of domain") == ("P", "out of domain", 0)
    names = three_settings.names(three_settings.IN)
    assert len(set(names)) == 5 and all(three_settings.parsed(name)[1] == three_settings.IN for name in names)


def test_settings_differ_in_prompt_and_contexts_alone():
    asked = []

    class Recording(Bench):
        def draw(self, requests, model=None, *, progress=True):
            asked.extend(requests)
            return []

    protocol = three_settings.ContextSettings(Recording(scenes_folder()), count=1)
    for setting in three_settings.names(three_settings.IN):
        protocol.draw(Unit(setting, 0))
    assert [(bool(one.prompt), len(one.context_images)) for one in asked] == [
        (True, 1),
        (False, 1),
        (True, 3),
        (False, 3),
        (True, 0),
    ]
    assert len({id(one.query_image) for one in asked}) == len({(one.seed, one.layout) for one in asked}) == 1
