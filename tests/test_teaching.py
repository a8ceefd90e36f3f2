"""The teacher's pages: every lesson has its week and its minutes, every word and symbol a lesson that uses it."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from myst_parser.slugs import github_slugify

from experiments.publishing import minutes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LESSONS = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
LINK = re.compile(r"\[(\d\d)[^\]]*\]\(\.\./notebooks/([\w.]+)(?:#[^)]*)?\)")
SECTION = re.compile(r"\]\(\.\./notebooks/([\w.]+)#([^)]+)\)")


def words_of(lesson: str) -> str:
    """All text of a lesson."""
    cells = nbformat.read(ROOT / "notebooks" / lesson, as_version=4).cells
    return " ".join(cell.source for cell in cells if cell.cell_type == "markdown")


@cache
def sections_of(lesson: str) -> set[str]:
    """The address of each heading of a lesson, as the site makes it."""
    cells = nbformat.read(ROOT / "notebooks" / lesson, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {github_slugify(title) for title in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)}


def terms() -> list[tuple[str, str]]:
    """Each term of the glossary, and what is said of it."""
    body = (DOCS / "glossary.md").read_text(encoding="utf-8").partition("```{glossary}\n")[2].partition("\n```")[0]
    return [(entry.partition("\n")[0], entry.partition("\n")[2]) for entry in body.split("\n\n")]


def symbols() -> list[tuple[str, str]]:
    """Each row of the table of notation: its symbols, and the whole row."""
    rows = (DOCS / "notation.md").read_text(encoding="utf-8").splitlines()
    return [(row.split(" | ")[0], row) for row in rows if row.startswith("| $")]


@pytest.mark.parametrize(("term", "meaning"), terms(), ids=lambda text: text[:20])
def test_a_term_links_to_a_lesson_that_uses_it(term, meaning):
    ((number, lesson),) = LINK.findall(meaning)
    assert lesson in LESSONS and lesson.startswith(number)
    assert term.lower() in words_of(lesson).lower()


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_a_link_to_a_section_leads_to_a_heading(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    gone = [f"{lesson}#{place}" for lesson, place in SECTION.findall(text) if place not in sections_of(lesson)]
    assert gone == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text), "a control character, where a formula had a backslash"


def test_every_term_and_most_weeks_name_a_section():
    assert all(SECTION.search(meaning) for _, meaning in terms())
    plan = (DOCS / "teaching.md").read_text(encoding="utf-8").partition("## Minutes")[0]
    weeks = re.findall(r"^\| \d+ \|.*\| (.+?) \|$", plan, re.MULTILINE)
    assert len(weeks) == 13 and sum(bool(SECTION.search(shorter)) for shorter in weeks) == 11  # two leave out a lesson


@pytest.mark.parametrize(("symbol", "row"), symbols(), ids=lambda text: text[:20])
def test_a_symbol_links_to_a_lesson_that_uses_it(symbol, row):
    ((number, lesson),) = LINK.findall(row)
    assert lesson in LESSONS and lesson.startswith(number)
    formulas = " ".join(re.findall(r"\$+([^$]+)\$", words_of(lesson)))
    for one in re.findall(r"\$([^$]+)\$", symbol):
        assert one in formulas, f"{one} is in no formula of {lesson}"


def test_the_glossary_is_in_order_and_names_nothing_twice():
    names = [term.lower() for term, _ in terms()]
    assert names == sorted(set(names))


@pytest.mark.parametrize(("begin", "end"), [("## Thirteen weeks", "## Minutes"), ("<!-- minutes -->", "<!-- end of")])
def test_each_lesson_is_in_the_plan_and_among_the_minutes(begin, end):
    part = (DOCS / "teaching.md").read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert {lesson for _, lesson in LINK.findall(part)} == LESSONS
    assert begin.startswith("<") or re.findall(r"^\| (\d+) \|", part, re.MULTILINE) == [str(n) for n in range(1, 14)]


def test_minutes_count_words_lines_and_the_clock():
    text, code = nbformat.v4.new_markdown_cell("word " * 400), nbformat.v4.new_code_cell("a\n" * 20)
    first, last = nbformat.v4.new_code_cell("a"), nbformat.v4.new_code_cell("b")
    assert minutes.reading_minutes(nbformat.v4.new_notebook(cells=[text, code])) == pytest.approx(4)
    first.metadata.execution = {"iopub.status.busy": "2026-01-01T00:00:00.0Z", "iopub.status.idle": ""}
    last.metadata.execution = {"iopub.status.busy": "", "iopub.status.idle": "2026-01-01T00:01:30.0Z"}
    assert minutes.computing_minutes(nbformat.v4.new_notebook(cells=[first, text, last])) == pytest.approx(1.5)
