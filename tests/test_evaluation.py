"""Scores, unseen scenes, sheets and reports of the evaluation."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import scenes_folder

from context_diffusion.control import canny_map
from context_diffusion.metrics import Estimate, estimate_rate
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Scene, TinyScenes
from context_diffusion.scenes.judge import Judge
from experiments.evaluation import domain, harness, unseen
from experiments.evaluation.accuracy import accuracy
from experiments.evaluation.bench import Bench
from experiments.evaluation.context_palettes import estimate_ratio, palette_ratio
from experiments.evaluation.reconstruction import columns_by_style, psnr, reconstruct
from experiments.evaluation.report import Report
from experiments.evaluation.sheets import GAP, labelled_sheet, save_sheet
from experiments.evaluation.speed import import_seconds, run_apart

# --- scores ----------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("offset", [1, 10, 100])
def test_psnr_of_a_constant_error_in_closed_form(offset):
    first = noise(3, 8, 8, 3) // 2
    expected = 20 * math.log10(255 / offset)
    np.testing.assert_allclose(psnr(first, first + np.uint8(offset)), [expected] * 3)


class Mirror(torch.nn.Module):
    """An autoencoder that changes nothing."""

    def encode(self, values):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: values))

    def decode(self, values):
        return SimpleNamespace(sample=values)


def test_an_autoencoder_that_changes_nothing_gives_every_grey_level_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3).repeat(27, axis=0)
    np.testing.assert_array_equal(reconstruct(Mirror(), pixels), pixels)


class Reader(torch.nn.Module):
    """Reads its answer off the picture: red / 20 is the object, green / 20 the background, blue / 20 the style."""

    def forward(self, values):
        found = ((values.mean(dim=(2, 3)) + 1) * 127.5 / 20).round().long()
        heads = [torch.eye(n)[found[:, i]] for i, n in enumerate((len(OBJECTS), len(BACKGROUNDS), len(STYLES)))]
        return SimpleNamespace(logits=torch.cat(heads, dim=1))


def test_judge_names_object_background_and_style_in_the_order_of_its_heads():
    answers = [(i % 12, i % 4, i % 10) for i in range(70)]  # more than a batch
    images = [Image.new("RGB", (128, 128), tuple(20 * a for a in answer)) for answer in answers]
    seen = Judge(Reader())(images)
    assert list(zip(seen["object"], seen["background"], seen["style"], strict=True)) == answers


def test_accuracy_among_some_is_the_rate_of_those():
    seen, wanted, sets = np.arange(40) % 5, [i % 3 for i in range(40)], list("abcdefgh" * 5)
    among = np.arange(40) % 4 == 1
    picked = [i for i in range(40) if among[i]]
    expected = estimate_rate([seen[i] == wanted[i] for i in picked], [sets[i] for i in picked])
    assert accuracy(seen, wanted, sets, among) == expected


def test_ratio_is_exact_for_proportional_pairs_and_has_the_spread_of_a_full_bootstrap():
    generator = np.random.default_rng(0)
    second = generator.uniform(5, 15, 200)
    exact = estimate_ratio(0.4 * second, second)
    assert exact.value == pytest.approx(0.4)
    assert exact.high - exact.low < 1e-9
    first = 0.4 * second + generator.normal(0, 1.5, 200)
    drawn = generator.integers(0, 200, (4000, 200))
    ratios = first[drawn].mean(axis=1) / second[drawn].mean(axis=1)
    found = estimate_ratio(first, second)
    assert found.standard_error == pytest.approx(ratios.std(), rel=0.08)
    assert [found.low, found.high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist(), abs=0.004)


def test_palette_ratio_is_low_for_a_further_scene_of_the_draw_and_inverts_with_the_roles():
    groups = [unseen.unseen_group(70_000 + i, STYLES[i], 3) for i in (0, 2, 8)]
    rivals = [unseen.unseen_group(71_000 + i, STYLES[i], 2) for i in (0, 2, 8)]
    pictures = [group[2].image for group in groups]

    def ratio(near, far):
        return palette_ratio(pictures, [[one.image for one in g[:2]] for g in near], [[g[:2]] for g in far]).value

    own = ratio(groups, rivals)
    assert own < 0.5
    assert own * ratio(rivals, groups) == pytest.approx(1)


# --- unseen scenes ---------------------------------------------------------------------------------------


def test_no_protocol_draws_what_training_saw():
    first = TinyScenes.HELD_OUT
    assert unseen.seed_of(0) // 1000 == first
    one = unseen.unseen(5, "neon", object="cat")
    assert one.scene == Scene.draw((first + 5) * 1000, object="cat")
    assert one.style == unseen.style_draw(5, "neon")
    assert one.style.palette == TinyScenes.style(first + 5).palette
    bases = sorted((unseen.SAMPLE, unseen.LAYOUT, unseen.CONTEXT, unseen.OTHERS, unseen.SETTINGS, unseen.DOMAIN))
    assert bases[0] >= 0
    assert min(np.diff(bases)) >= 10_000


def test_sample_has_the_styles_in_equal_parts_and_a_draw_for_each_picture():
    drawn = unseen.sample(20)
    names = [one.style.name for one in drawn]
    assert names == list(STYLES) * 2
    assert len({one.style.palette for one in drawn}) == 20
    assert columns_by_style(names) == [list(range(10)), list(range(10, 20))]


def test_content_says_nothing_of_style():
    for background in BACKGROUNDS:
        words = unseen.content(Scene("boat", background, sun=True))
        assert words.startswith("a boat")
        assert "style" not in words
        assert "," not in words


def test_queries_from_elsewhere_are_real_pictures_with_edges():
    queries = domain.photographs() + domain.drawings()
    assert [one.name for one in queries] == [*domain.PHOTOGRAPHS, *domain.DRAWINGS]
    for one in queries:
        assert one.image.size == (128, 128)
        assert canny_map(one.image).mean() > 0.02, one.name
        assert not one.prompt or one.prompt.split()[1] in OBJECTS


# --- sheets, reports, the command ------------------------------------------------------------------------


def test_a_sheet_shows_every_picture_at_its_own_pixels():
    rows = {
        name: [Image.fromarray(noise(32, 32, 3, seed=seed + k)) for k in range(2)] for seed, name in enumerate("ab")
    }
    sheet = np.asarray(labelled_sheet(rows, ["one", "two"], cell=32))
    top, left = next(
        (y, x)
        for y in range(40)
        for x in range(40)
        if (sheet[y : y + 32, x : x + 32] == np.asarray(rows["a"][0])).all()
    )
    below, right = top + 32 + GAP, left + 32 + GAP
    np.testing.assert_array_equal(sheet[below : below + 32, right : right + 32], np.asarray(rows["b"][1]))
    assert (sheet[:, :left] < 100).any()  # the names
    assert (sheet[:top, left:] < 100).any()  # the titles


def test_a_ragged_sheet_is_refused():
    with pytest.raises(ValueError, match=r"same number of pictures.*\[1, 2\]"):
        labelled_sheet({"a": [Image.new("RGB", (8, 8))], "b": [Image.new("RGB", (8, 8))] * 2})


def test_a_sheet_gives_up_quality_then_size_to_stay_small(tmp_path):
    rough, plain = Image.fromarray(noise(300, 300, 3)), Image.new("RGB", (300, 300), "teal")
    small = save_sheet(rough, tmp_path / "rough.webp", limit=12_000)
    assert small.stat().st_size <= 12_000
    assert 50 < Image.open(small).width < 300
    assert Image.open(save_sheet(plain, tmp_path / "plain.webp", limit=12_000)).size == (300, 300)


def test_a_report_writes_every_number_and_says_which_aims_are_met(tmp_path):
    report = Report(notes=["a note"], sheets={"pictures": Image.new("RGB", (8, 8))})
    report.add("high", Estimate(0.9, 0.1, 0.8, 1.0, 9), at_least=0.75)
    report.add("low", Estimate(0.9, 0.1, 0.8, 1.0, 9), at_most=0.5)
    report.add("alone", Estimate(0.9, math.nan, math.nan, math.nan, 1))
    report.write(tmp_path, "trial", {"command": "python -m trial"})
    record = json.loads((tmp_path / "trial.json").read_text())
    assert record["numbers"] == [
        {"name": "high", "value": 0.9, "standard_error": 0.1, "low": 0.8, "high": 1.0, "n": 9, "at_least": 0.75,
         "met": True},
        {"name": "low", "value": 0.9, "standard_error": 0.1, "low": 0.8, "high": 1.0, "n": 9, "at_most": 0.5,
         "met": False},
        {"name": "alone", "value": 0.9, "standard_error": None, "low": None, "high": None, "n": 1},
    ]  # fmt: skip
    assert (record["command"], record["pictures"]) == ("python -m trial", ["trial-pictures.webp"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-pictures.webp", "trial.json"]
    assert "aim: at least 0.75, met" in report.table()
    assert "aim: at most 0.5, missed" in report.table()


def test_missing_weights_stop_one_protocol_and_write_nothing(tmp_path, capsys):
    assert not harness.run("text", Bench(scenes_folder(), quick=True), tmp_path)
    assert "text: not run. There is no judge" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_names_and_groups_are_taken_in_the_order_of_the_protocols():
    assert harness.chosen(["speed", "control", "clip", "speed"]) == ("clip", "speed", "control")
    assert harness.chosen(["papers", "clip"]) == ("clip", *harness.PAPERS)
    assert harness.chosen(["offline"]) == tuple(harness.OFFLINE)
    with pytest.raises(ValueError, match="There is no protocol 'memory'"):
        harness.chosen(["clip", "memory"])


def test_peak_memory_is_that_of_the_command():
    (_, small), (seconds, large) = (
        run_apart([sys.executable, "-c", f"import time; b = bytearray({size}); time.sleep(0.1)"])
        for size in (0, 200_000_000)
    )
    assert 190 < large - small < 215
    assert seconds > 0.1
    with pytest.raises(RuntimeError, match="ended with status 3"):
        run_apart([sys.executable, "-c", "raise SystemExit(3)"])


def test_an_import_is_timed_in_a_fresh_interpreter():
    (seconds,) = import_seconds("import sys, time; assert 'torch' not in sys.modules; time.sleep(0.2)", 1)
    assert 0.2 < seconds < 10
