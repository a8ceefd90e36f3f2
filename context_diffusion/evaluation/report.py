"""What a protocol hands back: numbers with intervals and aims, notes, and pictures; printed and written to disk."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from ..metrics import Estimate
from ..paths import written_whole
from .sheets import save_sheet


@dataclass(frozen=True)
class Line:
    """One number of the table; ``aim`` is what it should reach at least (or at most)."""

    name: str
    estimate: Estimate
    aim: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value reaches its aim; None where there is none."""
        if self.aim is None:
            return None
        return self.estimate.value <= self.aim if self.at_most else self.estimate.value >= self.aim

    def __str__(self) -> str:
        if self.aim is None:
            return f"{self.estimate}"
        sign = "at most" if self.at_most else "at least"
        return f"{self.estimate}  aim: {sign} {self.aim:g}, {'met' if self.met else 'missed'}"


@dataclass
class Report:
    """Gathers the lines, notes and sheets of one protocol."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sheets: dict[str, Image.Image] = field(default_factory=dict)

    def add(
        self, name: str, estimate: Estimate, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Add a number, with its aim if it has one."""
        self.lines.append(Line(name, estimate, at_least if at_most is None else at_most, at_most is not None))

    def table(self) -> str:
        """Lay the numbers out as text: name, value, standard error, 95 % interval, n, aim."""
        width = max((len(line.name) for line in self.lines), default=0)
        rows = [f"  {line.name:<{width}}  {line}" for line in self.lines]
        return "\n".join([*rows, *(f"  note: {note}" for note in self.notes)])

    def numbers(self) -> list[dict]:
        """List every number for JSON; what is not finite becomes null."""
        listed = []
        for line in self.lines:
            values = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(line.estimate).items()
            }
            aim = {} if line.aim is None else {"at_most" if line.at_most else "at_least": line.aim, "met": line.met}
            listed.append({"name": line.name, **values, **aim})
        return listed

    def write(self, folder: Path, name: str, about: dict) -> list[Path]:
        """Write ``<name>.json`` and the sheets ``<name>-<sheet>.webp``, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [save_sheet(image, folder / f"{name}-{key}.webp") for key, image in self.sheets.items()]
        record = {**about, "pictures": [path.name for path in paths], "notes": self.notes, "numbers": self.numbers()}
        target = folder / f"{name}.json"
        with written_whole(target) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        return [target, *paths]
