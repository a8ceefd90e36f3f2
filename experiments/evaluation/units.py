"""Work that can be stopped, resumed and split: unit by unit, every picture and score is written as it is made.

A unit's pictures depend on its seeds alone, so it does not matter which process draws them, or after how many
interruptions. Folders are named after what their content depends on: ``pictures-<digest>`` after the model, the row's
own setting and the set's own references, ``scores-<digest>`` inside it after the networks and the code that score
(:mod:`.scoring`). So one more row draws only that row, better weights get new folders, and a new scorer or a corrected
score reads the old pictures. In either, ``<unit>.json`` is the last file written of a unit: it says whose it is, and
what belongs to it. What is damaged, missing or of another unit is told, and made again.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.checks import reason
from context_diffusion.files import written_whole
from context_diffusion.images import load_image

from .report import Report
from .results import Results, Scores, Unit
from .scoring import code_of_scores

Kept = TypeVar("Kept")


@runtime_checkable
class PaperProtocol(Protocol):
    """What a protocol offers that works by units."""

    name: str

    def about(self) -> Mapping[str, object]:
        """What the pictures depend on, as JSON.

        Three names have a meaning of their own: ``"settings"`` holds what the pictures of one setting depend on, by its
        name, ``"sets"`` what those of one set do, a list, which is empty where its number says all, and ``"scorers"``
        what only the scores depend on.
        """
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


def carry_out(protocol: PaperProtocol, out: Path, notes: Sequence[str] = ()) -> Report | None:
    """Work through a protocol and report; None while other processes are still at work on their shares.

    ``notes`` are told before anything is drawn, and again in the report.
    """
    if share_of_process()[0] == 0:
        for note in notes:
            print(f"note: {note}", flush=True)
    results = work(protocol, out)
    if results is None:
        return None
    report = protocol.report(results)
    report.notes += notes
    report.units = results.csv()
    return report


def digest(content: object) -> str:
    """Eight hexadecimal digits of any JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def own(about: Mapping, unit: Unit) -> dict[str, object]:
    """What the pictures of one unit depend on: what all do, its own setting, and its own set.

    >>> own({"model": "m", "settings": {"a": 1, "b": 2}, "sets": ["x", "y"], "scorers": {}}, Unit("b", 0))
    {'model': 'm', 'setting': 2, 'set': 'x'}
    """
    shared = {key: value for key, value in about.items() if key not in ("settings", "sets", "scorers")}
    if unit.setting in about.get("settings", {}):
        shared["setting"] = about["settings"][unit.setting]
    if about.get("sets"):
        shared["set"] = about["sets"][unit.index]
    return shared


class Places:
    """The folders of each unit's pictures and scores; each holds an ``about.json`` that says what it depends on."""

    def __init__(self, protocol: PaperProtocol, out: Path) -> None:
        self.root, self.about, self._written = out / protocol.name, dict(protocol.about()), set()
        self.scorers = {**self.about.get("scorers", {}), "code": code_of_scores(protocol)}

    def pictures(self, unit: Unit) -> Path:
        """The folder of a unit's pictures."""
        about = own(self.about, unit)
        return self._told(self.root / f"pictures-{digest(about)}", about)

    def scores(self, unit: Unit) -> Path:
        """The folder of its scores."""
        return self._told(self.pictures(unit) / f"scores-{digest(self.scorers)}", self.scorers)

    def _told(self, folder: Path, content: object) -> Path:
        file, text = folder / "about.json", json.dumps(content, indent=1, sort_keys=True) + "\n"
        if folder not in self._written and (not file.is_file() or file.read_bytes() != text.encode()):
            with written_whole(file) as temporary:
                temporary.write_text(text)
        self._written.add(folder)
        return folder


def share_of_process() -> tuple[int, int]:
    """Rank and number of processes, as ``torchrun`` and ``accelerate launch`` set them; (0, 1) without either."""
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE are whole numbers, as torchrun sets them: {error}.") from None
    if not 0 <= rank < world:
        raise ValueError(f"RANK counts from 0 up to WORLD_SIZE - 1; here RANK={rank}, WORLD_SIZE={world}.")
    return rank, world


def work(protocol: PaperProtocol, out: Path) -> Results | None:
    """Draw and score those of this process's units that are missing; return the results once *all* units are there.

    With several processes, on one machine or on several that share ``out``, each takes every WORLD_SIZE-th unit; those
    that finish before the last get None. Interrupt it at any time: the next call resumes.
    """
    places = Places(protocol, out)
    units = list(protocol.units())
    if len({unit.path for unit in units}) != len(units):
        raise ValueError(f"Two units of {protocol.name} would be written to one place: rename their settings.")
    rank, world = share_of_process()
    share = units[rank::world]
    left = [u for u in share if not (kept(digests, places.pictures(u), u) and kept(scores_of, places.scores(u), u))]
    label = protocol.name if world == 1 else f"{protocol.name} {rank + 1}/{world}"
    with tqdm(total=len(share), initial=len(share) - len(left), desc=label, mininterval=2) as bar:
        start, few = time.perf_counter(), min(len({unit.setting for unit in share}), len(left) // 2)
        for done, unit in enumerate(left, start=1):
            pictures = places.pictures(unit)
            if not kept(digests, pictures, unit, told=False):
                draw(protocol, pictures, unit)
            scored = check_scores(protocol.score(unit, read_pictures(pictures, unit)), unit)
            write(places.scores(unit), unit, scores=scored)
            bar.update()
            if done == few:  # one of each setting: some cost much more than others
                tqdm.write(f"{label}: {minutes((time.perf_counter() - start) / done * (len(left) - done))} to go")
    found = {unit: kept(scores_of, places.scores(unit), unit) for unit in units}
    if not all(found.values()):
        return None
    return Results(found, lambda unit: read_pictures(places.pictures(unit), unit))


def minutes(seconds: float) -> str:
    """Say roughly how long.

    >>> minutes(20), minutes(700)
    ('less than a minute', 'about 12 minutes')
    """
    return "less than a minute" if seconds < 60 else f"about {seconds / 60:.0f} minutes"


def draw(protocol: PaperProtocol, folder: Path, unit: Unit) -> None:
    """Draw and write the pictures of a unit, then their digests."""
    found = []
    for number, picture in enumerate(protocol.draw(unit)):
        with written_whole(picture_file(folder, unit, number)) as temporary:
            picture.save(temporary)
            found.append(hashlib.sha256(temporary.read_bytes()).hexdigest())
    write(folder, unit, pictures=found)


def write(folder: Path, unit: Unit, **content: object) -> None:
    """Write whose files these are, and what belongs to them."""
    with written_whole(folder / f"{unit.path}.json") as temporary:
        temporary.write_text(json.dumps({"unit": unit.path, **content}, allow_nan=False))


def kept(read: Callable[[Path, Unit], Kept], folder: Path, unit: Unit, *, told: bool = True) -> Kept | None:
    """Read what is kept of a unit; None where nothing is, or where it is damaged, which is ``told``."""
    if not (folder / f"{unit.path}.json").exists():
        return None
    try:
        return read(folder, unit)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        if told:
            tqdm.write(f"{folder / unit.path} is damaged ({reason(error)}): it is made again.")
        return None


def record(folder: Path, unit: Unit) -> dict:
    """Read what is written about a unit; raises ``ValueError`` where it is another's."""
    found = json.loads((folder / f"{unit.path}.json").read_bytes())
    if found["unit"] != unit.path:
        raise ValueError(f"it is {found['unit']}'s")
    return found


def digests(folder: Path, unit: Unit) -> list[str]:
    """The digests of a unit's pictures; raises ``ValueError`` or ``OSError`` where one is not as it was drawn."""
    found = record(folder, unit)["pictures"]
    if not found:
        raise ValueError("it lists no pictures")
    for number, one in enumerate(found):
        if hashlib.sha256(picture_file(folder, unit, number).read_bytes()).hexdigest() != one:
            raise ValueError(f"picture {number} is not the one that was drawn")
    return found


def scores_of(folder: Path, unit: Unit) -> Scores:
    """The scores of a unit; raises ``ValueError`` where there are none, or not only finite numbers."""
    return check_scores(record(folder, unit)["scores"], unit)


def check_scores(found: object, unit: Unit) -> Scores:
    """Refuse what is no mapping from names to lists of finite numbers; a list may be empty, the mapping may not."""
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{unit.path} has no scores")
    for name, values in found.items():
        if not isinstance(values, list) or not all(map(math.isfinite, values)):
            raise ValueError(f"{unit.path} has a {name} that is not finite")
    return found


def read_pictures(folder: Path, unit: Unit) -> list[Image.Image]:
    """Read the pictures of a unit."""
    return [load_image(picture_file(folder, unit, number)) for number in range(len(record(folder, unit)["pictures"]))]


def picture_file(folder: Path, unit: Unit, number: int) -> Path:
    """Where a picture of a unit is."""
    return folder / f"{unit.path}-{number}.png"
