"""Exercises for a class: copies without solutions, with visible and hidden checks, and a report of points.

python -m experiments.publishing.students                 # -> build/students/release/: what a class gets, a folder each
python -m experiments.publishing.students 05 06           # these lessons alone
python -m experiments.publishing.students --grade         # marks submitted/STUDENT/LESSON/LESSON.ipynb -> points.csv

nbgrader does the work, from an environment of its own (``make students`` makes it). What it is given is put together
from a lesson, which has the text, the stub and the check of each exercise, and its solutions, which have the answer and
the checks that the answer has to pass. A class sees the lesson's check; the solutions' check is hidden, and runs with
another seed, so that an answer that was fitted to the visible numbers fails.
"""

import argparse
import ast
import builtins
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, as_path

from .doors import BRANCH, FOLDER, first_cell, repository_address

COURSE = ROOT / "build" / "students"
GRADER = ROOT / "build" / "grader" / "bin" / "python"
SECONDS = 120  # that a cell may take
EXERCISE = re.compile(r"^\*\*(\d+\.\d+)\b", re.MULTILINE)
HEADING = re.compile(r"^#+ ", re.MULTILINE)
POINTS = {"warm-up": 1, "core": 2, "stretch": 3}  # by the level that an exercise names
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")
STRICT = """
# In this copy a wrong answer raises, so that it can be marked.
from functools import partial

cd.notebook.check = partial(cd.notebook.check, strict=True)"""
CONFIGURATION = """c = get_config()
c.CourseDirectory.course_id = "context_diffusion"
c.CourseDirectory.root = {root!r}
c.ClearSolutions.code_stub = {{"python": ""}}
c.Execute.timeout = {seconds}
c.Execute.interrupt_on_timeout = True
c.Execute.iopub_timeout = c.Execute.startup_timeout = 300  # a busy machine gets its marks, too
c.Execute.kernel_name = "python3"
c.ExportApp.plugin_class = "nbgrader.plugins.export.CsvExportPlugin"
"""


@dataclass(frozen=True)
class Exercise:
    """One exercise: what the lesson says and asks, and what the solutions answer."""

    number: str
    text: str  # Markdown
    stub: str
    check: str  # of the lesson, for all to see
    given: str = ""  # what the solutions set up for it
    answer: str = ""
    again: str = ""  # the solutions' check

    @property
    def points(self) -> int:
        """What each of its checks is worth."""
        return next((points for level, points in POINTS.items() if level in self.text.partition("\n")[0]), 2)


# --- reading notebooks ----------------------------------------------------------------------------------------


def by_exercise(cells: Sequence[nbformat.NotebookNode]) -> dict[str, list[nbformat.NotebookNode]]:
    """The cells that belong to each exercise, by its number; the first holds its text and nothing else."""
    found: dict[str, list[nbformat.NotebookNode]] = {}
    number = None
    for cell in cells:
        if cell.cell_type == "markdown":
            starts = list(EXERCISE.finditer(cell.source))
            for start, end in zip(starts, [*(one.start() for one in starts[1:]), None], strict=False):
                text, *more = HEADING.split(cell.source[start.start() : end])
                found[start[1]] = [nbformat.v4.new_markdown_cell(text.strip())]
                number = None if more else start[1]
            if starts:
                continue
            if HEADING.match(cell.source):
                number = None
        if number is not None:
            found[number].append(cell)
    return found


def code_of(cells: Iterable[nbformat.NotebookNode]) -> list[str]:
    """The sources of the cells with code."""
    return [cell.source for cell in cells if cell.cell_type == "code"]


def bound(source: str) -> set[str]:
    """Every name that some code gives a value to, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names


def missing(source: str, known: str) -> set[str]:
    """The names that some code uses, and neither itself nor the code before it gives a value to."""
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    return used - bound(source) - bound(known) - set(dir(builtins))


def statements(source: str) -> Iterator[tuple[str, set[str]]]:
    """Each statement of some code with the comments above it, and the names that it binds itself."""
    lines, start = source.splitlines(), 0
    for node in ast.parse(source).body:
        names = bound(ast.unparse(node)) if isinstance(node, (ast.Assign, ast.AnnAssign)) else set()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = {node.name}
        yield "\n".join(lines[start : node.end_lineno]).strip("\n"), names
        start = node.end_lineno or 0


def defined(source: str) -> set[str]:
    """The names that some code's own statements give a value to: no arguments, and nothing inside a function."""
    return {name for _, names in statements(source) for name in names}


def split_solution(sources: Sequence[str], wanted: set[str]) -> tuple[str, str, str]:
    """What a solution sets up, its answer (up to the last of the names of the stub), and its check.

    The check keeps what the answer's cell computes besides, and ends with the last statement that checks something.
    """
    holds = [any(names & wanted for _, names in statements(source)) for source in sources]
    if True not in holds:
        return "", "", ""
    place = holds.index(True)
    parts = list(statements(sources[place]))
    last = max(i for i, (_, names) in enumerate(parts) if names & wanted)
    rest = [text for text, names in parts if not names & wanted]
    rest += [text for source in sources[place + 1 :] for text, _ in statements(source)]
    checks = [i for i, text in enumerate(rest) if re.search(r"\bcheck\(|^assert |assert_", text, re.MULTILINE)]
    again = "\n".join(rest[: checks[-1] + 1]) if checks else ""
    return "\n\n".join(sources[:place]), "\n\n".join(text for text, _ in parts[: last + 1]), again


def exercises(lesson: Path) -> tuple[str, list[Exercise]]:
    """The code that a lesson's solutions begin with, and its exercises. Raises ``ValueError`` if one has no solution.

    An exercise without a stub is open: there is nothing to check, and no solution is asked for.
    """
    solved = nbformat.read(lesson.parent / "solutions" / lesson.name, as_version=4).cells
    solutions = {number: code_of(cells) for number, cells in by_exercise(solved).items()}
    begin = next(i for i, cell in enumerate(solved) if EXERCISE.search(cell.source))
    found = []
    for number, cells in by_exercise(nbformat.read(lesson, as_version=4).cells).items():
        text, (stub, check, *_) = cells[0].source, [*code_of(cells), "", ""]
        given, answer, again = split_solution(solutions.get(number, []), defined(stub)) if stub else ("", "", "")
        if stub and not (check and answer and again):
            raise ValueError(
                f"{lesson.name}: exercise {number} needs a check, and a solution that defines what its stub does and "
                "checks it."
            )
        found.append(Exercise(number, text, stub, check, given, answer, again))
    opening = "\n\n".join(code_of(solved[:begin])[1:])
    for exercise, names in lacking(opening, found):
        raise ValueError(
            f"{lesson.name}: exercise {exercise.number} uses {', '.join(sorted(names))}, which belongs into the first "
            "cells of the solutions: a class has those, and neither the lesson nor the answers to earlier exercises."
        )
    return opening, found


def lacking(opening: str, found: Iterable[Exercise]) -> Iterator[tuple[Exercise, set[str]]]:
    """Each exercise that uses names which a class does not have, or has only with an earlier answer; and the names."""
    known = f"{first_cell('')}\n{opening}"
    for exercise in found:
        before = f"{known}\n{exercise.given}"
        checks = missing(exercise.check, before) | missing(exercise.again, before)
        names = missing(exercise.given, known) | missing(exercise.answer, before) | (checks - defined(exercise.stub))
        if names:
            yield exercise, names
        known = before


# --- writing what nbgrader reads --------------------------------------------------------------------------------


def marked(cell: nbformat.NotebookNode, name: str, points: int | None = None, *, answer: bool = False):
    """Tell nbgrader what a cell is: locked, worth points, or a place for an answer."""
    cell.metadata.nbgrader = {
        "schema_version": 3,
        "grade_id": name,
        "grade": points is not None,
        "solution": answer,
        "locked": not answer,
        "task": False,
        "cell_type": cell.cell_type,
    }
    if points is not None:
        cell.metadata.nbgrader["points"] = points
    return cell


def hidden(exercise: Exercise) -> str:
    """The code of a hidden check: the solutions' own, with random numbers drawn anew.

    It is a function that is called once, so that its names do not replace those of an answer.
    """
    code = f"import numpy, torch\n\nnumpy.random.seed(1), torch.manual_seed(1)\n{exercise.again}"
    return (
        "# Here your answer is checked once more, on other numbers.\n"
        f"### BEGIN HIDDEN TESTS\ndef check_again():\n{textwrap.indent(code, '    ')}\n\n\ncheck_again()\n"
        "### END HIDDEN TESTS"
    )


def exercise_cells(exercise: Exercise, address: str) -> Iterator[nbformat.NotebookNode]:
    """The cells of one exercise: text, what is given, a place for the answer, and the two checks."""
    key = exercise.number.replace(".", "-")
    text = LINK.sub(rf"]({address}/blob/{BRANCH}/notebooks/\1)", exercise.text)
    yield marked(nbformat.v4.new_markdown_cell(text), f"text-{key}")
    if exercise.given:
        yield marked(nbformat.v4.new_code_cell(exercise.given), f"given-{key}")
    if not exercise.stub:
        yield marked(nbformat.v4.new_markdown_cell("Your answer."), f"answer-{key}", 2 * exercise.points, answer=True)
        return
    answer = f"{exercise.stub}\n### BEGIN SOLUTION\n{exercise.answer}\n### END SOLUTION"
    yield marked(nbformat.v4.new_code_cell(answer), f"answer-{key}", answer=True)
    yield marked(nbformat.v4.new_code_cell(exercise.check), f"check-{key}", exercise.points)
    yield marked(nbformat.v4.new_code_cell(hidden(exercise)), f"hidden-{key}", exercise.points)


def source_notebook(lesson: Path) -> nbformat.NotebookNode:
    """The notebook that nbgrader makes a class's copy of: a lesson's exercises with answers and all checks."""
    address, (begin, found) = repository_address(), exercises(lesson)
    title = nbformat.read(lesson, as_version=4).cells[0].source.partition("\n")[0]
    head = f"{title}: exercises\n\nThe lesson: [{lesson.stem}]({address}/blob/{BRANCH}/notebooks/{lesson.name})."
    cells = [
        marked(nbformat.v4.new_markdown_cell(head), "title"),
        marked(nbformat.v4.new_code_cell(first_cell(address)), "setup"),
        marked(nbformat.v4.new_code_cell(f"{begin}\n{STRICT}".strip()), "begin"),
    ]
    for exercise in found:
        cells += exercise_cells(exercise, address)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


# --- a course ---------------------------------------------------------------------------------------------------


def nbgrader(course: Path, *command: str) -> None:
    """Call nbgrader on a course; kernels are those of this environment. Raises ``RuntimeError`` with what it says."""
    if not GRADER.is_file():
        raise FileNotFoundError(f"nbgrader has an environment of its own, {GRADER.parent.parent}: run `make students`.")
    own = {"JUPYTER_PATH": str(course / "jupyter"), "PYTHONPATH": str(ROOT)}
    environment = os.environ | own | {"PATH": f"{GRADER.parent}{os.pathsep}{os.environ['PATH']}"}  # it calls alembic
    done = subprocess.run(
        [GRADER, "-m", "nbgrader", *command], cwd=course, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"`nbgrader {' '.join(command)}` says: {done.stderr.strip()[-2000:]}")


def prepare(course: Path, seconds: int = SECONDS) -> None:
    """Make the folder of a course: nbgrader's settings, and a kernel that is this Python."""
    kernel = course / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": launch, "display_name": "Python 3", "language": "python"}))
    (course / "nbgrader_config.py").write_text(CONFIGURATION.format(root=str(course), seconds=seconds))


def release(course: Path, lessons: Iterable[Path]) -> None:
    """Make the copies for a class, in ``release/`` of a course."""
    for lesson in lessons:
        source = course / "source" / lesson.stem / lesson.name
        source.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(source_notebook(lesson), source)
        nbgrader(course, "generate_assignment", lesson.stem, "--create", "--force")
        print(course / "release" / lesson.stem / lesson.name, flush=True)


def grade(course: Path, lessons: Iterable[Path]) -> Path:
    """Mark what was handed in, write feedback for each student, and return the table of points.

    An answer that raises, or that takes longer than a cell may, loses the points of its checks and no others.
    """
    for lesson in lessons:
        if any(course.glob(f"submitted/*/{lesson.stem}")):
            nbgrader(course, "autograde", lesson.stem, "--force")
            nbgrader(course, "generate_feedback", lesson.stem, "--force")
    nbgrader(course, "export", "--to", "points.csv")
    return course / "points.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make copies for a class, or mark what it handed in."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="NUMBER", help="as in 00 05; default: all")
    parser.add_argument("--grade", action="store_true", help="mark what lies in submitted/")
    parser.add_argument("--course", type=Path, default=COURSE, metavar="FOLDER", help="default: build/students")
    asked = parser.parse_args(arguments)
    lessons = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name[:2] in asked.lessons or not asked.lessons]
    course = as_path(asked.course, "--course").resolve()
    prepare(course)
    if asked.grade:
        print(grade(course, lessons))
    else:
        release(course, lessons)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
