"""The bench's page and README's short table say what the records say, and no more."""

import csv
import re
from importlib.util import find_spec

import pytest

from context_diffusion.files import ROOT
from experiments.evaluation.recorded import EVALUATION
from experiments.evaluation.styles import scores
from experiments.publishing import bench_card
from experiments.publishing.bench_card import BEGIN, END, PAGE, README, brief, page, unread, with_brief


def test_the_committed_page_and_table_are_those_of_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(), "`python -m experiments.publishing.bench_card` remakes them"
    text = README.read_text(encoding="utf-8")
    assert with_brief(text, brief()) == text


def test_every_method_on_record_is_a_row_with_its_numbers():
    with (EVALUATION / "methods-scores.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["score"] == "slot palette"]
    table = page().partition("## The table")[2].partition("\n## ")[0]
    assert len(lines) > 10
    for line in lines:
        (row,) = re.findall(rf"^\| {re.escape(line['row'])} \|.*$", table, re.MULTILINE)
        assert bench_card.shown(line["value"]) in row


def test_every_score_that_the_page_explains_or_shows_is_one_of_the_bench():
    known = {*scores.HIGHER, *scores.LOWER}
    assert {*bench_card.ASKED, *bench_card.SHOWN, *bench_card.BRIEF} <= known


def test_what_the_reader_cannot_read_is_named():
    rows = {"neon": {"wrong slots": {"high": "0.9"}, "weight": {"high": "0.5"}}, "crayon": {"weight": {"high": "1.1"}}}
    assert unread(rows).startswith("It reads the weight of crayon no better than by guessing;")
    assert unread({"neon": rows["neon"]}) == "Every parameter is read better than by guessing."


def test_the_short_table_goes_between_its_marks_and_nowhere_else():
    text = f"before\n{BEGIN}old\n{END}after\n"
    assert with_brief(text, "| new |") == f"before\n{BEGIN}| new |\n{END}after\n"
    assert with_brief(with_brief(text, "| new |"), "| new |") == with_brief(text, "| new |")
    with pytest.raises(ValueError, match="one is not there"):
        with_brief(f"before\n{BEGIN}", "| new |")


def test_commands_that_the_page_names_are_there():
    commands = re.findall(r"python -m (experiments[a-z_.]*)", page())
    assert commands and all(find_spec(name) for name in commands)
    paths = re.findall(r"\]\(\.\./([^)#]*)\)", page())
    assert paths and all((ROOT / path).exists() for path in paths)


def test_a_record_that_is_not_there_is_told_with_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no methods-scores.csv"):
        bench_card.read_rows("methods-scores", tmp_path)
