"""The figures by name: read ``figures/manifest.toml`` and refuse what is wrong in it, with one sentence for each fault.

A figure is a table ``[figures."lessons/04_ddim.webp"]``. The tables of ``[defaults]`` whose pattern fits its file
(``[defaults."lessons/*"]``) apply to it as well, unless a later one or the figure itself says otherwise; ``{stem}``,
``{number}`` (the stem up to the first ``_``) and ``{protocol}`` (up to the first ``-``) stand for parts of the file's
name. An input is a file, a folder, a pattern, one of these after ``!``, which takes it away again, or the name of a
list under ``[inputs]``.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from context_diffusion.checks import near_names
from context_diffusion.files import ROOT

MANIFEST = "figures/manifest.toml"
BYTES = "bytes"
KINDS = {"shows": str, "command": str, "paper": str, "inputs": list, "tolerance": (str, int, float), "because": str,
         "rebuilt": bool}  # fmt: skip
PICTURE = re.compile(r"figures/((?:[\w-]+/)*[\w.-]+\.(?:webp|png|jpe?g|gif))")


@dataclass(frozen=True)
class Figure:
    """One figure. ``file`` is its path in ``figures/``; ``inputs`` are patterns, relative to the repository.

    ``tolerance`` is the mean absolute difference in grey levels that a rebuilt picture may have, and ``because`` says
    why; None asks for the same bytes. Where ``rebuilt`` is False, other work makes it (a training run).
    """

    file: str
    shows: str
    command: str
    paper: str
    inputs: tuple[str, ...] = ()
    tolerance: float | None = None
    because: str = ""
    rebuilt: bool = True

    @property
    def path(self) -> str:
        """Its path from the root of the repository."""
        return f"figures/{self.file}"

    @property
    def name(self) -> str:
        """Its name on the command line: ``lessons/04_ddim``."""
        return str(PurePosixPath(self.file).with_suffix(""))

    @property
    def folder(self) -> str:
        """Its folder in ``figures/``; ``.`` at the top."""
        return str(PurePosixPath(self.file).parent)


def read_manifest(root: Path = ROOT) -> list[Figure]:
    """Read and check every entry; raises ``ValueError`` for a fault, or for a picture without an entry."""
    source = root / MANIFEST
    if not source.is_file():
        raise FileNotFoundError(f"There is no {MANIFEST}: it lists every figure with the command that makes it.")
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{MANIFEST} is not valid TOML: {error}.") from error
    if unknown := sorted(set(tables) - {"figures", "defaults", "inputs"}):
        raise ValueError(f"{MANIFEST} has tables [figures], [defaults] and [inputs]; got {unknown[0]!r}.")
    defaults, lists, entries = (tables.get(key, {}) for key in ("defaults", "inputs", "figures"))
    figures = [_figure(file, entry, defaults, lists) for file, entry in entries.items()]
    for figure in figures:
        if not figure.rebuilt and not (root / figure.path).is_file():
            raise _fault(figure.file, "it is not there, and rebuilt = false says that no command here makes it.")
        if figure.rebuilt:
            input_files(figure, root)
    if missing := unlisted(figures, root):
        told = ", ".join(f"{file} ({where})" for file, where in missing.items())
        raise ValueError(f'{MANIFEST} does not list {told}: give each a table [figures."..."] with shows and paper.')
    return figures


def _fault(file: str, what: str) -> ValueError:
    return ValueError(f"{MANIFEST}, {file}: {what}")


def near(name: str, names: Iterable[str]) -> str:
    """Say which known names are like an unknown one; if none is, list them all."""
    names = list(names)
    like = near_names(name, names)
    return f"did you mean {' or '.join(map(repr, like))}?" if like else f"there are {', '.join(names)}."


def _figure(file: str, entry: object, defaults: Mapping[str, dict], lists: Mapping[str, list[str]]) -> Figure:
    """Apply the defaults, fill in the names, and check each field."""
    given = [*(said for pattern, said in defaults.items() if fnmatchcase(file, pattern)), entry]
    if not all(isinstance(one, dict) for one in given) or not PICTURE.fullmatch(f"figures/{file}"):
        raise _fault(file, 'an entry is a table with the picture\'s path in figures/, like [figures."lessons/a.webp"].')
    stem, fields = PurePosixPath(file).stem, {key: value for one in given for key, value in one.items()}
    for key, value in fields.items():
        if key not in KINDS:
            raise _fault(file, f"it has no field {key!r}; {near(key, KINDS)}")
        right = isinstance(value, KINDS[key]) and (key == "rebuilt" or not isinstance(value, bool))
        if not right or (key == "inputs" and not all(isinstance(one, str) for one in value)):
            raise _fault(file, f"{key} = {value!r} is of the wrong type.")
    if lacking := [key for key in ("shows", "command", "paper") if not fields.get(key)]:
        raise _fault(file, f"neither it nor a default says {' and '.join(lacking)}.")
    patterns = [one for name in fields.get("inputs", []) for one in lists.get(name, [name])]
    if not patterns and fields.get("rebuilt", True):
        raise _fault(file, "without inputs nobody can tell when it is out of date; list the files it depends on.")
    words = {"stem": stem, "number": stem.split("_")[0], "protocol": stem.split("-")[0]}
    try:
        command, *inputs = (text.format(**words) for text in (fields["command"], *patterns))
    except (KeyError, IndexError, ValueError) as error:
        raise _fault(file, f"command and inputs may hold {{stem}}, {{number}}, {{protocol}}; not {error}.") from error
    if fields.get("rebuilt", True) and not command.startswith("python "):
        raise _fault(file, f"a command begins with 'python ', for the interpreter at hand; this one is {command!r}.")
    tolerance = _tolerance(file, fields.get("tolerance", BYTES), fields.get("because", ""))
    rest = {key: fields[key] for key in ("shows", "paper", "because", "rebuilt") if key in fields}
    return Figure(file, command=command, inputs=tuple(inputs), tolerance=tolerance, **rest)


def _tolerance(file: str, given: str | float, because: str) -> float | None:
    if given == BYTES:
        return None
    if isinstance(given, str) or not 0 <= given <= 255:
        raise _fault(file, f"tolerance is {BYTES!r} or a mean difference of 0 to 255 grey levels, not {given!r}.")
    if not because:
        raise _fault(file, f"a tolerance of {given:g} grey levels needs a reason; give it as `because`.")
    return float(given)


def input_files(figure: Figure, root: Path = ROOT) -> list[Path]:
    """Every file that a figure depends on, each once, sorted by name, without hidden files and bytecode.

    Patterns add their files one after the other; one that begins with ``!`` takes them away again.
    """
    found: set[Path] = set()
    for given in figure.inputs:
        pattern = given.removeprefix("!")
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise _fault(figure.file, f"inputs are paths inside the repository, which {pattern!r} is not.")
        matches = [path for match in root.glob(pattern) for path in ([match] if match.is_file() else match.rglob("*"))]
        kept = {path for path in matches if path.is_file() and not _hidden(path.relative_to(root))}
        if not kept:
            raise _fault(figure.file, f"no file is or matches its input {pattern!r}.")
        found = found - kept if given.startswith("!") else found | kept
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def unlisted(figures: Iterable[Figure], root: Path = ROOT) -> dict[str, str]:
    """Pictures without an entry that README or a notebook shows, or that lie in ``figures/``; and where they are."""
    listed, found = {figure.file for figure in figures}, {}
    for page in [root / "README.md", *sorted((root / "notebooks").rglob("*.ipynb"))]:
        if page.is_file() and not _hidden(page.relative_to(root)):
            for file in PICTURE.findall(page.read_text(encoding="utf-8")):
                found.setdefault(file, f"shown in {page.relative_to(root).as_posix()}")
    for path in sorted((root / "figures").rglob("*")):
        if PICTURE.fullmatch(path.relative_to(root).as_posix()):
            found.setdefault(path.relative_to(root / "figures").as_posix(), "in figures/")
    return {file: where for file, where in found.items() if file not in listed}


def choose(figures: Iterable[Figure], names: Iterable[str]) -> list[Figure]:
    """Pick figures by name, file or folder, or all if nothing is named; ``ValueError`` for an unknown name."""
    figures, chosen = list(figures), set()
    for given in names:
        name = given.removeprefix("figures/").rstrip("/")
        hits = {one.file for one in figures if name in (one.name, one.file, one.folder, *_last(one))}
        if not hits:
            known = dict.fromkeys(word for one in figures for word in (one.name, one.folder, _last(one)[0]))
            raise ValueError(f"No figure is named {given!r}; {near(name, known)}")
        chosen |= hits
    return [figure for figure in figures if figure.file in chosen] if chosen else figures


def _last(figure: Figure) -> tuple[str, str]:
    path = PurePosixPath(figure.file)
    return path.stem, path.name
