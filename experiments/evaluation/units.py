"""Work that can be stopped, resumed and split: unit by unit, every picture and score is written as it is made.

A unit's pictures depend on its seeds alone, so it does not matter which process draws them, or after how many
interruptions. Folders are named after what their content depends on: ``pictures-<digest>`` after the model and the
settings that draw, ``scores-<digest>`` inside it after the networks that score. Better weights get a new folder, and
a new scorer reads the old pictures.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.files import written_whole

from .report import Report
from .results import Results, Scores, Unit


@runtime_checkable
class PaperProtocol(Protocol):
    """What a protocol offers that works by units."""

    name: str

    def about(self) -> Mapping[str, object]:
        """What the pictures depend on, as JSON; under ``"scorers"``, what the scores depend on as well."""
        ...

    def units(self) -> Sequence[Unit]:
        """The work, in the order in which it is done."""
        ...

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the pictures of a unit."""
        ...

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score them: a list of numbers under each score's name."""
        ...

    def report(self, results: Results) -> Report:
        """Turn the scores of all units into tables and figures."""
        ...


def carry_out(protocol: PaperProtocol, out: Path) -> Report | None:
    """Work through a protocol and report; None while other processes are still at work on their shares."""
    results = work(protocol, out)
    if results is None:
        return None
    report = protocol.report(results)
    report.units = results.csv()
    return report


def digest(content: object) -> str:
    """Eight hexadecimal digits of any JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def place(protocol: PaperProtocol, out: Path) -> tuple[Path, Path]:
    """Find the folders of pictures and of scores; each holds an ``about.json`` that says what it depends on."""
    about = dict(protocol.about())
    scorers = about.pop("scorers", {})
    pictures = out / protocol.name / f"pictures-{digest(about)}"
    scores = pictures / f"scores-{digest(scorers)}"
    for folder, content in ((pictures, about), (scores, scorers)):
        if not (folder / "about.json").exists():
            with written_whole(folder / "about.json") as temporary:
                temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return pictures, scores


def share_of_process() -> tuple[int, int]:
    """Rank and number of processes, as ``torchrun`` and ``accelerate launch`` set them; (0, 1) without either."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world:
        raise ValueError(f"RANK counts from 0 up to WORLD_SIZE - 1; here RANK={rank}, WORLD_SIZE={world}.")
    return rank, world


def work(protocol: PaperProtocol, out: Path) -> Results | None:
    """Draw and score those of this process's units that are missing; return the results once *all* units are there.

    With several processes, on one machine or on several that share ``out``, each takes every WORLD_SIZE-th unit; those
    that finish before the last get None. Interrupt it at any time: the next call resumes.
    """
    pictures, scores = place(protocol, out)
    units = list(protocol.units())
    if len({unit.path for unit in units}) != len(units):
        raise ValueError(f"Two units of {protocol.name} would be written to one place: rename their settings.")
    rank, world = share_of_process()
    share = units[rank::world]
    left = [unit for unit in share if not _scored(scores, unit)]
    label = protocol.name if world == 1 else f"{protocol.name} {rank + 1}/{world}"
    with tqdm(total=len(share), initial=len(share) - len(left), desc=label, mininterval=2) as bar:
        for unit in left:
            drawn = _drawn(protocol, pictures, unit)
            with written_whole(scores / f"{unit.path}.json") as temporary:
                temporary.write_text(json.dumps(protocol.score(unit, drawn), allow_nan=False))
            bar.update()
    if not all(_scored(scores, unit) for unit in units):
        return None
    found = {unit: json.loads((scores / f"{unit.path}.json").read_text()) for unit in units}
    return Results(found, partial(_read, pictures))


def _scored(folder: Path, unit: Unit) -> bool:
    return (folder / f"{unit.path}.json").exists()


def _drawn(protocol: PaperProtocol, folder: Path, unit: Unit) -> list[Image.Image]:
    """Read the unit's pictures, or draw and write them; the last file written, ``.txt``, says how many there are."""
    done = folder / f"{unit.path}.txt"
    if not done.exists():
        drawn = protocol.draw(unit)
        for number, picture in enumerate(drawn):
            with written_whole(folder / f"{unit.path}-{number}.png") as temporary:
                picture.save(temporary)
        with written_whole(done) as temporary:
            temporary.write_text(f"{len(drawn)}\n")
    return _read(folder, unit)


def _read(folder: Path, unit: Unit) -> list[Image.Image]:
    count = int((folder / f"{unit.path}.txt").read_text())
    pictures = []
    for number in range(count):
        with Image.open(folder / f"{unit.path}-{number}.png") as file:
            pictures.append(file.convert("RGB"))
    return pictures
