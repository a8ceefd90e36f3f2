"""Rebuild the figures whose inputs have changed, or check that every figure still comes out as committed.

python -m experiments.publishing.manifest                     rebuilds what has changed (`make figures`)
python -m experiments.publishing.manifest lessons demo        of these, what has changed
python -m experiments.publishing.manifest --all               everything, changed or not
python -m experiments.publishing.manifest --check             rebuilds into build/figures/ and compares
python -m experiments.publishing.manifest --accept            takes the committed pictures as they are
python -m experiments.publishing.manifest --list              a table of all figures, in Markdown

`figures/manifest.toml` lists the figures; `figures/manifest.lock.json` keeps a digest of what each was made from. Stop
it at any time: what is finished is kept. The exit status is 1 if a command fails or a picture is outside its tolerance.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, written_whole
from context_diffusion.images import load_image

from .entries import Figure, choose, input_files, read_manifest

LOCK = "figures/manifest.lock.json"
COMMAND = "python -m experiments.publishing.manifest"
SNIFFED = 8000  # bytes in which git, too, looks for a zero


def content(path: Path) -> bytes:
    """What counts in a file: all but the kind of line endings, and in a notebook only the code cells and their tags.

    So a corrected sentence or a saved output rebuilds nothing. A file is text if no zero byte is near its beginning.
    """
    raw = path.read_bytes()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(raw)["cells"] if cell["cell_type"] == "code"]
        kept = [["".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells]
        return json.dumps(kept).encode()
    return raw if b"\0" in raw[:SNIFFED] else raw.replace(b"\r\n", b"\n")


def digest(figure: Figure, root: Path = ROOT, known: dict[Path, str] | None = None) -> str:
    """SHA-256 over the figure's command and the names and contents of its inputs; ``known`` keeps those of files."""
    known, lines = {} if known is None else known, [figure.command]
    for path in input_files(figure, root):
        if path not in known:
            known[path] = hashlib.sha256(content(path)).hexdigest()
        lines.append(f"{known[path]} {path.relative_to(root).as_posix()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_lock(root: Path = ROOT) -> dict[str, str]:
    """The digest with which each figure was last built, by file; empty if there is no lock."""
    file = root / LOCK
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{LOCK} is not valid JSON ({error}); delete it, or restore it from git.") from error


def record(digests: dict[str, str], figures: Iterable[Figure], root: Path = ROOT) -> None:
    """Write digests into the lock, and drop those of figures that are no longer listed."""
    files = {figure.file for figure in figures if figure.rebuilt}
    kept = {file: one for file, one in sorted((read_lock(root) | digests).items()) if file in files}
    with written_whole(root / LOCK) as temporary:
        temporary.write_bytes((json.dumps(kept, indent=1) + "\n").encode())


def changed(figures: Iterable[Figure], root: Path = ROOT) -> list[Figure]:
    """The figures that are not there, or whose inputs are no longer those that they were made from."""
    lock, known = read_lock(root), {}
    return [
        one for one in figures
        if not (root / one.path).is_file() or lock.get(one.file) != digest(one, root, known)
    ]  # fmt: skip


def jobs(due: Iterable[Figure], figures: Iterable[Figure]) -> list[list[Figure]]:
    """Group figures by command and folder: if one is due, its command runs once and makes all of them."""
    groups: dict[tuple[str, str], list[Figure]] = {(figure.command, figure.folder): [] for figure in due}
    for figure in figures:
        if figure.rebuilt and (figure.command, figure.folder) in groups:
            groups[figure.command, figure.folder].append(figure)
    return list(groups.values())


def make(job: Sequence[Figure], root: Path = ROOT) -> Path:
    """Run the command of a job with ``--out`` on an empty folder in ``build/figures/``, and return that folder.

    Raises ``RuntimeError`` if the command fails, with the end of what it printed, or leaves out a picture.
    """
    inside = f"build/figures/{job[0].name}"  # relative: some commands write their own line into a record
    out = root / inside
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = [sys.executable, *shlex.split(job[0].command)[1:], "--out", inside]
    done = subprocess.run(
        words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise RuntimeError(f"`{job[0].command}` ended with status {done.returncode}:\n{said}")
    if missing := [one.path for one in job if not (out / Path(one.file).name).is_file()]:
        raise RuntimeError(f"`{job[0].command}` ran, and left no {', '.join(Path(one).name for one in missing)}.")
    return out


def rebuild(job: Sequence[Figure], figures: Sequence[Figure], root: Path = ROOT) -> str:
    """Make the figures of a job, put them in place together with their records, and note what they were made from."""
    digests = {one.file: digest(one, root) for one in job}  # taken before: what changes meanwhile is rebuilt next time
    out = make(job, root)
    for path in sorted(path for path in out.iterdir() if path.is_file()):
        with written_whole((root / job[0].path).with_name(path.name)) as temporary:
            shutil.copyfile(path, temporary)
    record(digests, figures, root)
    return "\n".join(f"{one.path}: rebuilt" for one in job)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size over pixels, R, G and B; in grey levels, 0 to 255.

    >>> difference(Image.new("RGB", (2, 1), "black"), Image.new("RGB", (2, 1), (0, 3, 0)))
    1.0
    """
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


def compare(figure: Figure, made: Path, root: Path = ROOT) -> tuple[bool, str]:
    """Whether a rebuilt picture matches the committed one as closely as the manifest asks, and a line that says so."""
    committed = root / figure.path
    if not committed.is_file():
        return False, f"{figure.path}: not there, nothing to compare with"
    if committed.read_bytes() == made.read_bytes():
        return True, f"{figure.path}: the same bytes"
    first, second = load_image(committed), load_image(made)
    if first.size != second.size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (first.size, second.size))
        return False, f"{figure.path}: OUTSIDE, sizes {sizes}"
    apart, most = difference(first, second), figure.tolerance
    within = most is not None and apart <= most
    asked = "the same bytes are asked for" if most is None else f"at most {most:g} are asked for"
    return within, f"{figure.path}: {'within' if within else 'OUTSIDE'}, {apart:.3g} grey levels apart; {asked}"


def check(job: Sequence[Figure], root: Path = ROOT) -> tuple[bool, str]:
    """Make the figures of a job elsewhere and compare each: whether all match, and a line for each."""
    out = make(job, root)
    results = [compare(one, out / Path(one.file).name, root) for one in job]
    return all(right for right, _ in results), "\n".join(line for _, line in results)


def table(figures: Iterable[Figure]) -> str:
    """All figures in Markdown: what each shows, its command, its paper's figure, how close a rebuilt one must be."""
    rows = ["| figure | shows | command | paper | rebuilt within |", "|---|---|---|---|---|"]
    for one in figures:
        within = "the same bytes" if one.tolerance is None else f"{one.tolerance:g} of 255 grey levels: {one.because}"
        within = within if one.rebuilt else "not rebuilt here"
        rows.append(f"| `{one.path}` | {one.shows} | `{one.command}` | {one.paper} | {within} |")
    return "\n".join(rows)


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = Parser(COMMAND, None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures or folders of them (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help="rebuild also what has not changed")
    how.add_argument("--check", action="store_true", help="rebuild into build/figures/ and compare; change nothing")
    how.add_argument(
        "--accept",
        action="store_true",
        help="rebuild nothing: take the committed pictures as they are, with today's inputs as theirs",
    )
    how.add_argument("--list", action="store_true", help="print the table of figures")
    return parser


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Do what was asked for; return 0 if all of it went well."""
    parser = build_parser()
    asked = parser.parse_args(arguments)
    try:
        figures = read_manifest(root)
        chosen = choose(figures, asked.names)
        if asked.list:
            print(table(chosen))
            return 0
        ours = [figure for figure in chosen if figure.rebuilt]
        if asked.accept:
            return accept(ours, figures, root)
        due = ours if asked.all or asked.check else changed(ours, root)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    apart = f" ({len(chosen) - len(ours)} more come from training)" if len(chosen) > len(ours) else ""
    print(
        f"{len(due)} of {len(ours)} figure(s) to make{apart}{': ' if due else ''}{', '.join(one.name for one in due)}"
    )
    try:
        return work(jobs(due, due if asked.check else figures), figures, root, checking=asked.check)
    except KeyboardInterrupt:
        print("Stopped. What is finished is kept; the same command resumes from there.")
        return 130


def accept(chosen: Sequence[Figure], figures: Sequence[Figure], root: Path = ROOT) -> int:
    """Note today's inputs for the pictures that are there, without making any; return 1 if one is not there."""
    known, there = {}, [figure for figure in chosen if (root / figure.path).is_file()]
    record({figure.file: digest(figure, root, known) for figure in there}, figures, root)
    print(f"{len(there)} of {len(chosen)} figure(s) taken as they are -> {LOCK}")
    return int(len(there) < len(chosen))


def work(todo: Sequence[list[Figure]], figures: Sequence[Figure], root: Path, *, checking: bool) -> int:
    """Do each job and say what came of it, also after a failure; return 1 if there was one."""
    failed = False
    with tqdm(todo, unit="command", disable=not todo) as bar:
        for job in bar:
            bar.set_description(job[0].name)
            try:
                right, said = check(job, root) if checking else (True, rebuild(job, figures, root))
            except (RuntimeError, ValueError) as error:
                right, said = False, str(error)
            failed |= not right
            bar.write(said)
    return int(failed)


if __name__ == "__main__":
    sys.exit(run_command(main))
