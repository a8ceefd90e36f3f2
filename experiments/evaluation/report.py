"""What a protocol hands back, to be printed and written: numbers with intervals and aims, notes, tables, pictures."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from context_diffusion.files import written_whole
from context_diffusion.metrics import Estimate

from .claims import Claim
from .sheets import save_sheet
from .tables import Table

TABLE_FORMATS = {"md": "markdown", "csv": "csv", "tex": "latex"}


@dataclass(frozen=True)
class Line:
    """One number of the table; ``aim`` is the least (or, with ``at_most``, the most) that it should be."""

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
    """Gathers what one protocol found; ``units`` are the scores of all its units as CSV, where it works by units."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sheets: dict[str, Image.Image] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    units: str = ""

    def add(
        self, name: str, estimate: Estimate, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Add a number, with its aim if it has one."""
        self.lines.append(Line(name, estimate, at_least if at_most is None else at_most, at_most is not None))

    def add_table(self, key: str, table: Table) -> None:
        """Add a table, and each of its numbers as a line."""
        self.tables[key] = table
        for row, scores in table.rows.items():
            for score, estimate in scores.items():
                self.add(f"{row}: {score}", estimate)

    def table(self) -> str:
        """Lay the numbers out as text: name, value, standard error, 95 % interval, n, aim."""
        width = max((len(line.name) for line in self.lines), default=0)
        rows = [f"  {line.name:<{width}}  {line}" for line in self.lines]
        claimed = [f"  {claim}" for claim in self.claims]
        return "\n".join([*rows, *claimed, *(f"  note: {note}" for note in self.notes)])

    def numbers(self) -> list[dict]:
        """List every number for JSON; what is not finite becomes null."""
        listed = []
        for line in self.lines:
            values = finite(line.estimate)
            aim = {} if line.aim is None else {"at_most" if line.at_most else "at_least": line.aim, "met": line.met}
            listed.append({"name": line.name, **values, **aim})
        return listed

    def write(self, folder: Path, name: str, about: dict) -> list[Path]:
        """Write everything: ``about`` and the numbers to ``<name>.json``, the scores of units to ``<name>-units.csv``.

        Sheets go to ``<name>-<sheet>.webp``, tables to ``<name>-<table>.md``, ``.csv`` and ``.tex``. Each file is there
        whole or not at all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = [save_sheet(image, folder / f"{name}-{key}.webp") for key, image in self.sheets.items()]
        record = {**about, "pictures": [path.name for path in paths], "notes": self.notes, "numbers": self.numbers()}
        if self.claims:
            record["claims"] = [
                {"claim": c.text, "verdict": c.verdict, "side": c.side, **finite(c.difference)} for c in self.claims
            ]
        texts = {folder / f"{name}.json": json.dumps(record, indent=1, allow_nan=False) + "\n"}
        for key, table in self.tables.items():
            texts |= {folder / f"{name}-{key}.{end}": getattr(table, how)() for end, how in TABLE_FORMATS.items()}
        if self.units:
            texts[folder / f"{name}-units.csv"] = self.units
        for path, text in texts.items():
            with written_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return [*texts, *paths]


def finite(estimate: Estimate) -> dict:
    """The fields of an estimate for JSON; what is not finite becomes null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(estimate).items()
    }
