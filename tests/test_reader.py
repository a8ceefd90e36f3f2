"""The reader: what it is asked for is what pictures show, and it reads scenes that it never saw."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from context_diffusion.files import TINY_SCENES
from context_diffusion.scenes import STYLES, Scene, Style, TinyScenes, render
from context_diffusion.scenes.palettes import SLOTS
from context_diffusion.scenes.reader import (
    CELLS,
    PARAMETERS,
    SPREAD,
    UNSURE,
    Reader,
    parameter_errors,
    shown_parameters,
    slot_map,
    targets,
)
from experiments.training.data import to_tensor
from experiments.training.draws import Draws
from experiments.training.texture import read_back, reading_loss, weathered

HELD_OUT = TinyScenes.HELD_OUT
OTHER = {"period": (8.2, 8.4, 11.6), "angle": (0.1, 0.8), "weight": (1.3, 2.1), "strength": (0.1, 0.3, 0.9)}
NOT_TOLD = (("watercolor", "angle"), ("line art", "strength"))  # noise has no direction, a tint has the colours' own


@cache
def reader() -> Reader:
    return Reader.from_pretrained()


@pytest.mark.parametrize(("name", "parameter"), itertools.product(STYLES, PARAMETERS))
def test_two_pictures_differ_where_the_parameters_that_they_show_differ(name, parameter):
    if (name, parameter) in NOT_TOLD:
        return
    scene = Scene.draw(3, background="hills", sun=True)
    styles = [replace(Style.draw(5, name=name), **{parameter: value}) for value in OTHER[parameter]]
    for one, other in itertools.combinations(styles, 2):
        same = np.array_equal(render(scene, one).pixels, render(scene, other).pixels)
        assert same == (shown_parameters(one) == shown_parameters(other)), (one, other)


def test_the_spread_is_that_of_style_draws():
    draws = [Style.draw(seed) for seed in range(600)]
    for name in PARAMETERS:
        assert np.std([getattr(one, name) for one in draws]) == pytest.approx(SPREAD[name], rel=0.06), name


def test_each_sure_cell_is_filled_by_its_slot():
    for seed in range(12):
        scene, style = Scene.draw(1000 * seed, sun=bool(seed % 2)), Style.draw(seed, name="flat")
        slots = slot_map(scene)
        cells = render(scene, style).pixels.reshape(CELLS, 2, CELLS, 2, 3).mean(axis=(1, 3)) / 255
        sure = slots != UNSURE
        assert 0.8 < sure.mean() < 1
        away = np.abs(cells[sure] - np.array(style.palette)[slots[sure]]).max(axis=1)
        assert away.max() < 0.3 and np.mean(away < 0.003) > 0.95  # at most 15 % of each other slot
        assert np.array_equal(slot_map(scene, sure=False)[sure], slots[sure])


def test_a_flame_has_the_sun_s_colour_and_is_no_sun():
    assert not (slot_map(Scene("rocket", "plain", False)) == SLOTS.index("sun")).any()
    assert (slot_map(Scene("rocket", "plain", True)) == SLOTS.index("sun")).sum() > 60


@pytest.mark.parametrize(("name", "turn"), [("halftone", np.pi / 2), ("hatching", np.pi), ("crayon", np.pi)])
def test_an_angle_goes_round_as_its_pattern_does(name, turn):
    style = Style.draw(0, name=name)
    true = shown_parameters(style)

    def off(angle: float) -> float:
        found = {key: np.array([value]) for key, value in (true | {"angle": angle}).items()}
        return float(parameter_errors(found, style)["angle"][0])

    for turns in (-2, -1, 1, 2):
        assert off(style.angle + turns * turn) == pytest.approx(0, abs=1e-9)
    assert off(style.angle + turn / 2) == pytest.approx(turn / 2 / SPREAD["angle"])
    assert off(style.angle + 0.1) == pytest.approx(off(style.angle - 0.1)) == pytest.approx(0.1 / SPREAD["angle"])
    turned = replace(style, angle=style.angle + turn)
    np.testing.assert_allclose(targets(turned)[0], targets(style)[0], atol=1e-5)


def test_unseen_scenes_are_read():
    count = 120
    world = TinyScenes(count, HELD_OUT + 7000)
    drawn = [world.rendering(4 * group) for group in range(count)]
    reading = reader()([one.image for one in drawn])
    assert np.mean([STYLES[i] == one.style.name for i, one in zip(reading.styles, drawn, strict=True)]) > 0.97
    slots = np.stack([slot_map(one.scene) for one in drawn])
    assert (reading.slots == slots)[slots != UNSURE].mean() > 0.93
    off: dict[str, list[float]] = {name: [] for name in PARAMETERS}
    for i, one in enumerate(drawn):
        found = {name: values[i : i + 1] for name, values in reading.parameters(one.style.name).items()}
        for name, error in parameter_errors(found, one.style).items():
            off[name].append(float(error[0]))
    means = {name: np.mean(values) for name, values in off.items()}
    assert means["angle"] < 0.3 and means["period"] < 0.45 and max(means.values()) < 0.65, means  # a guess: 0.87


def test_a_reading_does_not_depend_on_the_batch_or_on_how_a_picture_is_given():
    images = [render(Scene.draw(i), Style.draw(i)).image for i in range(3)]
    together = reader()(images * 12)
    for i, image in enumerate(images):
        for given in (image, np.asarray(image)):
            alone = reader()([given])
            np.testing.assert_allclose(alone.numbers[0], together.numbers[i + 33], atol=1e-4)
            assert np.array_equal(alone.slots[0], together.slots[i]) and alone.styles[0] == together.styles[i]


def test_pictures_are_weathered_apart_and_keep_what_there_is_to_read():
    pixels = to_tensor(np.stack([render(Scene.draw(i), Style.draw(i)).pixels for i in range(8)]))
    whole = weathered(pixels, Draws(0, range(8), 0))
    parts = [weathered(pixels[at : at + 4], Draws(0, range(at, at + 4), 0)) for at in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-6)
    assert 0 < (whole - pixels).abs().mean() < 0.1


def test_the_loss_asks_only_for_what_a_style_shows(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.training.texture.CACHE", tmp_path)
    arrays = {key: torch.from_numpy(value) for key, value in read_back(6, HELD_OUT).items()}
    again = read_back(6, HELD_OUT)
    assert all(np.array_equal(arrays[key], again[key]) for key in again)
    pixels, network = to_tensor(arrays["pixels"]), reader().network
    before = reading_loss(network, pixels, arrays)
    hidden = torch.where(arrays["known"] > 0, arrays["numbers"], 100.0)
    torch.testing.assert_close(reading_loss(network, pixels, arrays | {"numbers": hidden}), before)
    wrong = torch.where(arrays["known"] > 0, arrays["numbers"] + 1, 0.0)
    assert reading_loss(network, pixels, arrays | {"numbers": wrong}) > before + 0.3


def test_a_folder_without_a_reader_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no reader in .*missing; `python -m experiments\.training\.texture`"):
        Reader.from_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="does not load as ReaderNetwork"):
        Reader.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another class"):
        Reader.from_pretrained(TINY_SCENES / "unet")
