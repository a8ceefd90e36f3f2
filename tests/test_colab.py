"""The door through which a lesson is opened alone: its first cell, and whole lessons with Colab's versions."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

from experiments.publishing import doors

ROOT = doors.ROOT
ADDRESS = doors.repository_address()
NOTEBOOKS = doors.notebooks()
LESSONS = [path for path in NOTEBOOKS if path.parent == doors.FOLDER]
IN_COLAB = """import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
sys.modules["google.colab"] = module_from_spec(ModuleSpec("google.colab", None))
"""
STUB = "def setup(seed):\n    print('set up', seed, __file__)\n    return 'here'\n"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(doors.FOLDER)))


@each
def test_it_begins_with_the_one_first_cell_and_a_lesson_has_its_badge(path):
    notebook = nbformat.read(path, as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert first == doors.first_cell(ADDRESS), "run `make doors`"
    assert (doors.badge(ADDRESS, f"notebooks/{path.name}") in notebook.cells[0].source) == (path in LESSONS)
    assert not any("notebook.setup(" in cell.source for cell in notebook.cells if cell.source != first)


def test_a_new_address_is_carried_into_every_place_and_leaves_the_rest():
    old, new = "https://github.com/a/b", "https://github.com/c/d"
    setup = "import torch\n\nimport context_diffusion as cd\n\nhere = cd.notebook.setup(seed=0)\nMODEL = 'tiny-scenes'"
    cells = [nbformat.v4.new_markdown_cell("# T\n\ntext"), nbformat.v4.new_code_cell(setup)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for address in (old, new, new):
        notebook = doors.with_doors(notebook, address, "notebooks/00_t.ipynb")
    sources = [cell.source for cell in notebook.cells]
    assert sources[1:] == [doors.first_cell(new), "import torch\n\nMODEL = 'tiny-scenes'"]
    assert sources[0] == f"# T\n\n{doors.badge(new, 'notebooks/00_t.ipynb')}text"
    assert "/c/d/blob/main/notebooks/00_t.ipynb" in sources[0] and "../docs/open-in-colab.svg" in sources[0]


def test_the_badge_is_a_picture_that_needs_nothing_from_elsewhere():
    picture = ElementTree.parse(ROOT / doors.PICTURE).getroot()
    assert picture.tag.endswith("svg") and "href" not in (ROOT / doors.PICTURE).read_text()


def run_first_cell(folder: Path, *, before: str = "", address: str = ADDRESS) -> subprocess.CompletedProcess:
    """Run the first cell in a folder, with a Python that has nothing installed."""
    code = before + doors.first_cell(address)
    command = [sys.executable, "-S", "-c", code]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository of the right shape, whose setup says that it was called."""
    package = tmp_path / "clone" / "context_diffusion"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import notebook\n")
    (package / "notebook.py").write_text(STUB)
    (package.parent / "notebooks" / "solutions").mkdir(parents=True)
    git = ["git", "-C", str(package.parent), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a clone"]):
        subprocess.run([*git, *command], check=True)
    return package.parent


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/solutions", "."])
def test_in_a_clone_it_uses_that_clone(clone, folder):
    done = run_first_cell(clone / folder)
    assert done.stdout == f"set up 0 {clone / 'context_diffusion' / 'notebook.py'}\n" and done.stderr == ""


def test_in_colab_it_gets_the_repository_and_once_only(clone, tmp_path):
    content = tmp_path / "content"
    content.mkdir()
    for _ in range(2):
        done = run_first_cell(content, before=IN_COLAB, address=clone.as_uri())
        assert done.stdout == f"set up 0 {content / 'lessons' / 'context_diffusion' / 'notebook.py'}\n"
        (clone / "context_diffusion" / "notebook.py").write_text("a second time it is not fetched")


@pytest.mark.parametrize("before", ["", IN_COLAB])
def test_alone_it_says_where_the_repository_is(tmp_path, before):
    nowhere = (tmp_path / "no-repository").as_uri()
    done = run_first_cell(tmp_path, before=before, address=nowhere)
    assert done.returncode == 1
    assert done.stderr.endswith(f"A lesson needs its repository: `git clone {nowhere}`, then `make lab` in it.\n")


def test_with_nothing_installed_it_says_what_is_missing_and_how_to_get_it():
    done = run_first_cell(ROOT / "notebooks")
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ModuleNotFoundError: Not installed for this kernel: ") and "make lab" in said
    for name in ("torch", "diffusers", "jaxtyping", "einops", "ipywidgets"):
        assert name in said


# --- whole lessons, with Colab's versions --------------------------------------------------------------------

RUNNER = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
nbformat.write(notebook, sys.argv[2])
"""
VERSIONS = {"diffusers": "0.39.0", "transformers": "5.15.0", "ipywidgets": "7.7.1"}
ASK = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"


@pytest.fixture(scope="module")
def colab() -> Path:
    """The Python of an environment with Colab's versions; made once, in build/colab unless COLAB_VENV names another."""
    folder = Path(os.environ.get("COLAB_VENV", ROOT / "build" / "colab"))
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "set_up.py", folder, "-r", "requirements-colab.txt"], cwd=ROOT, check=True)
    for link in folder.rglob("context_diffusion.pth"):  # Colab knows nothing of this clone
        link.unlink()
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "jaxtyping"], check=True)
    has = json.loads(subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True).stdout)
    assert VERSIONS.items() <= has.items() and "jaxtyping" not in has
    return python


@pytest.mark.colab
@pytest.mark.skipif("COLAB" not in os.environ, reason="`make colab` runs it: an environment of 1.8 GB is made for it")
@pytest.mark.parametrize("number", ["00", "05", "10"])
def test_a_lesson_runs_in_colab(colab, tmp_path, number):
    content, startup = tmp_path / "content", tmp_path / "ipython" / "profile_default" / "startup"
    content.mkdir()
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text(IN_COLAB)
    (lesson,) = doors.FOLDER.glob(f"{number}_*.ipynb")
    text = lesson.read_text(encoding="utf-8").replace(ADDRESS, ROOT.as_uri())
    (content / "lesson.ipynb").write_text(text, encoding="utf-8")
    keep = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MPLBACKEND")}
    environment = keep | {"IPYTHONDIR": str(tmp_path / "ipython"), "PATH": f"{colab.parent}:{os.environ['PATH']}"}
    command = [colab, "-c", RUNNER, "lesson.ipynb", "done.ipynb"]
    done = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [cell for cell in nbformat.read(content / "done.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert re.search(r"torch .* on \w+, \d+ thread", "".join(out.get("text", "") for out in cells[0].outputs))
    shown = [out.get("data", {}) for cell in cells for out in cell.outputs]
    pictures = sum("image/png" in data for data in shown)
    assert pictures and (number == "05" or any("application/vnd.jupyter.widget-view+json" in data for data in shown))
