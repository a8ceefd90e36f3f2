"""The site: the lessons with their outputs, the reference, the models and the tables, as static pages.

python -m experiments.publishing.site                   # -> build/site/html/; lessons that have changed run first
python -m experiments.publishing.site --run 00 05       # runs these at most; others are shown as last run, or without

The pages are laid out in ``build/site/pages/`` as their files lie in the repository, so that a link which works there
works here: to a lesson, a figure, a table, a file or a folder of code. A lesson's outputs are kept in
``build/site/executed/`` until the lesson's code, the library or the weights change. At the end ``links.faults`` looks
at every page: no link may lead nowhere, and nothing may come from another host.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, check_output_folder, written_whole

from .doors import FIRST_CELL, notebooks
from .execution import executed
from .links import faults
from .manifest import content
from .still_widgets import with_still_widgets

SITE = ROOT / "build" / "site"
SETTINGS = ("conf.py", "_static")  # of docs/, given to Sphinx
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")
PAGES += tuple(f"docs/{name}.md" for name in ("teaching", "glossary", "notation", "ARCHITECTURE", "bench"))
CODE = ("context_diffusion", "experiments")
DATA = ("data/**/*", "figures/**/*.json")  # what lessons read
IMPORTED = f"""import sys
for module in list(sys.modules.values()):
    if (getattr(module, "__file__", None) or "").startswith("{ROOT}/") and "site-packages" not in module.__file__:
        print(module.__file__)"""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\()([^)\s#]+)(#[^)\s]*)?\)")
KEY = "built_from"
MATHJAX = ("tex-mml-chtml.js", "output/chtml", "input/tex/extensions")  # formulas as text with MathJax's own fonts
HOME = """
```{{toctree}}
:caption: Lessons
:hidden:

{lessons}
docs/teaching
docs/glossary
docs/notation
```

```{{toctree}}
:caption: Results
:hidden:

tables
docs/bench
{models}
```

```{{toctree}}
:caption: The module
:hidden:

reference/index
code/index
docs/ARCHITECTURE
```

```{{toctree}}
:caption: The project
:hidden:

CONTRIBUTING
CHANGELOG
data/README
notebooks/solutions/index
```
"""


# --- the lessons' outputs -------------------------------------------------------------------------------------


def digest(files: Iterable[str]) -> dict[str, str]:
    """The digest of what counts in each file, by its path in the repository; an empty text for one that is gone."""
    found = {path: ROOT / path for path in files}
    return {path: hashlib.sha256(content(f)).hexdigest() if f.is_file() else "" for path, f in found.items()}


def run_lesson(lesson: Path) -> nbformat.NotebookNode:
    """Run a lesson; its metadata keep a digest of each file that the outputs depend on: code, models, scores."""
    notebook = executed(lesson, IMPORTED)
    imported = "".join(output.text for output in notebook.cells.pop().outputs).split("\n")
    data = (path for pattern in DATA for path in ROOT.glob(pattern) if path.is_file())
    used = [lesson, *map(Path, filter(None, imported)), *data]
    notebook.metadata[KEY] = digest(sorted(path.relative_to(ROOT).as_posix() for path in used))
    return notebook


def with_outputs(lesson: Path, folder: Path, *, run: bool) -> nbformat.NotebookNode:
    """A lesson as it is now, with the outputs of its last run; with ``run``, it runs first if they are out of date."""
    notebook, kept = nbformat.read(lesson, as_version=4), folder / lesson.name
    last = nbformat.read(kept, as_version=4) if kept.is_file() else None
    if run and (last is None or last.metadata[KEY] != digest(last.metadata[KEY])):
        start = time.perf_counter()
        last = run_lesson(lesson)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(kept) as temporary:
            nbformat.write(last, temporary)
        print(f"{lesson.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if last is not None:
        outputs = {cell.source: cell.outputs for cell in last.cells if cell.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = outputs.get(cell.source, [])
        notebook.metadata.widgets = last.metadata.get("widgets", {})
    return with_still_widgets(notebook)


# --- pages ------------------------------------------------------------------------------------------------------


class Pages:
    """The folder that Sphinx reads: files at their places in the repository, and pages that stand for code."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.code: set[Path] = set()
        self.wanted: set[Path] = set()

    def write(self, place: str, text: str) -> None:
        """Put a page at its place."""
        target = self.folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def add(self, file: Path, text: str | None = None, place: str | None = None) -> None:
        """Put a Markdown file of the repository at its place, its links following."""
        path = place or file.relative_to(ROOT).as_posix()
        self.write(path, self.linked(file.read_text(encoding="utf-8") if text is None else text, file, path))

    def add_notebook(self, file: Path, notebook: nbformat.NotebookNode) -> None:
        """Put a notebook at its place, the links of its text following."""
        path = file.relative_to(ROOT).as_posix()
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, file, path)
            elif cell.source.startswith(FIRST_CELL.partition("\n")[0]):
                cell.metadata.tags = ["hide-input"]
        notebook.metadata.pop(KEY, None)
        self.write(path, nbformat.writes(notebook))

    def linked(self, text: str, file: Path, place: str) -> str:
        """The text of a file with its links as they have to be on the page at ``place``."""

        def follow(found: re.Match) -> str:
            before, address, fragment = found[1], found[2], found[3] or ""
            inner = LINK.sub(follow, before[:-2]) + before[-2:] if before.startswith("[![") else before
            target = (file.parent / address).resolve()
            if ":" in address or not target.exists() or not target.is_relative_to(ROOT):
                return f"{inner}{address}{fragment})"
            return f"{inner}{os.path.relpath(self.page_of(target), Path(place).parent)}{fragment})"

        return LINK.sub(follow, text)

    def page_of(self, target: Path) -> str:
        """Where the site shows a file or a folder of the repository."""
        path = target.relative_to(ROOT)
        if path.as_posix() == "README.md":
            return "index.md"
        if target.is_dir() and path.parts[0] == "figures":
            return "tables.md"
        if path.parts[0] in CODE and (target.is_dir() or target.suffix == ".py"):
            return code_page(path)
        if target.is_dir():
            return "index.md"
        self.wanted.add(target)
        return path.as_posix()


def code_page(path: Path) -> str:
    """The page of a file or a folder of code, by its path in the repository."""
    return f"code/{path.with_suffix('').as_posix()}.md" if path.suffix else f"code/{path.as_posix()}/index.md"


def first_sentence(file: Path) -> str:
    """What a file of code says that it is, or an empty text."""
    spoken = re.match(r'"""(.+?)("""|\n\n|\n$|\n)', file.read_text(encoding="utf-8")) if file.is_file() else None
    return spoken[1].strip() if spoken else ""


def add_code(pages: Pages) -> None:
    """Put every file of code on a page of its own, and every folder on one that lists what it holds."""
    tree = "\n".join(f"{folder}/index" for folder in CODE)
    pages.write("code/index.md", f"# The code\n\nEvery file as it is.\n\n```{{toctree}}\n:maxdepth: 1\n\n{tree}\n```\n")
    for top in CODE:
        folders = [ROOT / top, *sorted(path.parent for path in (ROOT / top).rglob("__init__.py"))]
        for folder in sorted(set(folders)):
            inside = sorted(path.parent for path in folder.glob("*/__init__.py"))
            files = sorted(folder.glob("*.py"))
            rows = [f"- [`{one.name}/`]({one.name}/index.md): {first_sentence(one / '__init__.py')}" for one in inside]
            rows += [f"- [`{one.name}`]({one.stem}.md): {first_sentence(one)}" for one in files]
            hidden = "\n".join([f"{one.name}/index" for one in inside] + [one.stem for one in files])
            title = folder.relative_to(ROOT).as_posix()
            toctree = f"```{{toctree}}\n:hidden:\n\n{hidden}\n```"
            pages.write(f"code/{title}/index.md", f"# {title}/\n\n" + "\n".join(rows) + f"\n\n{toctree}\n")
            for file in files:
                path = file.relative_to(ROOT)
                block = f"~~~~~~{{code-block}} python\n:linenos:\n\n{file.read_text('utf-8')}\n~~~~~~"
                text = f"# {path.as_posix()}\n\n{block}\n"
                pages.write(code_page(path), text)


def add_reference(pages: Pages) -> None:
    """Put the docstrings of each room of the library on a page, module by module."""
    library = ROOT / "context_diffusion"
    rooms = sorted(path for path in library.iterdir() if (path / "__init__.py").is_file())
    files = sorted(path for path in library.glob("*.py") if not path.name.startswith("__"))
    rows = []
    for room in sorted([*rooms, *files], key=lambda path: path.name):
        inside = [room / "__init__.py", *sorted(room.glob("[!_]*.py"))] if room.is_dir() else [room]
        name = f"context_diffusion.{room.stem}"
        text = [f"# {room.stem}\n"]
        for file in inside:
            module = name if file in (room, room / "__init__.py") else f"{name}.{file.stem}"
            source = os.path.relpath(code_page(file.relative_to(ROOT)), "reference")
            title = f"## {file.stem}\n\n" if room.is_dir() and file.stem != "__init__" else ""
            members = "" if file.stem == "__init__" else "   :members:\n"
            block = f"```{{eval-rst}}\n.. automodule:: {module}\n{members}```"
            text.append(f"{title}Source: [`{file.relative_to(ROOT).as_posix()}`]({source})\n\n{block}\n")
        pages.write(f"reference/{room.stem}.md", "\n".join(text))
        rows.append((room.stem, first_sentence(inside[0])))
    listed = "\n".join(f"| [`{name}`]({name}.md) | {says} |" for name, says in rows)
    hidden = "\n".join(name for name, _ in rows)
    pages.write(
        "reference/index.md",
        "# Reference\n\nWhat the docstrings say, room by room. The names of `import context_diffusion as cd` come from "
        "these modules; [`__init__.py`](../code/context_diffusion/__init__.md) has the table.\n\n"
        f"| module | holds |\n|---|---|\n{listed}\n\n```{{toctree}}\n:hidden:\n\n{hidden}\n```\n",
    )


def add_tables(pages: Pages) -> None:
    """Put the papers' tables and their pictures on one page, in README's order and words."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## The papers' tables")[2].partition("\n## ")[0]
    )
    text = [f"# The papers' tables\n{section.strip()}\n"]
    for protocol in re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE):
        text.append(f"## {protocol}\n")
        for table in sorted((ROOT / "figures" / "evaluation").glob(f"{protocol}-*.md")):
            text.append(pages.linked(table.read_text(encoding="utf-8"), table, "tables.md"))
        for picture in sorted((ROOT / "figures" / "evaluation").glob(f"{protocol}-*.webp")):
            pages.wanted.add(picture)
            name = picture.stem.removeprefix(f"{protocol}-")
            path = picture.relative_to(ROOT).as_posix()
            text.append(f"[![{protocol}: {name}]({path})]({path})\n")
    pages.add(ROOT / "README.md", "\n".join(text), "tables.md")


def add_models(pages: Pages) -> list[str]:
    """Put the cards of the published models in place; return where."""
    cards = sorted((ROOT / "data" / "checkpoints").glob("*/README.md"))
    for card in cards:
        pages.add(card)
    return [card.relative_to(ROOT).with_suffix("").as_posix() for card in cards]


def add_lessons(pages: Pages, kept: Path, run: Iterable[str] | None) -> list[str]:
    """Put lessons and solutions in place; ``run`` names the lessons that may run, by number, and None means all."""
    found = notebooks()
    lessons = [path for path in found if path.parent == ROOT / "notebooks"]
    for lesson in lessons:
        pages.add_notebook(lesson, with_outputs(lesson, kept, run=run is None or lesson.name[:2] in set(run)))
    solutions = [path for path in found if path not in lessons]
    for solution in solutions:
        notebook = nbformat.read(solution, as_version=4)
        notebook.metadata.orphan = True
        pages.add_notebook(solution, notebook)
    listed = "\n".join(path.stem for path in solutions)
    toctree = f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```"
    pages.write("notebooks/solutions/index.md", f"# Solutions\n\nOf the lessons' exercises, as code.\n\n{toctree}\n")
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in lessons]


def lay_out(folder: Path, kept: Path, run: Iterable[str] | None) -> None:
    """Fill the folder that Sphinx reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pages = Pages(folder)
    for name in SETTINGS:
        source = ROOT / "docs" / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    copy_mathjax(folder / "_static" / "mathjax")
    lessons = add_lessons(pages, kept, run)
    models = add_models(pages)
    for name in PAGES:
        pages.add(ROOT / name)
    add_code(pages)
    add_reference(pages)
    add_tables(pages)
    home = (ROOT / "README.md").read_text(encoding="utf-8")
    pages.add(ROOT / "README.md", home + HOME.format(lessons="\n".join(lessons), models="\n".join(models)), "index.md")
    for file in sorted(pages.wanted):
        target = folder / file.relative_to(ROOT)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".md":
                pages.add(file, f"---\norphan: true\n---\n\n# {file.stem}\n\n{file.read_text('utf-8')}")
            else:
                shutil.copyfile(file, target)


def copy_mathjax(folder: Path) -> None:
    """Copy the part of MathJax that formulas in a browser need."""
    home = Path(importlib.util.find_spec("mathjax").submodule_search_locations[0]) / "static" / "mathjax" / "es5"
    for part in MATHJAX:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (home / part).is_dir() else shutil.copyfile)(home / part, target)


# --- the build ----------------------------------------------------------------------------------------------------


def build(site: Path = SITE, run: Iterable[str] | None = None, kept: Path | None = None) -> list[str]:
    """Build the site; return the faults of its pages. Raises ``RuntimeError`` if Sphinx warns of anything."""
    lay_out(site / "pages", kept or site / "executed", run)
    html = site / "html"
    shutil.rmtree(html, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", site / "doctrees"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if subprocess.run([*command, site / "pages", html], env=environment).returncode:
        raise RuntimeError("Sphinx warns of what is above: a page would not be right.")
    return list(faults(html))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site, and say where it is; return 1 if a link leads nowhere or a page fetches from elsewhere."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", metavar="NUMBER", help="lessons that may run, as in 00 05; default: all")
    parser.add_argument("--out", type=Path, default=SITE, metavar="FOLDER", help="default: build/site")
    asked = parser.parse_args(arguments)
    check_output_folder(asked.out, "--out")
    start = time.perf_counter()
    found = build(asked.out.resolve(), asked.run)
    print("\n".join(found) or f"{asked.out / 'html' / 'index.html'}: {time.perf_counter() - start:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(run_command(main))
