"""Slides of every lesson, made from the notebook itself and the outputs of its last run, for a room without a network.

python -m experiments.publishing.slides            # -> build/slides/NN_name.html, outputs from build/site/executed/
python -m experiments.publishing.slides 05 06      # these lessons alone

The title and every section begin a slide, to the right; texts and code of a section follow below it, as many on one
slide as it can hold, and each picture has a slide of its own. The first cell, exercises and references are left to the
lesson. The pages need what lies in ``assets/`` beside them, and nothing from another host.
"""

import argparse
import math
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from traitlets.config import Config

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, check_output_folder, written_whole

from .doors import BADGE, BRANCH, FIRST_CELL, FOLDER, repository_address
from .links import faults
from .site import SITE, copy_mathjax, with_outputs

SLIDES = ROOT / "build" / "slides"
REVEAL = ROOT / "build" / "revealjs" / "sphinx_revealjs" / "_static" / "revealjs"  # `make slides` puts it there
LINES, WIDTH = 18, 85  # what a slide holds
PART = re.compile(r"\n(?=#{1,3} )")
LINK = re.compile(r"(?<!!)(\[(?:[^\[\]]|\[[^\]]*\])*\])\((?![a-z]+:|#)([^)\s]+)\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(\.\./(figures/[^)\s]+)\)")
LEFT_OUT = re.compile(r"#+ ([\d. ]*Exercises|References|Where to go)")
ALONE = "output-alone"
THEME = "white"


def split_texts(cells: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells, each text divided at its headings, and again where it is longer than a slide."""
    divided = []
    for cell in cells:
        if cell.cell_type != "markdown":
            divided.append(cell)
            continue
        for part in PART.split(cell.source):
            piece: list[str] = []
            for paragraph in part.strip().split("\n\n"):
                if piece and height("\n\n".join([*piece, paragraph])) > LINES:
                    divided.append(nbformat.v4.new_markdown_cell("\n\n".join(piece)))
                    piece = []
                piece.append(paragraph)
            divided.append(nbformat.v4.new_markdown_cell("\n\n".join(piece)))
    return divided


def split_outputs(cells: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells, each picture among the outputs in a cell of its own, without the code that drew it."""
    divided = []
    for cell in cells:
        divided.append(cell)
        if cell.cell_type != "code":
            continue
        pictures = [one for one in cell.outputs if any(kind.startswith("image/") for kind in one.get("data", {}))]
        cell.outputs = [one for one in cell.outputs if one not in pictures]
        for picture in pictures:
            divided.append(nbformat.v4.new_code_cell(outputs=[picture], metadata={"tags": [ALONE]}))
    return divided


def height(text: str) -> int:
    """How many lines of a slide a text takes, roughly; a picture fills half of it."""
    rows = sum(math.ceil(len(line) / WIDTH) or 1 for line in text.splitlines())
    return rows + 10 * text.count("![") + 3 * text.startswith("#")


def shown(cell: nbformat.NotebookNode) -> int:
    """How many lines of a slide a cell takes."""
    if ALONE in cell.metadata.get("tags", []):
        return LINES
    texts = [one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.get("outputs", [])]
    dials = 5 * sum("text/html" in one.get("data", {}) for one in cell.get("outputs", []))
    return height(cell.source) + 2 + dials + sum(height(text) for text in texts)


def with_slides(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Say for each cell where it is shown: a slide to the right, a slide below, on the one before it, or nowhere.

    A text that ends in a colon stays with the code that it announces, if one slide can hold both.
    """
    first, left_out, filled = FIRST_CELL.partition("\n")[0], False, 0
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        announces = following is not None and cell.cell_type == "markdown" and cell.source.rstrip().endswith(":")
        together = shown(cell) + shown(following) if announces else 0
        heading = cell.cell_type == "markdown" and re.match(r"#{1,2} ", cell.source)
        if heading:
            left_out = bool(LEFT_OUT.match(cell.source))
        if left_out or cell.source.startswith(first):
            kind = "skip"
        elif heading or filled + (shown(cell) if together > LINES else max(together, shown(cell))) > LINES:
            kind, filled = "slide" if heading else "subslide", shown(cell)
        else:
            kind, filled = "-", filled + shown(cell)
        cell.metadata.slideshow = {"slide_type": kind}
    return notebook


def slides_of(notebook: nbformat.NotebookNode, address: str) -> str:
    """The page of a lesson's slides; links to files of the repository lead to its ``address``."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = PICTURE.sub(r"\1(assets/\2)", BADGE.sub("", cell.source))
            cell.source = LINK.sub(rf"\1({address}/blob/{BRANCH}/notebooks/\2)", text)
    notebook.cells = split_outputs(split_texts(notebook.cells))
    settings = Config()
    settings.SlidesExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    settings.TagRemovePreprocessor.remove_input_tags = {ALONE}
    settings.TagRemovePreprocessor.enabled = True
    exporter = SlidesExporter(
        config=settings,
        template_name="slides_template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        reveal_url_prefix="assets/reveal",
        reveal_theme=THEME,
        exclude_anchor_links=True,
    )
    place = {"metadata": {"name": notebook.cells[0].source.partition("\n")[0].strip("# ")}}
    return exporter.from_notebook_node(with_slides(notebook), resources=place)[0]


def copy_assets(folder: Path) -> None:
    """Put reveal.js and MathJax beside the pages. Raises ``FileNotFoundError`` without reveal.js."""
    if not REVEAL.is_dir():
        raise FileNotFoundError("reveal.js is not here yet: run `make slides`, which gets it.")
    for part in ("reveal", "mathjax"):  # figures stay: other lessons' pages show them
        shutil.rmtree(folder / part, ignore_errors=True)
    others = [path.name for path in (REVEAL / "dist" / "theme").glob("*.css") if path.stem != THEME]  # they fetch fonts
    shutil.copytree(REVEAL / "dist", folder / "reveal" / "dist", ignore=shutil.ignore_patterns("*.map", *others))
    shutil.copytree(REVEAL / "plugin" / "notes", folder / "reveal" / "plugin" / "notes")
    copy_mathjax(folder / "mathjax")


def build(out: Path, lessons: Iterable[Path]) -> list[str]:
    """Make the slides of some lessons in a folder; return the faults of the pages there."""
    copy_assets(out / "assets")
    for lesson in lessons:
        notebook = with_outputs(lesson, SITE / "executed", run=False)
        for _, picture in PICTURE.findall("\n".join(cell.source for cell in notebook.cells)):
            if (ROOT / picture).is_file():  # or else it is among the faults of the page
                (out / "assets" / picture).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / picture, out / "assets" / picture)
        with written_whole(out / f"{lesson.stem}.html") as temporary:
            temporary.write_text(slides_of(notebook, repository_address()), encoding="utf-8")
        print(out / f"{lesson.stem}.html", flush=True)
    return list(faults(out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make slides; return 1 if a page fetches anything from elsewhere."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="NUMBER", help="as in 00 05; default: all")
    parser.add_argument("--out", type=Path, default=SLIDES, metavar="FOLDER", help="default: build/slides")
    asked = parser.parse_args(arguments)
    check_output_folder(asked.out, "--out")
    lessons = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name[:2] in asked.lessons or not asked.lessons]
    found = build(asked.out.resolve(), lessons)
    print("\n".join(found), end="")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(run_command(main))
