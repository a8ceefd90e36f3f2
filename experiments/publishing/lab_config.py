"""JupyterLab's settings for ``make lab``: a lesson is saved as it is committed, so git shows what a reader wrote alone.

A copy of a lesson, or any other notebook that git does not track, keeps its outputs.
"""

import subprocess
import warnings
from pathlib import Path

import nbformat

KEPT = {"tags"}  # of a cell's metadata: the rest says how it was shown last


def save_as_committed(model: dict, path: str, contents_manager) -> None:
    """Take from a notebook that git tracks, before it is saved, what running and showing it has put into it."""
    file = Path(contents_manager.root_dir) / path
    if model["type"] != "notebook" or not is_tracked(file):
        return
    notebook = model["content"]
    notebook["metadata"] = nbformat.read(file, as_version=4).metadata
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key in KEPT}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}


def is_tracked(file: Path) -> bool:
    """Say whether a file is one of a git repository's; not so where there is no git."""
    try:
        asked = subprocess.run(["git", "ls-files", "--error-unmatch", file.name], cwd=file.parent, capture_output=True)
    except OSError:
        return False
    return asked.returncode == 0


if "get_config" in globals():  # Jupyter reads this file, and has put it there
    warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")  # by itself: traitlets validates it twice
    get_config().FileContentsManager.pre_save_hook = save_as_committed  # noqa: F821
