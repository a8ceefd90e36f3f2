"""A given picture as the reference: how closely its style is matched, and how often its object leaks.

The references are scenes that no training saw, or pictures of one's own (``--references``). Each is inverted (DDIM),
and four other objects are drawn in its named style, from the same noise under every setting: plain, aligned, and
aligned with one change, of the score shift, the score scale, the steps skipped before alignment begins, or the guidance
of the inversion. "Rescaled" is what StyleAligned's authors do for famous pictures: shift log 2 and scale 1/2.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import ddim_invert
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.metrics import Estimate
from context_diffusion.scenes import OBJECTS, STYLES, Rendering, render
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench, foreign
from ..claims import Claim, decide
from ..curves import curves
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..styles.tasks import Folder, Task
from ..tables import Table
from ..units import carry_out
from ..unseen import REFERENCES, alone, seed_of, style_draw, unseen
from .scorers import Scorers, drawn_by
from .sets import ALIGNED, PLAIN, REAL

PICTURES = 4  # other objects drawn for each reference
RESCALED = "rescaled"
SCORES = ("palette distance", "DINO", "style", "object", "leakage")


@dataclass(frozen=True)
class Setting:
    """How alignment is changed, the share of the steps before it begins, and the guidance of the inversion."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    skipped: float = 0.0
    guidance: float = 1.0


SWEEPS = {
    "score shift": {
        f"shift log {m:g}": (math.log(m), Setting({"score_shift": math.log(m)})) for m in (0.25, 0.5, 2, 4)
    },
    "score scale": {f"scale {s:g}": (s, Setting({"score_scale": s})) for s in (0.25, 0.5, 0.75)},
    "share of the steps skipped": {f"skip {100 * p:g} %": (p, Setting(skipped=p)) for p in (0.2, 0.4, 0.6, 0.8)},
    "guidance of the inversion": {f"inversion guidance {g:g}": (g, Setting(guidance=g)) for g in (2.0, 4.0)},
}
NEUTRAL = {"score shift": 0.0, "score scale": 1.0, "share of the steps skipped": 0.0, "guidance of the inversion": 1.0}
SETTINGS: dict[str, Setting | None] = {
    PLAIN: None,
    ALIGNED: Setting(),
    RESCALED: Setting({"score_shift": math.log(2), "score_scale": 0.5}),
    **{name: setting for sweep in SWEEPS.values() for name, (_, setting) in sweep.items()},
}
ROWS = (*SETTINGS, REAL)
OWN_PICTURES = Folder


def run(bench: Bench) -> Report | None:
    """Draw and score ten references, or those of a folder, under every setting."""
    return carry_out(StyleReferences(bench, count=bench.first(10, 4)), bench.work, foreign(bench))


class Alone:
    """Tasks with one unseen reference each, whose object stands alone on a plain background."""

    def __init__(self, count: int) -> None:
        self.count = count

    def about(self) -> list[object]:
        """What the pictures of each task depend on, besides the method."""
        return ["alone"] * self.count

    def note(self) -> str:
        """What was asked, in a line of the report."""
        return f"{self.count} unseen references, {PICTURES} pictures each"

    def task(self, index: int) -> Task:
        """The reference of a number; its object and style are the caption."""
        drawn, style = reference(index)
        prompts = tuple(f"{text}, {style} style" for text in others(index))
        seeds = tuple(range(10 * index, 10 * index + PICTURES))
        return Task(prompts, (drawn.image,), (f"{article(drawn.scene.object)}, {style} style",), seeds)


class StyleReferences:
    """References x settings."""

    name = "references"

    def __init__(self, bench: Bench, *, count: int) -> None:
        self.bench, self.scorers = bench, Scorers(bench, "dino", "judge")
        self.tasks: Alone | Folder = Folder(bench.references, bench.limit) if bench.references else Alone(count)
        self.rows = tuple(SETTINGS) if bench.references else ROWS
        self.trajectory = lru_cache(maxsize=8)(lambda index, guidance: invert(bench, self.tasks.task(index), guidance))

    def about(self) -> dict:
        """The model, the settings, how many references."""
        return {
            **drawn_by(self.bench),
            "settings": {name: repr(setting) for name, setting in SETTINGS.items()},
            "sets": self.tasks.about(),
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every reference under every setting, one reference after the other."""
        return [Unit(s, i) for i in range(self.tasks.count) for s in self.rows]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the other objects, each from a noise of its own, the same under every setting."""
        if unit.setting == REAL:
            return further_scenes(unit.index)
        task, setting = self.tasks.task(unit.index), SETTINGS[unit.setting]
        with nullcontext() if setting is None else self.aligned(unit.index, setting):
            return self.bench.pipe(list(task.prompts), generator=task.noise(), **self.bench.sampling).images

    def aligned(self, index: int, setting: Setting):
        """Align what is drawn inside the block with the reference of a number."""
        trajectory, first = self.trajectory(index, setting.guidance), round(setting.skipped * self.bench.steps)
        return style_aligned(self.bench.pipe, references=trajectory, first_step=first, **setting.changes)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score the pictures of one reference."""
        near = self.scorers.of_reference(pictures, self.tasks.task(unit.index).references[0])
        if self.bench.references:
            return near
        drawn, style = reference(unit.index)
        lent = [article(drawn.scene.object)] * PICTURES
        return near | self.scorers.of_content(pictures, others(unit.index), style, lent)

    def report(self, results: Results) -> Report:
        """The table, the four sweeps, and what alignment costs."""
        rows = {s: results.estimates(s, SCORES) for s in self.rows}
        report = Report(notes=[
            f"{self.tasks.note()}, {self.bench.steps} steps; the reference is the unit; palette distance and DINO are "
            "between picture and reference",
            *self.scorers.notes(),
        ])  # fmt: skip
        report.add_table("scores", Table("One reference picture", rows, lower=("palette distance", "leakage")))
        report.claims = claims(results)
        report.sheets["sweeps"] = curves(sweeps(rows), SCORES, baseline=rows[PLAIN], best=rows.get(REAL))
        tasks = [self.tasks.task(index) for index in range(min(self.tasks.count, 10))]
        pictures = {"reference": [task.references[0] for task in tasks]}
        for setting in (PLAIN, ALIGNED, RESCALED, "scale 0.5", "shift log 4", "skip 40 %", *self.rows[len(SETTINGS) :]):
            pictures[setting] = [results.pictures(Unit(setting, index))[0] for index in range(len(tasks))]
        titles = [task.prompts[0].split(",")[0] for task in tasks]
        report.sheets["pictures"] = labelled_sheet(pictures, titles, cell=96)
        return report


def reference(index: int) -> tuple[Rendering, str]:
    """Draw the unseen reference of a number, with the ten styles and the twelve objects in turn, and name its style."""
    style = STYLES[index % len(STYLES)]
    thing = OBJECTS[index % len(OBJECTS)]
    return unseen(REFERENCES + index, style, object=thing, background="plain", sun=False), style


def invert(bench: Bench, task: Task, guidance: float = 1.0) -> Trajectory:
    """Invert the reference of a task; its caption is the prompt."""
    (picture, *_), (caption, *_) = task.references, task.captions
    return ddim_invert(bench.pipe, picture, caption, num_inference_steps=bench.steps, guidance_scale=guidance)


def others(index: int) -> list[str]:
    """The objects drawn for a reference, none of them its own.

    >>> others(0)
    ['a fish', 'a rocket', 'a cat', 'a tree']
    """
    return [article(OBJECTS[(index + step) % len(OBJECTS)]) for step in (4, 7, 10, 13)]


def further_scenes(index: int) -> list[Image.Image]:
    """Render the same objects in the reference's own palette and texture: what a perfect method would reach."""
    _, style = reference(index)
    seeds = [REFERENCES + 1000 + PICTURES * index + k for k in range(PICTURES)]
    nouns = [text.split()[-1] for text in others(index)]
    own = style_draw(REFERENCES + index, style)
    return [render(alone(seed, noun), own, seed_of(seed)).image for seed, noun in zip(seeds, nouns, strict=True)]


def sweeps(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[float, Mapping[str, Estimate]]]:
    """Order each sweep by its parameter; the aligned setting stands at the parameter's neutral value."""
    found = {}
    for title, sweep in SWEEPS.items():
        points = {value: rows[name] for name, (value, _) in sweep.items()} | {NEUTRAL[title]: rows[ALIGNED]}
        found[title] = dict(sorted(points.items()))
    return found


def claims(results: Results) -> list[Claim]:
    """What the papers say of references, as paired differences."""
    asked = [
        ("a reference picture lends its palette", ALIGNED, PLAIN, "palette distance", "below"),
        ("a reference picture raises DINO", ALIGNED, PLAIN, "DINO", "above"),
        ("alignment costs no object", ALIGNED, PLAIN, "object", "not below"),
        ("the reference's object leaks", ALIGNED, PLAIN, "leakage", "above"),
        ("rescaling leaks less than alignment", RESCALED, ALIGNED, "leakage", "below"),
        ("rescaling keeps less of the palette", RESCALED, ALIGNED, "palette distance", "above"),
        ("a shift of log 4 brings palettes closer", "shift log 4", ALIGNED, "palette distance", "below"),
        ("a shift of log 4 leaks more", "shift log 4", ALIGNED, "leakage", "above"),
        ("skipping 40 % of the steps loses palette", "skip 40 %", ALIGNED, "palette distance", "above"),
        ("inverting with guidance 2 helps", "inversion guidance 2", ALIGNED, "palette distance", "below"),
    ]
    return decide(results, asked)
