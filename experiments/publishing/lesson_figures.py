"""Execute lessons and keep the picture that each one opens with.

    python -m experiments.publishing.lesson_figures                         # all of them
    python -m experiments.publishing.lesson_figures 01 09                   # some, by number
    python -m experiments.publishing.lesson_figures 01 --out build/here     # the picture to another folder

A lesson's first cell links its opening picture, ``![...](../figures/....webp)``; the code cell that draws it carries
the tag ``figure``. After new weights, this brings the pages up to date. The executed notebooks, with all their outputs,
stay in ``build/notebooks/``.
"""

import argparse
import base64
import io
import re
import sys
import time
from pathlib import Path

import nbformat
from PIL import Image

from context_diffusion import save_image
from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, check_output_folder

from .execution import EXECUTED, executed

NOTEBOOKS = ROOT / "notebooks"
TAG = "figure"
LARGEST = 300_000  # bytes


def opening_picture(notebook: nbformat.NotebookNode, folder: Path) -> Path | None:
    """The picture that the lesson's first cell links, if any."""
    found = re.search(r"!\[[^\]]*\]\(([^)\s]+\.(?:webp|png))\)", notebook.cells[0].source)
    return (folder / found[1]).resolve() if found else None


def tagged_figure(notebook: nbformat.NotebookNode) -> Image.Image | None:
    """The last picture among the outputs of the cells with the tag ``figure``, if any."""
    outputs = [o for cell in notebook.cells if TAG in cell.metadata.get("tags", []) for o in cell.get("outputs", [])]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return Image.open(io.BytesIO(base64.b64decode(pictures[-1]))).convert("RGB") if pictures else None


def main() -> None:
    """Execute lessons, keep the executed notebooks, and write their opening pictures."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="lessons, e.g. 01 09 (default: all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: where the page looks)")
    asked = parser.parse_args()
    lessons = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := sorted(set(asked.numbers) - set(lessons)):
        parser.error(f"no lesson has the number {', '.join(unknown)}; there are {', '.join(lessons)}")
    check_output_folder(asked.out or EXECUTED, "--out")
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for path in (lessons[number] for number in asked.numbers or lessons):
        start = time.perf_counter()
        notebook = executed(path)
        nbformat.write(notebook, EXECUTED / path.name)
        figure, file = tagged_figure(notebook), opening_picture(notebook, path.parent)
        note = "no opening picture"
        if figure is not None and file is not None:
            file = asked.out.resolve() / file.name if asked.out else file
            save_image(figure, file, quality=88, method=6)
            size = file.stat().st_size
            note = f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}, {size / 1000:.0f} kB"
            if size > LARGEST:
                raise SystemExit(f"{note}: an opening picture has at most {LARGEST / 1000:.0f} kB.")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s; {note}")


if __name__ == "__main__":
    sys.exit(run_command(main))
