"""What opens every lesson: its first cell, and the badge that opens it in Colab, both made from one address.

python -m experiments.publishing.doors            # after a change of [project.urls] in pyproject.toml, or of FIRST_CELL
python -m experiments.publishing.doors --check    # names the notebooks that would change, and changes none

The first cell is the same in every notebook, solutions included: a lesson may be opened anywhere, alone. The lessons'
own imports follow it, since on Colab it installs what they need.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, written_whole

FOLDER = ROOT / "notebooks"
BRANCH = "main"
PICTURE = "docs/open-in-colab.svg"
FIRST_CELL = """\
# The first cell of every lesson: it finds the repository (in Colab, gets it) and sets up what the lesson needs.
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{address}"
if "google.colab" in sys.modules and not Path("lessons").is_dir():
    subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, "lessons"])
places = [Path("lessons").resolve(), Path.cwd(), *Path.cwd().parents]
sys.path[:0] = [str(place) for place in places if (place / "context_diffusion/__init__.py").is_file()][:1]
if importlib.util.find_spec("context_diffusion") is None:
    raise ModuleNotFoundError(f"A lesson needs its repository: `git clone {{REPOSITORY}}`, then `make lab` in it.")

import context_diffusion as cd

here = cd.notebook.setup(seed=0)"""
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)\n\n")
OWN_SETUP = re.compile(r"^(import context_diffusion as cd|(here = )?cd\.notebook\.setup\(seed=0\);?)\n?", re.MULTILINE)


def repository_address(root: Path = ROOT) -> str:
    """The address under which the repository is published: ``[project.urls] Repository`` in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def first_cell(address: str) -> str:
    """The source of the first cell."""
    return FIRST_CELL.format(address=address)


def colab_address(address: str, path: str) -> str:
    """Where Colab opens a notebook of a GitHub repository; ``path`` is its place in there."""
    return f"https://colab.research.google.com/github/{address.split('github.com/')[-1]}/blob/{BRANCH}/{path}"


def badge(address: str, path: str) -> str:
    """The badge of a lesson, in Markdown; its picture lies in the repository and needs no network."""
    return f"[![Open in Colab]({'../' * path.count('/')}{PICTURE})]({colab_address(address, path)})\n\n"


def with_badge(text: str, address: str, path: str) -> str:
    """The opening text of a lesson with its badge below the title, in place of one that is there."""
    title, _, rest = BADGE.sub("", text).partition("\n")
    return f"{title}\n\n{badge(address, path)}{rest.lstrip()}"


def with_doors(notebook: nbformat.NotebookNode, address: str, path: str) -> nbformat.NotebookNode:
    """Give a notebook the first cell, and a lesson its badge; solutions need none.

    A cell that still does the setting up itself keeps the rest of what it does.
    """
    kinds = [cell.cell_type for cell in notebook.cells]
    place = kinds.index("code")
    cell = notebook.cells[place]
    if not cell.source.startswith(FIRST_CELL.partition("\n")[0]):
        cell.source = re.sub(r"\n{3,}", "\n\n", OWN_SETUP.sub("", cell.source)).strip()
        new = nbformat.v4.new_code_cell()
        notebook.cells[place : place + (not cell.source)] = [new]
        cell = new
    cell.source = first_cell(address)
    for number, one in enumerate(notebook.cells):  # as nbstripout numbers them
        one.id = str(number)
    if Path(path).parent.name == FOLDER.name:
        notebook.cells[0].source = with_badge(notebook.cells[0].source, address, path)
    return notebook


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """Every lesson and every solution."""
    return sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Bring every notebook up to date, or some of them; return 1 if ``--check`` finds one that is not."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--check", action="store_true", help="change nothing")
    asked = parser.parse_args(arguments)
    address, stale = repository_address(root), 0
    for file in [path.resolve() for path in asked.notebooks] or notebooks(root / "notebooks"):
        before = file.read_text(encoding="utf-8")
        path = file.relative_to(root).as_posix()
        after = nbformat.writes(with_doors(nbformat.reads(before, as_version=4), address, path)) + "\n"
        if after != before:
            stale += 1
            print(path)
            if not asked.check:
                with written_whole(file) as temporary:
                    temporary.write_text(after, encoding="utf-8")
    return int(asked.check and stale > 0)


if __name__ == "__main__":
    sys.exit(run_command(main))
