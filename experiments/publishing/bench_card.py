"""Write the page of the bench for style methods, and its short table in README, from the records.

    python -m experiments.publishing.bench_card        # -> docs/bench.md, README.md

Every number comes from ``figures/evaluation/methods*`` and ``figures/offline/reader*``; run
``python -m experiments.evaluation methods --test`` and ``python -m experiments.evaluation reader`` first.
"""

import csv
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT, check_output, written_whole
from context_diffusion.loading import read_settings

from ..evaluation.recorded import EVALUATION
from ..evaluation.styles import example, scores
from ..evaluation.styles import methods as m
from ..evaluation.styles.comparison import COSTS, REAL
from ..evaluation.styles.held_out import HELD_OUT
from ..evaluation.styles.scores import CHEATED, HIGHER, LOWER, TO_PASS

PAGE, README = ROOT / "docs" / "bench.md", ROOT / "README.md"
BEGIN, END = "<!-- python -m experiments.publishing.bench_card -->\n", "<!-- end of the bench -->\n"
ASKED = {  # score -> what it asks, and against which truth
    "passes": ("is a picture like real further scenes in all of the next?", f"object, style, {', '.join(TO_PASS)}"),
    "object": ("is the prompt's object there?", "the prompt; seen by the judge"),
    "background": ("and its background?", "the prompt; seen by the judge"),
    "sun": ("a sun where one is asked for, and none elsewhere?", "the prompt; seen by the reader"),
    "style": ("is it in the named style?", "the style of the references' draw; seen by the judge"),
    "slot palette": ("does each part have its colour: sky, ground, object, ...?", "the references' slots, in Delta E"),
    "texture": ("are period, angle, weight and strength the references'?", "the draw's parameters, in deviations"),
    "leakage": ("does it show a reference's object instead of its own?", "the references' objects; seen by the judge"),
    "pixel copy": ("how much of a reference's pixels is in it?", "0: real further scenes, 1: the reference itself"),
    "layout copy": ("how much of its layout, whatever the colours?", "0: real further scenes, 1: the reference itself"),
    "diversity of layouts": ("do the pictures of a task differ?", "1: as much as real further scenes do"),
    "softness": ("are edges softer or harder?", "than in real further scenes, in doublings"),
}
SHOWN = ("passes", "object", "style", "slot palette", "texture", "leakage", "layout copy", "diversity of layouts")
BRIEF = ("passes", "object", "slot palette", "texture", "layout copy")
BRIEF_ROWS = (m.PLAIN, m.NOISED, m.SHIFT, m.NVQG, m.CONTEXTS, m.LORA, m.COLOUR, m.NEAR, REAL)
GUESSED = 0.87  # deviations that a guess of the mean is off, as `training.texture` has it

Rows = dict[str, dict[str, dict[str, str]]]  # row -> score -> value, low, high, n

TEXT = """\
# The bench for style methods

Which method takes over a reference's colours and texture, which only copies it, and what does each cost? Every method
gets the same prompts, references and noise. The references are scenes of the offline world, so it is known how each was
drawn: where every colour is, with which texture, and what else there is in the same draw of the style.

```bash
python -m experiments.evaluation methods                                   # the development set: tune on this
python -m experiments.evaluation methods --method mine.py:tinted           # your method beside the others
python -m experiments.evaluation methods --references FOLDER --model sdxl  # your own pictures, another model
python -m experiments.evaluation methods --test                            # the held-out set: the table below
```

Written by `python -m experiments.publishing.bench_card` from [the records](../figures/evaluation/); the table is of
`{command}`. [Lesson 15](../notebooks/15_bench.ipynb) explains how to read it.

## What is measured, and against which truth

Two rows need no method: *plain* looks at no reference, and *real scenes* are the prompts drawn by the world itself in
the references' own draw, which a perfect method would reach. They are the two ends of every scale.

{asked}

Two small networks do the seeing; both are trained on real scenes alone, apart from all that draws. The judge names
object and background ([its accuracy](../data/checkpoints/tiny-scenes/README.md)). The reader finds the slots of the
palette and the numbers of the texture. Its own error on unseen scenes, where guessing the mean is {guessed} deviations
off, is what no method can beat:

{reader}

{unread}

`tests/test_bench_scores.py` holds every score to what it claims, on scenes that are known: it grows with the truth that
it measures, and stays where only colours, textures or places change that it does not measure; and real scenes beat each
cheat in the scores that are there to catch it.

## The table

{notes}. Each value stands with its 95 % interval.

{table}

[All scores](../figures/evaluation/methods-scores.md), [task by task](../figures/evaluation/methods-units.csv).

![What methods take over from references, and what they copy and break](../figures/evaluation/methods-points.webp)

![Trade-offs; the methods that no other beats in both are filled](../figures/evaluation/methods-pareto.webp)

![The first picture of each task by every method](../figures/evaluation/methods-pictures.webp)

## What is claimed, and what holds here

Paired differences, task by task. A claim holds where the whole interval lies on its side of zero, fails where none of
it does, and is open in between. One that something "keeps" or "does not win" allows for 3 points, or for 0.03 in the
score's own unit: it holds where the interval goes no further than that to the wrong side, and fails where it does and
lies wholly on that side.

{claims}

## What a method costs

Seconds of the processor and bytes of tensors, in one run on one machine, from the references to the pictures. Seconds
are those of a machine; "over plain" may be compared elsewhere.

{costs}

## Your method, in fifteen lines

A method is `method(pipe, task, **sampling)`. `task` has `prompts`, `references`, `captions`, `seeds` and `noise()`; it
returns one picture of each prompt, and leaves the pipeline as it found it. This is the whole of
[`example.py`](../experiments/evaluation/styles/example.py):

```python
{example}
```

`--method mine.py:tinted` puts your row beside the others. What was drawn before is kept: after a first full run only
your row is drawn, and again where its file has changed. `--only tinted` leaves out the others. Your own pictures come
as a folder, each captioned by a text file beside it or in one `captions.toml`:

```toml
prompts = ["a bridge", "a fox"]    # what to draw in every style; may be left out
[captions]
"fuji.png" = "a mountain, woodblock print"
```

Nothing is known of them beyond their pixels, so only scores are left that need no truth.

## How numbers may be compared

- **Within one table**, and better as a paired difference than as two intervals. A method drawn elsewhere is another
  run: draw the rows that it is compared with there as well.
- **With one version of the weights.** `python -m experiments.evaluation methods` prints those of your run; where one
  differs, no number of one table may stand beside a number of the other, only an order. Those of this table:
  {weights}.
- **On one set, in one setting.** The development set is for tuning. The held-out set has other scenes, other seeds and
  two styles that no training saw ({held_out}); a method that was tuned on it has no score
  on it. Steps, guidance and the number of tasks are part of the setting.
- **Between the two ends.** A score beyond that of real scenes is not better than perfect: look for what was copied.
- **With the number of comparisons.** {count} scores of {rows} rows are on record: at 95 %, some differ by chance.
- **Not with SDXL's tables.** The world is small, and a method that works here need not work there, or the reverse.

## Scores that were thrown away

{thrown}

What the papers' scores say of the cheats in this run:

{cheated}
"""


def read_rows(name: str, folder: Path = EVALUATION) -> Rows:
    """Read a table as it was written as CSV: row -> score -> fields; raises ``FileNotFoundError`` where it is not."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name}; `python -m experiments.evaluation` writes it.")
    found: Rows = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["row"], {})[line["score"]] = line
    return found


def table(rows: Mapping[str, Sequence[str]], header: Sequence[str]) -> str:
    """Lay out rows of cells as Markdown."""
    lines = [["", *header], ["---"] * (len(header) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(number: Mapping[str, str] | None, *, spread: bool = True) -> str:
    """Show a value in three digits, with its interval."""
    if number is None:
        return ""
    value, low, high = (shown(number[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if spread and low else value


def shown(number: str) -> str:
    """A number in about three digits; nothing for nothing.

    >>> shown("0.04567"), shown("44.2"), shown("")
    ('0.05', '44.2', '')
    """
    return "" if not number else f"{float(number):.1f}" if abs(float(number)) >= 10 else f"{float(number):.2f}"


def better(score: str) -> str:
    """A heading that says which way is better."""
    way = "higher" if score in HIGHER else "lower" if score in (*LOWER, *COSTS) else ""
    return f"{score} ({way} is better)" if way else score


def scores_table(rows: Rows, names: Sequence[str], columns: Sequence[str], *, spread: bool = True) -> str:
    """Some rows and columns of a table on record."""
    cells = {name: [cell(rows[name].get(score), spread=spread) for score in columns] for name in names if name in rows}
    return table(cells, [better(score) for score in columns])


def asked_table(rows: Rows) -> str:
    """What each score asks, against which truth, and what plain drawing and real scenes have."""
    ends = {score: [cell(rows[name].get(score), spread=False) for name in (m.PLAIN, REAL)] for score in ASKED}
    return table({score: [*words, *ends[score]] for score, words in ASKED.items()},
                 ["it asks", "against", "plain", "real scenes"])  # fmt: skip


def unread(reader: Rows, guess: float = GUESSED) -> str:
    """Say which parameters of which styles are read no better than by guessing."""
    found = [
        f"the {name} of {style}"
        for style, row in reader.items()
        for name, number in row.items()
        if name != "wrong slots" and float(number["high"]) > guess
    ]
    if not found:
        return "Every parameter is read better than by guessing."
    listed = " and ".join(found) if len(found) < 3 else f"{', '.join(found[:-1])} and {found[-1]}"
    return f"It reads {listed} no better than by guessing; that adds about the same error to every method's texture."


def thrown() -> str:
    """What the scores' own module says was thrown away."""
    _, _, said = inspect.getdoc(scores).partition("Thrown away, ")
    return "Thrown away, " + said.strip().replace("``", "`")


def cheated(papers: Rows) -> str:
    """What cheats and real scenes have of the scores that papers use."""
    return scores_table(papers, (m.PLAIN, m.NOISED, m.COLOUR, m.NEAR, REAL), CHEATED)


def page(folder: Path = EVALUATION) -> str:
    """The page's text."""
    record, rows = read_settings(folder / "methods.json"), read_rows("methods-scores", folder)
    reader = read_rows("reader-styles", ROOT / "figures" / "offline")
    told = {head: rest for head, _, rest in (note.partition(": ") for note in record["notes"])}
    claims = {one["claim"]: [one["verdict"], cell(words(one))]
              for one in record["claims"]}  # fmt: skip
    return TEXT.format(
        command=record["command"],
        asked=asked_table(rows),
        reader=scores_table(reader, list(reader), columns(reader), spread=False),
        guessed=GUESSED,
        unread=unread(reader),
        notes=record["notes"][0][0].upper() + record["notes"][0][1:],
        table=scores_table(rows, list(rows), SHOWN),
        claims=table(claims, ["verdict", "difference"]),
        costs=scores_table(read_rows("methods-costs", folder), list(rows), COSTS),
        example=inspect.getsource(example).strip(),
        weights=told["weights"],
        held_out=" and ".join(HELD_OUT),
        count=len(columns(rows)),
        rows=len(rows),
        thrown=thrown(),
        cheated=cheated(read_rows("methods-papers", folder)),
    )


def words(claim: Mapping) -> dict[str, str]:
    """The numbers of a claim on record, as a table's CSV has them."""
    return {key: "" if claim[key] is None else str(claim[key]) for key in ("value", "low", "high")}


def columns(rows: Rows) -> list[str]:
    """Every score that any row has, in order."""
    return list(dict.fromkeys(score for row in rows.values() for score in row))


def brief(folder: Path = EVALUATION) -> str:
    """The short table of README: some methods, some scores, and what they cost."""
    rows, costs = read_rows("methods-scores", folder), read_rows("methods-costs", folder)
    merged = {name: {**row, **costs.get(name, {})} for name, row in rows.items()}
    return scores_table(merged, BRIEF_ROWS, (*BRIEF, "over plain"), spread=False)


def with_brief(text: str, inserted: str) -> str:
    """README with the short table between its two marks; raises ``ValueError`` where they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has the short table between {BEGIN.strip()} and {END.strip()}; one is not there.")
    return f"{before}{begin}{inserted}\n{end}{after}"


def main() -> None:
    """Write the page, and the table in README."""
    for target, text in ((PAGE, page()), (README, with_brief(README.read_text(encoding="utf-8"), brief()))):
        check_output(target)
        with written_whole(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_command(main))
