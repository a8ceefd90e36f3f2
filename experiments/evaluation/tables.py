"""Tables of estimates in Markdown, CSV and LaTeX, with the published numbers in a column next to ours."""

import csv
import io
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from context_diffusion.metrics import Estimate

PUBLISHED = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Published:
    """What a paper printed: where, and ``numbers[row][score]`` verbatim, with its spread.

    ``compare`` says what may be compared with our numbers, and what may not.
    """

    source: str = ""
    numbers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    compare: str = ""

    def __str__(self) -> str:
        return f"Published: {self.source}. {self.compare}".strip() if self.source else ""


def published(name: str) -> Published:
    """Read the published numbers of a table from ``published.toml``; nothing where no paper has any."""
    entry = tomllib.loads(PUBLISHED.read_text(encoding="utf-8")).get(name)
    return Published(entry["source"], entry["rows"], entry["compare"]) if entry else Published()


@dataclass(frozen=True)
class Table:
    """Rows of estimates; ``lower`` names the columns in which lower is better."""

    title: str
    rows: Mapping[str, Mapping[str, Estimate]]
    published: Published = field(default_factory=Published)
    lower: tuple[str, ...] = ()
    digits: int = 3

    @property
    def columns(self) -> list[str]:
        """Every score that any row has, in order."""
        return list(dict.fromkeys(score for row in self.rows.values() for score in row))

    @property
    def what(self) -> str:
        """What a cell says; a single unit says nothing about spread."""
        alone = any(not math.isfinite(e.low) for row in self.rows.values() for e in row.values())
        return f"value and 95 % interval{'; of one unit, the value alone' if alone else ''}"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and body; published numbers follow the score that they belong to, or end the row."""
        known = list(dict.fromkeys(score for row in self.published.numbers.values() for score in row))
        header, body = [""], [[name] for name in self.rows]
        for score in self.columns:
            header.append(f"{score} ({'lower' if score in self.lower else 'higher'} is better)")
            for line, row in zip(body, self.rows.values(), strict=True):
                line.append(self.show(row[score]) if score in row else "")
            if score in known:
                self._add_published(score, header, body)
        for score in known:
            if score not in self.columns:
                self._add_published(score, header, body)
        return header, body

    def _add_published(self, score: str, header: list[str], body: list[list[str]]) -> None:
        header.append(f"{score}, published")
        for line in body:
            line.append(self.published.numbers.get(line[0], {}).get(score, ""))

    def show(self, estimate: Estimate) -> str:
        """Value and 95 % interval; one unit has no interval."""
        value, low, high = (f"{number:.{self.digits}f}" for number in (estimate.value, estimate.low, estimate.high))
        return f"{value} [{low}, {high}]" if math.isfinite(estimate.low) else value

    def markdown(self) -> str:
        """The table for a page."""
        header, body = self.cells()
        lines = [header, ["---"] * len(header), *body]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.title}: {self.what}.\n\n{text}\n\n{self.published}".rstrip() + "\n"

    def csv(self) -> str:
        """One line for each number: row, score, value, standard_error, low, high, n, published."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "score", "value", "standard_error", "low", "high", "n", "published"])
        for name, row in self.rows.items():
            for score, e in row.items():
                spread = [f"{x:.6g}" if math.isfinite(x) else "" for x in (e.standard_error, e.low, e.high)]
                theirs = self.published.numbers.get(name, {}).get(score, "")
                writer.writerow([name, score, f"{e.value:.6g}", *spread, e.n, theirs])
        return out.getvalue()

    def latex(self) -> str:
        """The table for a paper (needs booktabs)."""
        header, body = self.cells()
        lines = [" & ".join(map(escaped, line)) + r" \\" for line in (header, *body)]
        rules = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        inner = "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", *rules, r"\end{tabular}"])
        caption = rf"\caption{{{escaped(f'{self.title}: {self.what}. {self.published}'.rstrip())}}}"
        return "\n".join([r"\begin{table}", caption, inner, r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Guard what LaTeX would read as a command.

    >>> print(escaped("50 % of a_b"))
    50 \\% of a\\_b
    """
    guarded = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(guarded.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
