"""The bench's scores: each follows the truth that it measures, is blind to the rest, and no cheat wins it."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from PIL import Image

from context_diffusion.metrics import palette_distances, palette_of
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Rendering, Scene, Style, caption, render
from context_diffusion.scenes.palettes import SLOTS
from context_diffusion.scenes.reader import SHOWN
from context_diffusion.scenes.vocabulary import article
from experiments.evaluation.bench import Bench
from experiments.evaluation.recorded import recorded_scores
from experiments.evaluation.results import RATES, Results, Unit
from experiments.evaluation.styles import methods, scores, scores_copying, scores_realism, scores_style
from experiments.evaluation.styles.scores import StyleScores, Truth, further_scenes
from experiments.evaluation.styles.scores_content import Content, content_of
from experiments.evaluation.unseen import seed_of, style_draw, unseen

FIRST = 500_000  # unseen numbers of the tests
COUNT = 12


@cache
def bench_scores() -> StyleScores:
    found = StyleScores(Bench())
    assert not found.missing
    return found


@cache
def scene(number: int) -> Scene:
    return Scene.draw(seed_of(FIRST + number))


def pictures(style: Style, count: int = COUNT, first: int = 0) -> list[Rendering]:
    return [render(scene(first + number), style, first + number) for number in range(count)]


def images(drawn: list[Rendering]) -> list[Image.Image]:
    return [one.image for one in drawn]


# --- style ---------------------------------------------------------------------------------------------------


RANGES = {"period": (8.2, 11.8), "angle": (0.2, 1.0), "weight": (1.25, 2.15), "strength": (0.05, 0.95)}
READ = [(name, parameter) for name, shown in SHOWN.items() for parameter in shown]
UNREAD = [("crayon", "weight")]  # the reader says the same of all: it adds as much to every method's texture
FAINT = [  # read with an error of more than half a guess's, and shrunk to the mean (figures/offline/reader-styles.md)
    ("hatching", "weight"), ("crayon", "strength"), ("crayon", "period"), ("halftone", "strength"),
    ("watercolor", "period"),
]  # fmt: skip
PLAIN_TO_SEE = {("watercolor", "period"): {"strength": 0.9}}  # a wash that is hardly there has no period


def distances_over(name: str, parameter: str) -> list[float]:
    """How far pictures are from the lowest value of a parameter whose own is lowest, in the middle, and highest."""
    low, high = RANGES[parameter]
    true = replace(style_draw(FIRST, name), **{parameter: low}, **PLAIN_TO_SEE.get((name, parameter), {}))
    read, found = bench_scores().networks["texture"], []
    for value in (low, (low + high) / 2, high):
        drawn = pictures(replace(true, **{parameter: value}))
        found.append(float(np.mean(scores_style.texture_distances(read(images(drawn)), true)[parameter])))
    return found


@pytest.mark.parametrize(("name", "parameter"), [one for one in READ if one not in UNREAD])
def test_a_parameter_s_distance_grows_as_it_moves_away(name, parameter):
    found = distances_over(name, parameter)
    if (name, parameter) == ("mosaic", "strength"):  # two kinds of joints, on either side of the middle
        del found[1]
    assert found == sorted(found) and found[-1] > found[0] + (0.2 if (name, parameter) in FAINT else 1), found


@pytest.mark.parametrize(("name", "parameter"), UNREAD)
def test_what_the_reader_cannot_read_says_nothing_of_anyone(name, parameter):
    """Where this fails, the reader has become better: take the parameter off the list."""
    found = distances_over(name, parameter)
    assert max(found) - min(found) < 0.2, found


@pytest.mark.parametrize("name", STYLES)
def test_the_texture_s_distance_is_blind_to_colours_and_layouts(name):
    """Real further scenes, also in another palette, are nearer than another draw's texture in the same palette."""
    true, other = style_draw(FIRST + 1, name), style_draw(FIRST + 2, name)
    read = bench_scores().networks["texture"]

    def far(style: Style) -> float:
        drawn = pictures(style, first=100)
        return float(np.mean(scores_style.texture_distances(read(images(drawn)), true)["texture"]))

    recoloured = replace(true, palette=other.palette, family=other.family)
    retextured = replace(other, palette=true.palette, family=true.family)
    if name == "flat":  # there is nothing to see but the style
        assert far(true) < 0.1 and far(recoloured) < 0.1 and far(style_draw(FIRST, "neon")) == pytest.approx(2**0.5)
    else:
        assert far(true) < 0.8 and far(recoloured) < 0.8
        assert far(retextured) > far(true) + 0.3 and far(retextured) > far(recoloured) + 0.2


def test_another_style_is_as_far_as_a_random_draw():
    true = style_draw(FIRST, "crayon")
    reading = bench_scores().networks["texture"](images(pictures(style_draw(FIRST, "flat"))))
    for values in scores_style.texture_distances(reading, true).values():
        assert np.mean(values) == pytest.approx(2**0.5, abs=0.05)


def slot_distance(drawn: list[Rendering], references: list[Rendering]) -> float:
    reading = bench_scores().networks["texture"](images(drawn))
    true = scores_style.reference_slots(references)
    return float(np.mean(scores_style.slot_palette_distances(images(drawn), reading.slots, true)))


def with_slot(style: Style, slot: str, color: np.ndarray) -> Style:
    palette = [tuple(color.tolist()) if name == slot else own for name, own in zip(SLOTS, style.palette, strict=True)]
    return replace(style, palette=tuple(palette))


@pytest.mark.parametrize("slot", ["sky", "near", "main"])
def test_a_slot_s_colour_counts_by_how_far_it_moves(slot):
    style = style_draw(FIRST + 3, "flat")
    references = pictures(style, count=4, first=200)
    old = np.array(style.palette[SLOTS.index(slot)])
    found = [
        slot_distance(pictures(with_slot(style, slot, old + share * ((old + 0.5) % 1 - old))), references)
        for share in (0, 0.3, 0.6, 1.0)
    ]
    assert found == sorted(found) and found[-1] > found[0] + 5, found


def test_slots_that_change_places_fool_the_cloud_of_colours_and_not_the_slots():
    style = style_draw(FIRST + 3, "flat")
    sky, near = (np.array(style.palette[SLOTS.index(name)]) for name in ("sky", "near"))
    swapped = with_slot(with_slot(style, "sky", near), "near", sky)
    references = pictures(style, count=4, first=200)
    far = {"real": pictures(style), "swapped": pictures(swapped)}
    cloud = {key: palette_distances(images(drawn), palette_of(images(references))).mean() for key, drawn in far.items()}
    slots = {key: slot_distance(drawn, references) for key, drawn in far.items()}
    assert slots["swapped"] / slots["real"] > 2 * cloud["swapped"] / cloud["real"], (cloud, slots)


@pytest.mark.parametrize("name", ["halftone", "crayon", "mosaic", "pixel art", "watercolor"])
def test_the_slots_palette_is_blind_to_texture_and_layout(name):
    style, other = style_draw(FIRST + 5, name), style_draw(FIRST + 6, name)
    references = pictures(style, count=4, first=200)
    retextured = replace(other, palette=style.palette, family=style.family)
    real, turned, recoloured = (slot_distance(pictures(one), references) for one in (style, retextured, other))
    assert max(real, turned) < 0.4 * recoloured, (real, turned, recoloured)


def test_a_picture_without_any_of_the_slots_has_its_mean_colour_in_each():
    red = Image.new("RGB", (128, 128), (255, 0, 0))
    unseen_slots = np.full((1, 64, 64), SLOTS.index("sun"), dtype=np.uint8)
    true = {SLOTS.index("sky"): np.array([53.24, 80.09, 67.20]), SLOTS.index("near"): np.array([53.24, 80.09, 77.20])}
    assert scores_style.slot_palette_distances([red], unseen_slots, true) == pytest.approx([5], abs=0.02)


# --- content -------------------------------------------------------------------------------------------------


def test_a_caption_s_content_is_read_back():
    for number in range(60):
        drawn, style = scene(number), style_draw(number, STYLES[number % 10])
        for seed in (None, number):
            said = caption(drawn, style, seed)
            found = content_of(said)
            assert found.object == drawn.object
            if len(said.split()) > 2 and (seed is None or "style" in said):  # not the short form
                assert (found.background, found.sun) == (drawn.background, drawn.sun), said
    assert content_of("an elephant in a field") == Content(None, "field", False)


def test_content_is_right_in_real_scenes_and_wrong_in_others():
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(40)]
    wanted = tuple(Content(one.scene.object, one.scene.background, one.scene.sun) for one in drawn)
    wrong = tuple(
        Content(
            OBJECTS[(OBJECTS.index(one.object) + 1) % 12],
            BACKGROUNDS[(BACKGROUNDS.index(one.background) + 1) % 4],
            not one.sun,
        )
        for one in wanted
    )
    found = bench_scores()
    reading = found.networks["texture"](images(drawn))
    right, other = (found.of_content(images(drawn), reading, asked, Truth(drawn)) for asked in (wanted, wrong))
    for name in ("object", "background", "sun"):
        assert np.mean(right[name]) >= 0.8 and np.mean(other[name]) <= 0.15, name


def in_other_ways(drawn: list[Rendering]) -> dict[str, list[Rendering]]:
    """Scenes drawn again with one thing changed: palette, texture, places of the same content, the whole style."""
    others = [style_draw(FIRST + 900 + i, one.style.name) for i, one in enumerate(drawn)]
    found: dict[str, list[Rendering]] = {"recoloured": [], "retextured": [], "relaid": [], "restyled": []}
    for i, (one, other) in enumerate(zip(drawn, others, strict=True)):
        own = one.style
        recoloured = replace(own, palette=other.palette, family=other.family)
        retextured = replace(other, palette=own.palette, family=own.family)
        asked = {"object": one.scene.object, "background": one.scene.background, "sun": one.scene.sun}
        relaid = Scene.draw(seed_of(FIRST + 700 + i), **asked)
        found["recoloured"].append(render(one.scene, recoloured, 1000 + i))
        found["retextured"].append(render(one.scene, retextured, 1000 + i))
        found["relaid"].append(render(relaid, own, i))
        found["restyled"].append(render(one.scene, style_draw(FIRST + 900 + i, STYLES[(i + 3) % 10]), i))
    return found


@pytest.mark.slow
def test_content_is_blind_to_colours_textures_and_places_and_style_to_all_but_the_style():
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(20)]
    wanted = tuple(Content(one.scene.object, one.scene.background, one.scene.sun) for one in drawn)
    found = bench_scores()
    for how, others in in_other_ways(drawn).items():
        shown = images(others)
        scores_of = found.of_content(shown, found.networks["texture"](shown), wanted, Truth(drawn))
        assert all(np.mean(scores_of[name]) >= 0.8 for name in ("object", "background", "sun")), how
        alike = [found.of_content([one], None, (asked,), Truth([own]))["style"][0]
                 for one, asked, own in zip(shown, wanted, drawn, strict=True)]  # fmt: skip
        assert np.mean(alike) <= 0.05 if how == "restyled" else np.mean(alike) >= 0.9, (how, alike)


def test_leakage_is_the_share_of_pictures_that_show_a_reference_s_object():
    reference = unseen(FIRST, "flat", object="boat")
    lent = [render(Scene.draw(seed_of(FIRST + i), object="boat"), style_draw(FIRST + i, "neon"), i) for i in range(6)]
    own = [render(Scene.draw(seed_of(FIRST + i), object="cat"), reference.style, i) for i in range(6)]
    wanted, found = (Content("cat", "plain", False),) * 6, bench_scores()
    shares = [
        np.mean(found.of_content(images(lent[:count] + own[count:]), None, wanted, Truth([reference]))["leakage"])
        for count in (0, 2, 4, 6)
    ]
    np.testing.assert_allclose(shares, [0, 1 / 3, 2 / 3, 1], atol=0.17)  # the judge may err in one of six


def test_a_picture_s_cosine_with_its_prompt_falls_with_every_word_that_is_wrong():
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(20)]
    nouns = [OBJECTS[(OBJECTS.index(one.scene.object) + 5) % 12] for one in drawn]
    styles = [STYLES[(i + 3) % 10] for i in range(20)]
    right = [(one.scene.object, one.style.name) for one in drawn]
    prompts = {
        "right": right,
        "another object": [(noun, style) for noun, (_, style) in zip(nouns, right, strict=True)],
        "all wrong": list(zip(nouns, styles, strict=True)),
    }
    found = [
        np.mean(
            bench_scores().of_prompts(images(drawn), [f"{article(n)}, {s} style" for n, s in pairs])["CLIP, prompt"]
        )
        for pairs in prompts.values()
    ]
    assert found == sorted(found, reverse=True) and found[0] > found[1] + 0.1 > found[2] + 0.2, found


# --- copying and diversity -----------------------------------------------------------------------------------


def cropped(image: Image.Image, share: float) -> Image.Image:
    cut = round(128 * share / 2)
    return image.crop((cut, cut, 128 - cut, 128 - cut)).resize((128, 128), Image.Resampling.BICUBIC)


def shared(kind: str, one: Rendering | Image.Image, reference: Rendering) -> float:
    image = one if isinstance(one, Image.Image) else one.image
    if kind == "pixel":
        maps = scores_copying.coarse_pixels([image]), scores_copying.coarse_pixels([reference.image])
    else:
        read = bench_scores().networks["texture"]([image, reference.image]).slots
        layouts = scores_copying.coarse_layout(scores_copying.segments_of(read))
        maps = layouts[:1], layouts[1:]
    return float(scores_copying.most_alike(*maps)[0])


@pytest.mark.parametrize("kind", ["pixel", "layout"])
def test_less_is_found_of_a_reference_that_is_cut_more(kind):
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(20)]
    found = [np.mean([shared(kind, cropped(one.image, share), one) for one in drawn]) for share in (0, 0.1, 0.3, 0.6)]
    others = np.mean([shared(kind, other, one) for one, other in zip(drawn, drawn[1:] + drawn[:1], strict=True)])
    assert found == sorted(found, reverse=True) and found[1] > 0.85 and others < found[2], (found, others)


def test_a_reference_in_other_colours_and_in_another_texture_is_found_by_its_layout():
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(20)]
    again = [render(one.scene, style_draw(FIRST + 900 + i, STYLES[(i + 3) % 10]), i) for i, one in enumerate(drawn)]
    found = np.mean([shared("layout", *pair) for pair in zip(again, drawn, strict=True)])
    others = drawn[1:] + drawn[:1]
    chance = np.mean([shared("layout", *pair) for pair in zip(others, drawn, strict=True)])
    assert found > 0.85 > 0.75 > chance, (found, chance)


def test_the_pixels_found_do_not_depend_on_gain_lift_and_texture():
    one = unseen(FIRST, "mosaic")
    lighter = Image.fromarray((np.asarray(one.image) * 0.5 + 100).astype(np.uint8))
    assert shared("pixel", lighter, one) == pytest.approx(1, abs=0.01)
    drawn = [unseen(FIRST + i, STYLES[i % 10]) for i in range(20)]
    again = in_other_ways(drawn)["retextured"]
    assert np.mean([shared("pixel", *pair) for pair in zip(again, drawn, strict=True)]) > 0.9


def test_one_scene_in_four_styles_is_diverse_by_dino_and_not_in_layout():
    """Why DINO's diversity was thrown away, also of grey pictures."""
    further = pictures(style_draw(FIRST, "flat"), first=40)
    styled = images([render(scene(3), style_draw(FIRST + i, STYLES[j]), i) for i, j in enumerate((0, 2, 5, 7))])
    layouts = scores_copying.coarse_layout(scores_copying.segments_of(bench_scores().networks["texture"](styled).slots))
    real = scores_copying.coarse_layout(np.stack([one.segments for one in further]))
    assert scores_copying.diversity(layouts, real) < 0.5
    for mode, times in (("RGB", 10), ("L", 3)):
        one, others = ([shown.convert(mode) for shown in some] for some in (styled, images(further)))
        assert apart(one) > times * apart(others), (mode, apart(one), apart(others))


def apart(shown: list[Image.Image]) -> float:
    """The mean distance 1 - cosine of pairs of pictures in DINO's features."""
    vectors = bench_scores().networks["dino"].encode_images(shown).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(1 - (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean())


def test_what_is_common_anyway_is_no_copy():
    values = scores_copying.beyond_chance(np.array([0.4, 0.7, 1.0]), np.array([0.3, 0.5]))
    np.testing.assert_allclose(values, [0, 0.5, 1])


def test_one_picture_four_times_is_not_diverse_and_real_scenes_are():
    style = style_draw(FIRST, "crayon")
    further = pictures(style, count=24, first=300)
    for make in (
        lambda drawn: scores_copying.coarse_pixels(images(drawn)),
        lambda drawn: scores_copying.coarse_layout(np.stack([one.segments for one in drawn])),
    ):
        real = scores_copying.diversity(make(pictures(style, count=12)), make(further))
        half = scores_copying.diversity(make(pictures(style, count=6) * 2), make(further))
        none = scores_copying.diversity(make(pictures(style, count=1) * 12), make(further))
        assert none < 0.01 < half < real and real == pytest.approx(1, abs=0.3)


# --- defects -------------------------------------------------------------------------------------------------


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(np.asarray(image), (0, 0), sigma)) if sigma else image


@pytest.mark.parametrize("name", ["flat", "crayon", "neon", "mosaic"])
def test_softness_grows_with_blur_and_is_blind_to_colours_and_layouts(name):
    style = style_draw(FIRST, name)
    further = images(pictures(style, count=12, first=400))
    found = [
        np.mean(scores_realism.softness([blurred(one, sigma) for one in images(pictures(style))], further))
        for sigma in (0, 0.5, 0.8, 1.2)
    ]
    assert found == sorted(found) and found[-1] > 4 * found[0], found
    dull = [Image.fromarray((np.asarray(one) * 0.6 + 40).astype(np.uint8)) for one in images(pictures(style))]
    assert np.mean(scores_realism.softness(dull, further)) < found[1]


def test_stained_scenes_are_farther_from_real_ones():
    """By DINO; no farther the stronger the stain, for a picture that is all stain looks like a watercolour."""
    drawn = [unseen(FIRST + i, STYLES[i % 10]).image for i in range(40)]
    noise = np.random.default_rng(0).uniform(0, 255, (40, 6, 6, 3)).astype(np.uint8)
    stains = [Image.fromarray(one).resize((128, 128), Image.Resampling.BICUBIC) for one in noise]
    stained = [Image.blend(one, stain, 0.35) for one, stain in zip(drawn, stains, strict=True)]
    usual, far = (np.mean(bench_scores().crowd().defects(shown)["defects, DINO"]) for shown in (drawn, stained))
    assert abs(usual) < 0.6 and far > usual + 0.5, (usual, far)


@pytest.mark.slow
def test_the_kernel_distance_of_real_scenes_covers_nothing_and_that_of_one_style_does_not():
    covered = []
    for first in range(0, 320, 40):
        drawn = [unseen(FIRST + 2000 + i, STYLES[i % 10]).image for i in range(first, first + 40)]
        covered += [one.low <= 0 <= one.high for one in bench_scores().of_row(drawn).values()]
    assert np.mean(covered) >= 0.8
    crowds = [
        bench_scores().of_row([unseen(FIRST + i, "neon" if i % 4 < share else STYLES[i % 10]).image for i in range(40)])
        for share in (0, 2, 4)
    ]
    for name in crowds[0]:
        found = [crowd[name].value for crowd in crowds]
        assert found == sorted(found) and crowds[-1][name].low > 0, (name, found)


# --- intervals -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("score", ["passes", "object", "background", "slot palette", "texture", "layout copy", "DINO"])
def test_the_intervals_of_the_table_cover_at_their_rate(score):
    """Of tasks drawn anew from those on record, as many as there are, 95 % of the intervals hold the mean of all."""
    rng, recorded = np.random.default_rng(0), recorded_scores(score, "methods")
    covered = []
    for row in (methods.PLAIN, methods.NOISED, methods.NVQG, methods.CONTEXTS, methods.COLOUR):
        tasks = recorded[row][:, 0]
        for _ in range(60):
            chosen = rng.choice(tasks, len(tasks))
            found = Results({Unit(row, i): {score: four(score, value)} for i, value in enumerate(chosen)}, list)
            estimate = found.estimates(row, [score])[score]
            covered.append(estimate.low - 1e-9 <= tasks.mean() <= estimate.high + 1e-9)
    assert np.mean(covered) >= 0.9, np.mean(covered)


def four(score: str, mean: float) -> list[float]:
    """The scores of four pictures with that mean: of rates, zeros and ones."""
    return [float(k < round(4 * mean)) for k in range(4)] if score in RATES else [mean] * 4


# --- cheats --------------------------------------------------------------------------------------------------


def with_statistics(image: Image.Image, reference: Image.Image) -> Image.Image:
    """A picture with the reference's mean and spread of each channel."""
    own, given = (np.asarray(one, dtype=float) for one in (image, reference))
    standard = (own - own.mean(axis=(0, 1))) / own.std(axis=(0, 1)).clip(1e-6)
    return Image.fromarray((standard * given.std(axis=(0, 1)) + given.mean(axis=(0, 1))).clip(0, 255).astype(np.uint8))


def shaken(image: Image.Image, number: int) -> Image.Image:
    """The picture itself, cut a little."""
    cut = 3 + 2 * number
    return image.crop((number, cut - number, 128 - cut + number, 128 - number)).resize((128, 128))


def all_scores(number: int) -> dict[str, dict[str, float]]:
    """The mean scores of real further scenes, of perfect plain pictures, and of what cheats make, for one reference."""
    name, place = STYLES[number % 10], BACKGROUNDS[number // 10 % 4]
    reference = unseen(FIRST + 3000 + number, name, object=OBJECTS[number % 12], background=place, sun=False)
    things = [OBJECTS[(number + step) % 12] for step in (4, 7, 10, 13)]
    prompts = [caption(Scene(thing, place, False), reference.style) for thing in things]
    seeds = [FIRST + 4000 + 4 * number + k for k in range(4)]
    scenes = [
        Scene.draw(seed_of(seed), object=t, background=place, sun=False) for seed, t in zip(seeds, things, strict=True)
    ]
    plain = [render(one, style_draw(seed, name), seed).image for one, seed in zip(scenes, seeds, strict=True)]
    rows = {
        "real": [render(one, reference.style, seed).image for one, seed in zip(scenes, seeds, strict=True)],
        "plain": plain,
        "colour copy": [with_statistics(one, reference.image) for one in plain],
        "near copy": [shaken(reference.image, k) for k in range(4)],
    }
    score = bench_scores()
    return {
        row: {
            key: float(np.mean(values))
            for key, values in score(shown, prompts, [reference.image], Truth([reference])).items()
            if values
        }
        for row, shown in rows.items()
    }


@cache
def table() -> dict[str, dict[str, float]]:
    found = [all_scores(number) for number in range(12)]
    return {
        row: {key: float(np.mean([one[row][key] for one in found if key in one[row]])) for key in found[0][row]}
        for row in found[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slot palette", "texture", "style", "passes"])
def test_real_further_scenes_beat_a_colour_copy(name):
    real, cheat = (table()[row][name] for row in ("real", "colour copy"))
    assert real < cheat if name in scores.LOWER else real > cheat


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "object",
        "leakage",
        "pixel copy",
        "layout copy",
        "diversity of pixels",
        "diversity of layouts",
        "softness",
        "passes",
    ],
)
def test_real_further_scenes_beat_near_copies(name):
    real, cheat = (table()[row][name] for row in ("real", "near copy"))
    assert real < cheat if name in scores.LOWER else real > cheat


@pytest.mark.slow
def test_no_cheat_passes_and_real_scenes_do():
    found = {row: one["passes"] for row, one in table().items()}
    assert found["near copy"] == 0 and max(found["plain"], found["colour copy"]) < 0.15 and found["real"] > 0.5, found


@pytest.mark.slow
def test_the_papers_scores_are_won_by_cheats():
    """Why they prove nothing here: the copies are nearer to the reference than real further scenes are."""
    found = table()
    assert found["near copy"]["DINO"] > found["real"]["DINO"]
    assert found["near copy"]["palette distance"] < found["real"]["palette distance"]
    assert found["colour copy"]["palette distance"] < 0.5 * found["plain"]["palette distance"]


# --- the door ------------------------------------------------------------------------------------------------


def test_without_truth_there_are_only_scores_that_need_none():
    drawn = pictures(style_draw(FIRST, "neon"), count=2)
    prompts = [f"{article(one.scene.object)}, neon style" for one in drawn]
    found = bench_scores()(images(drawn), prompts, images(pictures(style_draw(FIRST, "neon"), count=1, first=50)))
    assert set(found) == {"CLIP, prompt", "palette distance", "DINO", "pixel correlation"}
    assert set(bench_scores()(images(drawn), prompts)) == {"CLIP, prompt"}
    with pytest.raises(ValueError, match="Each picture has its prompt; got 2 pictures and 1 prompts"):
        bench_scores()(images(drawn), prompts[:1])


def test_every_score_has_a_direction_and_a_number_for_each_picture():
    reference = unseen(FIRST, "crayon", object="boat", background="plain", sun=False)
    prompts = ["a cat, crayon style", "a car, crayon style", "a boat, crayon style"]
    drawn = further_scenes(reference.style, tuple(map(content_of, prompts)))[:3]
    found = bench_scores()(drawn, prompts, [reference.image], Truth([reference]))
    assert set(found) == {*scores.LOWER, *scores.HIGHER} - {"pixel correlation"}
    for name, values in found.items():
        wanted = 1 if name.startswith("diversity") else 2 if name == "leakage" else 3  # the third prompt is the boat's
        assert len(values) == wanted and np.isfinite(values).all(), name
    with pytest.raises(ValueError, match="come in sets of the 3 prompts; there are 2"):
        bench_scores()(drawn, prompts, [reference.image], Truth([reference], drawn[:2]))
    alone = bench_scores()(drawn[:1], prompts[:1], [reference.image], Truth([reference], textured=False))
    assert not set(alone) & {"texture", "style", "period", "diversity of pixels"}


def test_scores_do_not_depend_on_what_is_scored_beside():
    reference = unseen(FIRST, "halftone", object="boat", background="plain", sun=False)
    prompts = ["a cat, halftone style", "a car, halftone style"]
    drawn = images(pictures(reference.style, count=2))
    both = bench_scores()(drawn, prompts, [reference.image], Truth([reference]))
    again = bench_scores()(drawn, prompts, [reference.image], Truth([reference]))
    assert both == again


def test_what_cannot_be_loaded_is_left_out_and_said():
    class Bare:
        row = Bench().row

        def __getattr__(self, name):
            raise FileNotFoundError(f"there is no {name}")

        def part(self, name):
            raise FileNotFoundError(f"there is no {name}")

    found = StyleScores(Bare())
    assert set(found.missing) == {"clip", "dino", "judge", "texture"}
    assert found.notes() == ["not scored, for lack of weights: clip, dino, judge, texture"] and not found.about()
    reference = unseen(FIRST, "neon")
    left = found([reference.image], ["a boat"], [reference.image], Truth([reference]))
    assert set(left) == {"palette distance", "pixel copy", "softness"}
