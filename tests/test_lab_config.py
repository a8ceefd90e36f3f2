"""What `make lab` saves: to git, a lesson that was run is unchanged, and what a reader wrote is all that shows."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).parent.parent
LESSON = "notebooks/02_dynamic_normalization.ipynb"
SAYS = nbformat.v4.new_output("stream", text="hello")


def git(clone: Path, *command: str) -> str:
    who = ["-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    return subprocess.run(["git", *who, *command], cwd=clone, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in (LESSON, ".gitignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "lesson")
    return tmp_path


@pytest.fixture
def contents(clone):
    """The server's manager of files, set as `make lab` sets it."""
    config = PyFileConfigLoader("lab_config.py", path=str(ROOT / "experiments" / "publishing")).load_config()
    assert config.FileContentsManager.pre_save_hook
    return FileContentsManager(config=config, root_dir=str(clone))


def run(model: dict) -> None:
    """Put into a notebook what JupyterLab puts there when its cells run."""
    notebook = model["content"]
    notebook.metadata.language_info = {"name": "python", "version": "3.99", "codemirror_mode": {"name": "ipython"}}
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [SAYS], number + 1
        cell.metadata |= {"scrolled": True, "execution": {"iopub.status.idle": "now"}, "jupyter": {"collapsed": True}}


def test_a_lesson_that_was_run_is_unchanged_to_git(clone, contents):
    model = contents.get(LESSON)
    run(model)
    contents.save(model, LESSON)
    assert git(clone, "status", "--porcelain") == ""


def test_what_a_reader_wrote_is_all_that_shows(clone, contents):
    model = contents.get(LESSON)
    run(model)
    cell = next(cell for cell in model["content"].cells if cell.cell_type == "code")
    cell.source += "\nmine = 1"
    contents.save(model, LESSON)
    changed = [line for line in git(clone, "diff", "-U0", "--no-prefix").splitlines() if line[:1] in "+-"]
    assert "mine = 1" in changed[-1] and len(changed) == 2 + 3  # two lines name the file; a line got its end


def test_a_copy_keeps_its_outputs(clone, contents):
    model = contents.get(LESSON)
    run(model)
    contents.save(model, "notebooks/copy.ipynb")
    kept = nbformat.read(clone / "notebooks" / "copy.ipynb", as_version=4)
    assert all(cell.outputs == [SAYS] for cell in kept.cells if cell.cell_type == "code")
    assert "widgets" in kept.metadata
