"""The plan of the house (docs/ARCHITECTURE.md), held against the imports of every file."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLAN = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGES = ("context_diffusion", "experiments")
TEXTBOOK_MAY = {"images", "checkpoints", "checks", "signatures", "from_scratch"}
KNOW_DIFFUSERS_INSIDE = {"pipelines", "latents", "alignment"}
EXPORTED = {
    "diffusers",
    "diffusers.callbacks",
    "diffusers.configuration_utils",
    "diffusers.utils",
}  # documented for use outside diffusers


def module_of(path: Path) -> str:
    """The dotted name of a file: ``a/b.py`` is a.b, ``a/__init__.py`` is a."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_of(module: str, source: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Every module that a source imports, wherever in it, relative names resolved.

    ``from a import b`` is an import of a.b where that is a module, and of a otherwise.
    """
    home = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = home[: len(home) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names)


IMPORTS = {
    module: sorted(set(imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py", set(FILES))))
    for module, path in FILES.items()
}
OURS = {module: [one for one in found if one.split(".")[0] in PACKAGES] for module, found in IMPORTS.items()}


def room_of(module: str) -> tuple[str, str]:
    """Package and room: context_diffusion.fusion.speech is of the room fusion."""
    package, room, *_ = [*module.split("."), ""]
    return package, room


def layers() -> dict[tuple[str, str], int]:
    """The line of each room in the plan, counted from the top."""
    block = re.search(r"```layers\n(.*?)```", PLAN, re.DOTALL)[1]
    lines, package = {}, ""
    for number, line in enumerate(block.splitlines()):
        if not line.startswith(" "):
            package = line.strip()
        else:
            lines |= {(package, room): number for room in re.split(r"\s{2,}", line.strip())[0].split()}
    return lines


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan 1972), each sorted."""
    index, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_every_room_has_a_place_in_the_plan():
    rooms = {room_of(module) for module in FILES} - {(package, "") for package in PACKAGES}
    assert rooms == set(layers())


def test_imports_run_downwards():
    order, wrong = layers(), []
    for module, found in OURS.items():
        here = room_of(module)
        for other in found:
            there = room_of(other)
            if here[1] and here[0] == there[0] and here != there and not (there[1] and order[there] > order[here]):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_the_library_knows_nothing_of_the_experiments():
    wrong = [
        f"{module} imports {other}"
        for module, found in OURS.items()
        for other in found
        if module.split(".")[0] == "context_diffusion" and other.split(".")[0] != "context_diffusion"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    assert circles({module: set(found) & set(FILES) for module, found in OURS.items()}) == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
        ({"a": {"a"}}, [["a"]]),
        ({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_circles_are_found(graph, expected):
    assert circles(graph) == expected


def test_imports_are_found_wherever_they_stand():
    source = """
import os, a.b
from typing import TYPE_CHECKING
from . import near, NAME
if TYPE_CHECKING:
    from ..up import other
def late():
    from .near import thing
"""
    known = {"p.room.near", "p.up", "p.up.other"}
    found = ["os", "a.b", "typing", "p.room.near", "p.room", "p.up.other", "p.room.near"]
    assert sorted(imports_of("p.room.file", source, False, known)) == sorted(found)
    assert set(imports_of("p.room", "from .near import thing", True, known)) == {"p.room.near"}


def test_the_textbook_leans_on_nothing_that_it_explains():
    for module in (module for module in FILES if room_of(module)[1] == "from_scratch"):
        assert {room_of(other)[1] for other in OURS[module]} <= TEXTBOOK_MAY, module
        assert not {one.split(".")[0] for one in IMPORTS[module]} & {"diffusers", "transformers"}, module


def test_only_three_rooms_know_diffusers_from_the_inside():
    wrong = [
        f"{module} imports {other}"
        for module, found in IMPORTS.items()
        for other in found
        if other.split(".")[0] == "diffusers" and other not in EXPORTED
        if module.startswith("context_diffusion") and room_of(module)[1] not in KNOW_DIFFUSERS_INSIDE
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_loads_no_heavy_library():
    heavy = {"torch", "numpy", "diffusers", "transformers", "PIL", "matplotlib", "scipy", "cv2"}
    ask = f"import sys, context_diffusion as cd; dir(cd); cd.__version__; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_spin_briefly_unless_somebody_says_how_long(given):
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    environment |= {} if given is None else {"GOMP_SPINCOUNT": given}
    ask = "import context_diffusion, os; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == (given or "10000")
