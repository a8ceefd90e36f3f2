"""Exercises for a class: what goes into a copy, and what nbgrader makes of answers that are right, missing or wild."""

import ast
import csv
import os
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

import context_diffusion as cd
from experiments.publishing import students

LESSONS = sorted(students.FOLDER.glob("*.ipynb"))
ADDRESS = students.repository_address()


def notebook(*cells: str) -> list[nbformat.NotebookNode]:
    """Cells of a notebook: text where one begins with a star or a cross, or else code."""
    new = nbformat.v4
    return [new.new_markdown_cell(one) if one[0] in "*#" else new.new_code_cell(one) for one in cells]


# --- put together -------------------------------------------------------------------------------------------


def test_cells_are_found_by_exercise_also_when_two_begin_in_one_text():
    cells = notebook(
        "# T", "a = 1", "## 1. Exercises\n\n**1.1** A.\n\n**1.2** (core) B.", "b = 2", "## References", "c"
    )
    found = students.by_exercise(cells)
    assert [one.source for one in found["1.1"]] == ["**1.1** A."]
    assert [one.source for one in found["1.2"]] == ["**1.2** (core) B.", "b = 2"]


def test_an_exercise_ends_at_the_next_heading_also_within_its_text():
    found = students.by_exercise(notebook("**1.1** A.\n\n## References\n\nThe paper.", "a = 1"))
    assert [one.source for one in found["1.1"]] == ["**1.1** A."]


def test_a_solution_falls_into_what_is_given_the_answer_and_its_check():
    cells = [
        "base = 2",
        "def half(x):\n    return x / base\n\n\ndef f(x):\n    return half(x)\n\n\ncheck(f(4), 2)",
        "plot(f)",
    ]
    given, answer, again = students.split_solution(cells, {"f"})
    assert given == "base = 2" and answer.endswith("def f(x):\n    return half(x)") and "check(" not in answer
    assert again.startswith("def half(x)") and again.endswith("check(f(4), 2)")  # plot is nobody's check


def test_an_answer_holds_what_its_stub_names_and_no_more():
    _, answer, again = students.split_solution(
        ["def f(x): return x\n\nx = 1\ncheck(f(x), 1)"], students.defined("def f(x): ...")
    )
    assert answer == "def f(x): return x" and again == "x = 1\ncheck(f(x), 1)"


def test_names_that_a_check_needs_from_elsewhere_are_seen():
    assert students.missing("a = [b for b in c]\nprint(f(a, d))", "import c\ndef f(x): ...") == {"d"}


@pytest.mark.parametrize(
    ("check", "given", "answer", "again", "names"),
    [
        ("f(common)", "a = common", "def f(x): return common", "f(a)", set()),
        ("f(of_the_lesson)", "", "", "", {"of_the_lesson"}),
        ("f(x)", "", "", "", {"x"}),  # an argument of the stub is nobody else's
        ("f(earlier(1))", "", "", "", {"earlier"}),  # answered by nobody, perhaps
        ("f(1)", "", "", "f(seen)", {"seen"}),  # a check that raises leaves nothing behind
        ("f(1)", "a = lost", "", "f(a)", {"lost"}),
        ("f(1)", "", "def f(x): return helper(x)", "f(1)", {"helper"}),
    ],
)
def test_an_exercise_may_use_what_a_class_has_and_no_earlier_answer(check, given, answer, again, names):
    first = students.Exercise("1.1", "", "def earlier(y): ...", "seen = 1", "", "def earlier(y): ...\nhelper = 1")
    second = students.Exercise("1.2", "", "def f(x): ...", check, given, answer, again)
    assert list(students.lacking("common = 1", [first, second])) == ([(second, names)] if names else [])


def test_a_hidden_check_leaves_an_answers_own_names_alone():
    exercise = students.Exercise("1.1", "", "", "", again="helper = 2\nassert answer() == 1")
    space: dict = {}
    exec("def helper(): return 1\ndef answer(): return helper()", space)
    exec(students.hidden(exercise), space)
    assert callable(space["helper"])


@pytest.mark.parametrize(
    ("first", "points"), [("**1.1** (warm-up) A", 1), ("**1.1** *stretch* A", 3), ("**1.1** A", 2)]
)
def test_points_follow_the_level_that_an_exercise_names(first, points):
    assert students.Exercise("1.1", f"{first}\n\ncore", "", "").points == points


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_exercise_is_checked_as_in_its_lesson_and_once_more(lesson):
    _, found = students.exercises(lesson)
    assert found, "a lesson without exercises"
    source = students.source_notebook(lesson).cells
    cells = {cell.metadata.nbgrader.grade_id: cell for cell in source}
    assert len(cells) == len(source)
    for exercise in (one for one in found if one.stub):
        seen, again = (cells[f"{kind}-{exercise.number.replace('.', '-')}"] for kind in ("check", "hidden"))
        assert seen.source == exercise.check and exercise.check != exercise.again
        assert seen.metadata.nbgrader.points == again.metadata.nbgrader.points == exercise.points
    assert all(cell.metadata.nbgrader.locked != name.startswith("answer-") for name, cell in cells.items())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_hidden_check_is_on_other_numbers(lesson):
    opening, found = students.exercises(lesson)
    for one in found:
        drawn = "rand" in f"{opening}{one.given}{one.again}"  # hidden checks draw anew
        assert drawn or not one.check or what_is_checked(one.again) - what_is_checked(one.check), one.number


def what_is_checked(source: str) -> set[str]:
    """The statements of a check, without functions, hints and what else there is about how it is told."""
    found = [node for node in ast.parse(source).body if isinstance(node, (ast.Assign, ast.Expr, ast.For))]
    for node in (node for each in found for node in ast.walk(each)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".check"):
            node.args, node.keywords = node.args[:2], []
    return {text for text in map(ast.unparse, found) if not text.startswith("hint =")}


@pytest.mark.parametrize(
    ("solution", "fault"),
    [
        ("g = 1", "needs a check, and a solution that defines"),
        ("def f(): ...\nassert f() == 1", "uses a, which belongs"),
    ],
)
def test_an_exercise_that_cannot_be_checked_is_named(tmp_path, solution, fault):
    for folder, cells in (
        (tmp_path, ["**1.1** A", "def f(): ...", "check(f(), a)"]),
        (tmp_path / "solutions", ["first = 0", "check = print", "**1.1** A", solution]),
    ):
        folder.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=notebook(*cells)), folder / "00_a.ipynb")
    with pytest.raises(ValueError, match=f"00_a.ipynb: exercise 1.1 {fault}"):
        students.exercises(tmp_path / "00_a.ipynb")


# --- as a kernel runs them ------------------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch):
    """A function that runs cells in one space of names and returns which of them raised nothing."""
    monkeypatch.setattr(cd.notebook, "check", cd.notebook.check)  # the copies make it strict
    dtype, space = torch.get_default_dtype(), {"__name__": "__main__"}

    def passed(*cells: str) -> list[bool]:
        found = []
        for cell in cells:
            try:
                exec(cell, space)
                found.append(True)
            except Exception as error:  # of the answer or of its check: that is what marking is about
                print(f"{type(error).__name__}: {error}")
                found.append(False)
        return found

    yield passed
    torch.set_default_dtype(dtype)
    plt.close("all")


@pytest.mark.lesson
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_an_answer_earns_its_own_points_though_all_before_it_are_missing(kernel, lesson):
    """The checks of each exercise refuse its stub and take its answer, after nothing but stubs."""
    opening, found = students.exercises(lesson)
    assert kernel(students.first_cell(ADDRESS), opening + students.STRICT) == [True, True]
    for exercise in (one for one in found if one.stub):
        checks = exercise.check, students.hidden(exercise)
        assert kernel(exercise.given, exercise.stub, *checks) == [True, True, False, False], exercise.number
        assert kernel(exercise.answer, *checks) == [True, True, True], exercise.number
        kernel(exercise.stub)


# --- marked by nbgrader ---------------------------------------------------------------------------------------

needs_grader = pytest.mark.skipif(
    "STUDENTS" not in os.environ, reason="`make students` runs it: nbgrader has an environment of its own"
)


def hand_in(course: Path, student: str, lesson: str, cells: dict[str, str]) -> None:
    """Put the copy that a class gets into a student's folder, with some cells replaced."""
    copy = nbformat.read(course / "release" / lesson / f"{lesson}.ipynb", as_version=4)
    for cell in copy.cells:
        cell.source = cells.get(cell.metadata.nbgrader.grade_id, cell.source)
    target = course / "submitted" / student / lesson / f"{lesson}.ipynb"
    target.parent.mkdir(parents=True)
    nbformat.write(copy, target)


def points(course: Path, lesson: str) -> dict[str, float]:
    """What each student got for a lesson."""
    with (course / "points.csv").open() as table:
        return {
            row["student_id"]: float(row["score"] or 0) for row in csv.DictReader(table) if row["assignment"] == lesson
        }


@needs_grader
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_solution_gets_all_points_and_the_stub_none(tmp_path, lesson):
    students.prepare(tmp_path, 300)
    students.release(tmp_path, [lesson])
    _, found = students.exercises(lesson)
    text = (tmp_path / "release" / lesson.stem / lesson.name).read_text()
    assert "HIDDEN TESTS" not in text and "BEGIN SOLUTION" not in text and "manual_seed(1)" not in text
    answers = {f"answer-{one.number.replace('.', '-')}": one.answer for one in found if one.stub}
    hand_in(tmp_path, "solved", lesson.stem, answers)
    hand_in(tmp_path, "stub", lesson.stem, {})
    students.grade(tmp_path, [lesson])
    assert points(tmp_path, lesson.stem) == {"solved": sum(2 * one.points for one in found if one.stub), "stub": 0}


@needs_grader
def test_marking_survives_answers_that_raise_or_never_end_and_checks_that_were_changed(tmp_path):
    exercise = ["**1.{0}** (core) Add.", "def add_{0}(a, b): ...", "cd.notebook.check(add_{0}(1, 2), 3)"]
    solution = ["**1.{0}** So.", "def add_{0}(a, b):\n    return a + b", "assert add_{0}(2.5, 2) == 4.5"]
    lesson = tmp_path / "lessons" / "00_a.ipynb"
    for file, parts in ((lesson, exercise), (lesson.parent / "solutions" / lesson.name, solution)):
        file.parent.mkdir()
        cells = notebook("# T", "first = None", *(part.format(number) for number in (1, 2, 3) for part in parts))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    students.prepare(tmp_path, 60)
    students.release(tmp_path, [lesson])
    wild = {"1-1": "def add_1(a, b):\n    raise RuntimeError", "1-2": "def add_2(a, b):\n    while True: pass"}
    wild["1-3"] = "def add_3(a, b):\n    return a + b"
    hand_in(tmp_path, "wild", lesson.stem, {f"answer-{key}": code for key, code in wild.items()})
    hand_in(tmp_path, "sly", lesson.stem, {"check-1-1": "pass", "hidden-1-1": "pass", "begin": "pass"})
    hand_in(tmp_path, "fitted", lesson.stem, {"answer-1-1": "def add_1(a, b):\n    return 3"})
    students.grade(tmp_path, [lesson])
    assert points(tmp_path, lesson.stem) == {"wild": 4, "sly": 0, "fitted": 2}
    assert (tmp_path / "feedback" / "wild" / lesson.stem / f"{lesson.stem}.html").is_file()
