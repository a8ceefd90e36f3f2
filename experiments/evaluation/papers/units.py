"""Work that can be stopped, taken up again and split: unit by unit, every picture and score written as it is made.

A unit's pictures depend on its seeds alone, so it does not matter which process draws them, or after how many
interruptions. Folders are named after what their content depends on: ``pictures-<digest>`` after the model and the
settings that draw, ``scores-<digest>`` inside it after the networks that score. Better weights get a new folder, and
a new scorer reads the old pictures.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.files import written_whole
from context_diffusion.metrics import Estimate, estimate_difference, estimate_mean, estimate_rate

from ..report import Report

Scores = dict[str, list[float]]
RATES = ("object", "style", "leakage")  # scores that are 0 or 1: their means stay in [0, 1], and so do the intervals


@dataclass(frozen=True)
class Unit:
    """Pictures that are drawn together: the setting (a row of the table), which set or reference, which seed."""

    setting: str
    index: int
    seed: int = 0

    @property
    def path(self) -> str:
        """Where it goes: ``"without-adain/007-2"``."""
        return f"{re.sub('[^a-z0-9.]+', '-', self.setting.lower()).strip('-')}/{self.index:03d}-{self.seed}"


@runtime_checkable
class PaperProtocol(Protocol):
    """What a protocol offers."""

    name: str

    def about(self) -> Mapping[str, object]:
        """Say what the pictures depend on, as JSON; ``"scorers"`` is what the scores depend on besides."""
        ...

    def units(self) -> Sequence[Unit]:
        """List the work in the order it is done."""
        ...

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the pictures of a unit."""
        ...

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score them: a list of numbers under each score's name."""
        ...

    def report(self, results: "Results") -> Report:
        """Turn the scores of all units into tables and figures."""
        ...


class Results:
    """The scores of all units, and their pictures where a figure asks for them."""

    def __init__(self, scores: Mapping[Unit, Scores], folder: Path):
        self.scores, self._folder = scores, folder

    def pictures(self, unit: Unit) -> list[Image.Image]:
        """Read the pictures of a unit."""
        return _read(self._folder, unit)

    def of(self, setting: str) -> dict[Unit, Scores]:
        """Pick the units of one setting, in order."""
        return {unit: scores for unit, scores in self.scores.items() if unit.setting == setting}

    def values(self, setting: str, score: str) -> tuple[list[float], list[int]]:
        """List all numbers of a score under a setting, and beside each the index of its set, to be resampled by."""
        pairs = [(value, unit.index) for unit, scores in self.of(setting).items() for value in scores.get(score, ())]
        return [value for value, _ in pairs], [index for _, index in pairs]

    def estimates(self, setting: str, scores: Sequence[str]) -> dict[str, Estimate]:
        """Estimate every score that was measured under a setting; the index is what is resampled."""
        measured = {score: self.values(setting, score) for score in scores}
        kinds = {score: estimate_rate if score in RATES else estimate_mean for score in scores}
        return {score: kinds[score](*found) for score, found in measured.items() if found[0]}

    def difference(self, first: str, second: str, score: str) -> Estimate | None:
        """Estimate ``first - second``, paired unit by unit; None where the score was not measured."""
        (a, indices), (b, _) = self.values(first, score), self.values(second, score)
        return estimate_difference(a, b, indices) if a else None

    def csv(self) -> str:
        """One line for each unit: setting, index, seed, and the mean of each score over the unit's pictures."""
        names = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["setting", "index", "seed", *names])
        for unit, scores in self.scores.items():
            means = [f"{sum(scores[n]) / len(scores[n]):.5g}" if scores.get(n) else "" for n in names]
            writer.writerow([unit.setting, unit.index, unit.seed, *means])
        return out.getvalue()


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
    """Draw and score what is not there yet of this process's units; the results once those of *all* are there.

    With several processes, on one machine or on several that share ``out``, each takes every WORLD_SIZE-th unit; those
    that finish before the last get None. Interrupt at any time: the next call goes on.
    """
    pictures, scores = place(protocol, out)
    units = list(protocol.units())
    if len({unit.path for unit in units}) != len(units):
        raise ValueError(f"Two units of {protocol.name} would be written to one place.")
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
    return Results({unit: json.loads((scores / f"{unit.path}.json").read_text()) for unit in units}, pictures)


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
