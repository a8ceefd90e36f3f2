"""Lists of prompts, tables in three formats, and the verdicts on claims."""

import csv
import io
import re
from collections import Counter

import pytest

from context_diffusion.metrics import Estimate
from context_diffusion.scenes import OBJECTS, STYLES
from experiments.evaluation import harness
from experiments.evaluation.claims import Claim
from experiments.evaluation.harness import main
from experiments.evaluation.papers.prompts import load_prompts
from experiments.evaluation.tables import Published, Table, escaped, published

E = Estimate(0.5, 0.1, 0.3, 0.7, 60)
TABLE = Table(
    "A & B",
    {"plain": {"DINO": E}, "50 % of it": {"DINO": E, "leakage": Estimate(0.1, 0.02, 0.06, 0.14, 60)}},
    Published("a paper", {"plain": {"DINO": "0.51 ± 0.14"}}, "Compare orders, not numbers."),
    lower=("leakage",),
)


def test_the_offline_list_is_ten_styles_of_six_quadruples_with_every_object_twice():
    sets = load_prompts("tiny-scenes")
    assert Counter(one.style for one in sets) == dict.fromkeys(STYLES, 6)
    for style in STYLES:
        words = Counter(text.split()[-1] for one in sets if one.style == style for text in one.objects)
        assert words == dict.fromkeys(OBJECTS, 2)
    assert sets[0].prompts[0] == "a house, flat style"


def test_the_long_list_is_a_hundred_styles_of_four_objects():
    sets = load_prompts("hundred-styles")
    assert len({one.style for one in sets}) == len(sets) == 100
    assert all(len(set(one.objects)) == 4 for one in sets)
    assert set(Counter(text for one in sets for text in one.objects).values()) == {4}


def test_a_list_of_ones_own_is_given_by_path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('template = "{style}: {object}"\n[[sets]]\nstyle = "clay"\nobjects = ["a cow", "a hen"]\n')
    (one,) = load_prompts(file)
    assert one.prompts == ["clay: a cow", "clay: a hen"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sets = 3", "holds no [[sets]]"),
        ("[[sets]", "is not TOML"),
        ('template = "{object}"\n[[sets]]\nstyle = "a"\nobjects = ["b", "c"]', "template holds {object} and {style}"),
        ('[[sets]]\nobjects = ["b", "c"]', "set 1: style is a few words"),
        ('[[sets]]\nstyle = "a"\nobjects = ["b"]', "objects are at least two different texts; got ['b']"),
        ('[[sets]]\nstyle = "a"\nobjects = ["b", "b"]', "at least two different"),
        ('[[sets]]\nstyle = "a"\nobjects = "b"', "at least two different"),
    ],
)
def test_a_broken_list_is_refused_in_a_sentence(tmp_path, text, sentence):
    file = tmp_path / "list.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_prompts(file)


def test_an_unknown_list_names_the_near_one():
    with pytest.raises(FileNotFoundError, match="did you mean 'hundred-styles'"):
        load_prompts("hundred-style")


def test_markdown_has_the_published_column_beside_ours():
    lines = TABLE.markdown().splitlines()
    assert lines[2] == "|  | DINO (higher is better) | DINO, published | leakage (lower is better) |"
    assert lines[4] == "| plain | 0.500 [0.300, 0.700] | 0.51 ± 0.14 |  |"
    assert lines[-1] == "Published: a paper. Compare orders, not numbers."


def test_csv_gives_back_every_number():
    rows = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert [(row["row"], row["score"]) for row in rows] == [
        ("plain", "DINO"), ("50 % of it", "DINO"), ("50 % of it", "leakage"),
    ]  # fmt: skip
    for row, e in zip(rows, (E, E, TABLE.rows["50 % of it"]["leakage"]), strict=True):
        assert [float(row[k]) for k in ("value", "standard_error", "low", "high")] == [
            e.value, e.standard_error, e.low, e.high,
        ]  # fmt: skip
    assert rows[0]["published"] == "0.51 ± 0.14" and rows[1]["published"] == ""


def test_latex_is_balanced_and_guards_what_it_would_read_as_commands():
    text = TABLE.latex()
    assert r"A \& B" in text and r"50 \% of it" in text and r"0.51 $\pm$ 0.14" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    body = re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {3}
    assert escaped(r"a_b\c") == r"a\_b\textbackslash{}c"


def test_published_numbers_stand_under_rows_and_scores_of_ours():
    from experiments.evaluation.papers import blends, sets, three_settings

    assert set(published("style-sets").numbers) <= set(sets.SETTINGS)
    assert {score for row in published("style-sets").numbers.values() for score in row} <= set(sets.SCORES)
    assert set(published("blends").numbers) <= set(blends.SETTINGS)
    for domain_row in published("settings").numbers:
        assert domain_row in three_settings.names(three_settings.IN)
    assert published("nothing").numbers == {}


def test_a_published_score_that_is_none_of_ours_ends_the_row():
    table = Table("t", {"a": {"DINO": E}}, Published("p", {"a": {"FID": "12.3"}}))
    assert table.markdown().splitlines()[4] == "| a | 0.500 [0.300, 0.700] | 12.3 |"


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [
        (0.1, 0.3, "above", "holds"), (-0.1, 0.3, "above", "open"), (-0.3, -0.1, "above", "fails"),
        (-0.3, -0.1, "below", "holds"), (0.1, 0.3, "below", "fails"), (-0.1, 0.1, "below", "open"),
        (-0.02, 0.1, "not below", "holds"), (-0.1, 0.1, "not below", "open"), (-0.2, -0.1, "not below", "fails"),
        (-0.1, 0.02, "not above", "holds"), (0.1, 0.2, "not above", "fails"),
        (-0.02, -0.01, "not below", "holds"),  # below zero, but by less than what counts
    ],
)  # fmt: skip
def test_the_interval_decides_a_claim(low, high, side, verdict):
    assert Claim("it is so", Estimate((low + high) / 2, 0.1, low, high, 60), side).verdict == verdict


def test_a_side_is_one_of_four():
    with pytest.raises(ValueError, match="A difference lies above, below"):
        Claim("it is so", E, "beside")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sets"], "There is no protocol 'sets'; there are offline, papers, reconstruction, "),
        (["style-set"], "did you mean 'style-sets'"),
        (["papers", "--seeds", "0"], "--seeds is at least 1"),
        (["papers", "--batch-size", "0"], "--batch-size is at least 1"),
        (["papers", "--model", "sd-15"], "There is no model 'sd-15'"),
        (["papers", "--steps", "5000"], "--steps is at least 1 and at most 1000; got 5000"),
        (["papers", "--steps", "many"], "invalid int value: 'many'"),
        (["papers", "--prompts", "hundred-style"], "did you mean 'hundred-styles'"),
        (["papers", "--work", __file__], "is not a folder"),
        (["papers", "--work", "/proc/work"], "--work /proc/work cannot be written"),
        (["papers", "--work", ""], "--work"),
    ],
)
def test_the_command_line_refuses_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and sentence in said and said.count("\n") == 1


@pytest.mark.parametrize("out", [__file__, "/proc/out", "a\0b"])
def test_outputs_are_tried_out_before_anything_is_drawn(tmp_path, monkeypatch, capsys, out):
    monkeypatch.setattr(harness, "run", lambda *_: pytest.fail("worked in vain"))
    with pytest.raises(SystemExit) as end:
        main(["papers", "offline", "--work", str(tmp_path), "--out", out])
    assert end.value.code == 2
    assert "--out" in (said := capsys.readouterr().err) and said.count("\n") == 1
