"""Habits of a lesson that a reader notices only when they are broken."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
GONE = {("context_diffusion.notebook", "draw")}  # once offered to lessons, and no longer

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(FOLDER)))


def hanging_colons(cells: list[tuple[str, str]]) -> list[str]:
    """Text cells that announce code with a colon, and are followed by more text, or by nothing."""
    following = [*(kind for kind, _ in cells[1:]), None]
    return [
        source
        for (kind, source), follower in zip(cells, following, strict=True)
        if kind == "markdown" and source.rstrip().endswith(":") and follower != "code"
    ]


def refused_imports(source: str) -> list[str]:
    """Imports of names that a module keeps to itself, or that are gone; lines of Jupyter's own do not count."""
    python = "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in source.splitlines())
    found = []
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            gone = [alias.name for alias in node.names if (node.module, alias.name) in GONE]
            found += [name for name in names if name.startswith("_") and not name.startswith("__")] + gone
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            found += [part for part in parts if part.startswith("_") and not part.startswith("__")]
        elif isinstance(node, ast.Attribute) and _is_ours(node.value):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            found += [node.attr] if private or node.attr == "draw" and _name_of(node.value) == "cd.notebook" else []
    return found


def _name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _is_ours(node: ast.expr) -> bool:
    return _name_of(node).split(".")[0] in {"cd", "context_diffusion", "experiments"}


@each
def test_no_text_announces_what_does_not_follow(path):
    notebook = nbformat.read(path, as_version=4)
    hanging = hanging_colons([(cell.cell_type, cell.source) for cell in notebook.cells])
    assert not hanging, "a text cell ends in a colon and no code follows: ..." + hanging[0][-120:]


@each
def test_it_uses_public_names_only(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        found = refused_imports(cell.source) if cell.cell_type == "code" else []
        assert not found, f"{', '.join(found)} in\n{cell.source}"


@pytest.mark.parametrize(
    ("cells", "count"),
    [
        ([("markdown", "So:"), ("code", "1")], 0),
        ([("markdown", "So:"), ("markdown", "And so on.")], 1),
        ([("markdown", "So:\n"), ("markdown", "more:")], 2),
        ([("markdown", "A ratio 1:2, so."), ("markdown", "b"), ("code", "a[1:]:")], 0),
    ],
)
def test_a_hanging_colon_is_seen(cells, count):
    assert len(hanging_colons(cells)) == count


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from context_diffusion.notebook import draw", ["draw"]),
        ("cd.notebook.draw(pipe, [])", ["draw"]),
        ("from context_diffusion.images import _pixels", ["_pixels"]),
        ("import context_diffusion._x as x\ncd.images._pixels(1)", ["_x", "_pixels"]),
        ("%matplotlib inline\nimport torch\nfrom context_diffusion import scenes\ncd.__version__", []),
        ("model.draw([cd.Request(prompt='a boat')])\nself._own", []),
    ],
)
def test_a_private_or_vanished_name_is_seen(source, found):
    assert sorted(refused_imports(source)) == sorted(found)
