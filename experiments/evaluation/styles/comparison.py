"""Style methods side by side, on references whose truth is known, or on pictures of one's own.

    python -m experiments.evaluation methods                                  # on the development set
    python -m experiments.evaluation methods --method mine.py:method          # one more row; what is there is kept
    python -m experiments.evaluation methods --only NVQG --only mine --method mine.py:mine
    python -m experiments.evaluation methods --references FOLDER --model sd15
    python -m experiments.evaluation methods --test                           # the published table

Every method gets the same prompts, references and seeds (:mod:`.tasks`), and everything it draws is scored against what
the references are known to be (:mod:`.scores`). Two rows are cheats, and one is the truth: real further scenes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from textwrap import shorten

from PIL import Image

from context_diffusion.checks import hint
from context_diffusion.metrics import Estimate, estimate_mean

from ..bench import Bench, foreign
from ..claims import Claim, decide
from ..curves import pareto, points
from ..papers.scorers import drawn_by
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..tables import Table
from ..units import carry_out, share_of_process
from . import methods as m
from .costs import clocked, peak_memory
from .methods import PLAIN, Row, rows
from .own import check_pictures, load_methods, seeded
from .scores import CHEATED, HIGHER, LOWER, StyleScores
from .tasks import Folder, World, counted

REAL = "real scenes, one style draw"
DEVELOPED, TESTED, QUICK = 10, 24, 2  # tasks: each style once, each of twelve twice
SHOWN = 10  # tasks on the sheet of pictures
AFTER_THE_THING = re.compile(r",| (?:in|by|among|under|on|at|with) ")  # of a prompt, as a column's title
POINTS = ("passes", "object", "slot palette", "texture", "layout copy", "defects, DINO")
PAIRS = (("slot palette", "object"), ("texture", "layout copy"), ("seconds a picture", "slot palette"))
COSTS = ("seconds a picture", "over plain", "MB a picture")
OWN_PICTURES = Folder


def run(bench: Bench) -> Report | None:
    """Draw and score every method that was asked for, on the tasks that were asked for."""
    protocol = StyleMethods(bench)
    if share_of_process()[0] == 0:
        print(f"methods: {protocol.asked()}")
    return carry_out(protocol, bench.work, foreign(bench))


class StyleMethods:
    """Tasks x methods."""

    name = "methods"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        full = TESTED if bench.test else DEVELOPED
        self.tasks = (
            Folder(bench.references, bench.limit)
            if bench.references
            else World(bench.first(full, QUICK), test=bench.test)
        )
        self.has_truth = self.tasks.truth(0) is not None
        known = rows(bench, self.tasks.references) | load_methods(bench.methods)
        self.settings = chosen_rows([*known, REAL] if self.has_truth else known, bench.only)
        self.rows = {name: row for name, row in known.items() if name in self.settings}
        self.scores = StyleScores(bench)
        self.model = lru_cache(maxsize=1)(partial(drawn_by, bench))
        self.at_once = min(bench.batch_size, len(self.tasks.task(0).prompts))

    def asked(self) -> str:
        """How much there is to draw, in a line."""
        pictures = sum(len(self.tasks.task(index).prompts) for index in range(self.tasks.count))
        return f"{self.tasks.note()}; {counted(len(self.rows), 'method')}, {len(self.rows) * pictures} pictures in all"

    def about(self) -> dict:
        """The model, what each method is, and what each task shows."""
        return {
            **self.model(),
            "pictures at once": self.at_once,
            "settings": {name: row.about for name, row in self.rows.items()},
            "sets": self.tasks.about(),
            "scorers": self.scores.about(),
        }

    def units(self) -> list[Unit]:
        """Every task by every method, one task after the other."""
        return [Unit(name, index) for index in range(self.tasks.count) for name in self.settings]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the prompts of a task by a method, each from a noise of its own, the same by every method."""
        if unit.setting == REAL:
            return self.tasks.real(unit.index)
        pipe, found = self.bench.pipe, []
        for part in self.tasks.task(unit.index).parts(self.at_once):
            seeded(part)
            drawn = self.rows[unit.setting].draw(pipe, part, **self.bench.sampling)
            found += check_pictures(drawn, unit.setting, part, pipe)
        return found

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score the pictures of one task."""
        task = self.tasks.task(unit.index)
        return self.scores(pictures, task.prompts, task.references, self.tasks.truth(unit.index))

    def report(self, results: Results) -> Report:
        """The table of the truth, that of the papers' scores, and that of costs; what wins what; pictures."""
        table = {name: results.estimates(name, (*HIGHER, *LOWER)) for name in self.settings}
        for name, row in table.items():
            drawn = [picture for unit in results.of(name) for picture in results.pictures(unit)]
            row |= self.scores.of_row(drawn) if self.has_truth else {}
        costs = self.costs(repeats=self.bench.count(5, 1))
        report = Report(notes=[
            f"{self.tasks.note()}; {self.bench.steps} steps, guidance {self.bench.row.guidance_scale:g}; "
            "the task is the unit",
            "seconds: of the processor, from the references to the pictures; MB: of tensors, weights apart",
            weights(self.model()["model"], self.scores.about()), *self.scores.notes(),
        ])  # fmt: skip
        true = {name: {score: e for score, e in row.items() if score not in CHEATED} for name, row in table.items()}
        seen = {name: {score: e for score, e in row.items() if score in CHEATED} for name, row in table.items()}
        lower = (*LOWER, *COSTS, "kernel distance, DINO", "kernel distance, judge")
        report.add_table("scores", Table("Style methods, by what is known of the references", true, lower=lower))
        report.add_table("papers", Table("Style methods, by scores of papers, which cheats win", seen, lower=lower))
        report.add_table("costs", Table("What style methods cost", costs, lower=lower))
        report.claims = claims(results)
        self.add_sheets(report, results, table, costs)
        return report

    def costs(self, repeats: int) -> dict[str, dict[str, Estimate]]:
        """Seconds and memory of each method, for a picture of the first task; the methods take turns."""
        pipe, sampling = self.bench.pipe, self.bench.sampling
        (task, *_), timed = self.tasks.task(0).parts(self.at_once), {PLAIN: Row(m.plain, None)} | self.rows
        spent: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(repeats):
            for name, row in timed.items():
                spent[name].append(clocked(partial(row.draw, pipe, task, **sampling)) / len(task.prompts))
        few = sampling | {"num_inference_steps": min(2, self.bench.steps)}  # what is alive at a time is the same
        found = {}
        for name in self.rows:
            ratios = [own / plain for own, plain in zip(spent[name], spent[PLAIN], strict=True)]
            used = peak_memory(partial(self.rows[name].draw, pipe, task, **few)) / len(task.prompts) / 1e6
            values = (spent[name], ratios, [used])
            found[name] = {key: estimate_mean(one).within(0) for key, one in zip(COSTS, values, strict=True)}
        return found

    def add_sheets(
        self,
        report: Report,
        results: Results,
        table: Mapping[str, Mapping[str, Estimate]],
        costs: Mapping[str, Mapping[str, Estimate]],
    ) -> None:
        """Every score with its interval, what is undominated by what, and the first picture of each task."""
        shown = [score for score in (*HIGHER, *LOWER) if any(score in row for row in table.values())]
        best = [score for score in POINTS if score in shown] or shown[:5]
        report.sheets["points"] = points(table, best)
        whole = {name: {**row, **costs.get(name, {})} for name, row in table.items()}
        pairs = [pair for pair in PAIRS if all(any(score in row for row in whole.values()) for score in pair)]
        if pairs:
            report.sheets["pareto"] = pareto(whole, pairs, lower=(*LOWER, *COSTS))
        numbers = range(min(self.tasks.count, SHOWN))
        pictures = {"reference": [self.tasks.task(i).references[0] for i in numbers]}
        pictures |= {name: [results.pictures(Unit(name, i))[0] for i in numbers] for name in self.settings}
        things = [AFTER_THE_THING.split(self.tasks.task(i).prompts[0])[0] for i in numbers]
        titles = [shorten(thing, 15, placeholder=" ...") for thing in things]
        report.sheets["pictures"] = labelled_sheet(pictures, titles, cell=96)


def weights(drew: Mapping[str, str], scored: Mapping[str, str]) -> str:
    """With which weights the numbers were made, by the digest of each part: others' are numbers of another model.

    >>> weights({"unet": "14eb1d5cc13cada4"}, {"dino": "4e9494a5f934ea8f"})
    'weights: drawn by unet 14eb1d5cc13cada4; scored by dino 4e9494a5f934ea8f'
    """
    told = [", ".join(f"{part} {one}" for part, one in parts.items()) for parts in (drew, scored)]
    return f"weights: drawn by {told[0]}" + (f"; scored by {told[1]}" if told[1] else "")


def chosen_rows(known: Iterable[str], only: Sequence[str]) -> list[str]:
    """The rows that were asked for, all where none was; raises ``FileNotFoundError`` for one that there is not."""
    known = list(known)
    for name in only:
        if name not in known:
            raise FileNotFoundError(
                f"There is no method {name!r} here; there are {', '.join(known)}{hint(name, known)}"
            )
    return [name for name in known if not only or name in only]


def claims(results: Results) -> list[Claim]:
    """What the papers say of their methods, and the bench of its cheats, as paired differences."""
    asked = [
        ("StyleAligned brings colours closer, slot by slot", m.NOISED, PLAIN, "slot palette", "below"),
        ("StyleAligned brings textures closer", m.NOISED, PLAIN, "texture", "below"),
        ("a noised reference keeps the colours of an inverted one", m.NOISED, m.INVERTED, "slot palette", "not above"),
        ("a noised reference keeps the style of an inverted one", m.NOISED, m.INVERTED, "style", "not below"),
        ("a noised reference leaks less than an inverted one", m.NOISED, m.INVERTED, "leakage", "below"),
        ("AdaIN brings colours closer", m.NOISED, m.WITHOUT, "slot palette", "below"),
        ("a shift of log 2 brings colours closer", m.SHIFT, m.NOISED, "slot palette", "below"),
        ("swapped attention brings colours closer than plain", m.SWAP, PLAIN, "slot palette", "below"),
        ("negative queries leak less than swapping alone", m.NVQG, m.SWAP, "leakage", "below"),
        ("NVQG leaks less than StyleAligned", m.NVQG, m.NOISED, "leakage", "below"),
        ("NVQG draws the prompt's object more often than StyleAligned", m.NVQG, m.NOISED, "object", "above"),
        ("NVQG keeps the colours of StyleAligned", m.NVQG, m.NOISED, "slot palette", "not above"),
        ("Only-Style keeps the colours of StyleAligned", m.ONLY, m.NOISED, "slot palette", "not above"),
        ("a very loud reference leaks", m.LOUD, m.NOISED, "leakage", "above"),
        ("Only-Style leaks less where the reference is very loud", m.LOUD_ONLY, m.LOUD, "leakage", "below"),
        ("Only-Style draws the prompt's object more often there", m.LOUD_ONLY, m.LOUD, "object", "above"),
        ("attention to two references is closer than to one", m.BOTH, m.NOISED, "slot palette", "below"),
        ("context tokens are closer than StyleAligned", m.CONTEXTS, m.NOISED, "slot palette", "below"),
        ("a LoRA is closer than StyleAligned", m.LORA, m.NOISED, "slot palette", "below"),
        ("the colour copy wins DINO from StyleAligned", m.COLOUR, m.NOISED, "DINO", "above"),
        ("the colour copy does not win textures", m.COLOUR, m.NOISED, "texture", "not below"),
        ("the near copy loses objects", m.NEAR, PLAIN, "object", "below"),
        ("the near copy is seen to copy", m.NEAR, PLAIN, "pixel copy", "above"),
    ]
    return decide(results, asked)
