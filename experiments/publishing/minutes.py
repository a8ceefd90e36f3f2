"""How long each lesson takes, to read and to compute: measured, and put into docs/teaching.md.

python -m experiments.publishing.minutes        # after `make site`, whose last runs say how long each cell took

Reading counts 200 words of text a minute and ten lines of code a minute. Computing is the time from the first cell's
start to the last one's end on the machine that made the site.
"""

import re
import sys
from datetime import datetime
from pathlib import Path

import nbformat

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT, written_whole

from .doors import FIRST_CELL, FOLDER
from .site import SITE

PAGE = ROOT / "docs" / "teaching.md"
WORDS, LINES = 200, 10  # a minute
TABLE = re.compile(r"(?<=<!-- minutes -->\n).*?(?=<!-- end of minutes -->)", re.DOTALL)


def reading_minutes(notebook: nbformat.NotebookNode) -> float:
    """How long it takes to read a lesson's text and code, without its first cell."""
    first = FIRST_CELL.partition("\n")[0]
    texts = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not cell.source.startswith(first)]
    return len(re.findall(r"\w[\w'-]*", texts)) / WORDS + sum(len(source.splitlines()) for source in code) / LINES


def computing_minutes(executed: nbformat.NotebookNode) -> float:
    """How long the last run of a lesson took."""
    runs = [cell.metadata.execution for cell in executed.cells if cell.metadata.get("execution")]
    ends = (runs[0]["iopub.status.busy"], runs[-1]["iopub.status.idle"])
    start, end = (datetime.fromisoformat(time.replace("Z", "+00:00")) for time in ends)
    return (end - start).total_seconds() / 60


def table(folder: Path = FOLDER, kept: Path = SITE / "executed") -> str:
    """The minutes of every lesson, in Markdown."""
    rows = ["| lesson | reading | computing |", "|---|---|---|"]
    for lesson in sorted(folder.glob("*.ipynb")):
        notebook, run = nbformat.read(lesson, as_version=4), kept / lesson.name
        name = notebook.cells[0].source.partition("\n")[0].strip("# ").partition(":")[0]
        computed = f"{computing_minutes(nbformat.read(run, as_version=4)):.1f} min" if run.is_file() else "not run yet"
        rows.append(f"| [{name}](../notebooks/{lesson.name}) | {reading_minutes(notebook):.0f} min | {computed} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write the table into the teacher's page."""
    text = TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"))
    with written_whole(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
