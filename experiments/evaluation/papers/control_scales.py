"""Layout against style: the scale of a ControlNet is swept, with alignment and without (StyleAligned, section 4.3).

A query gives the layout, another picture, which is inverted, gives the style, and the prompt names the query's object
in that style. What the ControlNet gains in layout (edge F1 and depth rank correlation to the query) it may cost in
style (palette distance to the reference). Each query is drawn from the same noise under every setting.

Of pictures of one's own (``--references``) each lends its style, and the next one is the query. How deep that is nobody
knows, so depth is compared with what the estimator sees in the query.
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from textwrap import shorten

from matplotlib.figure import Figure
from PIL import Image

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.context.request import Request
from context_diffusion.images import resize
from context_diffusion.metrics import Estimate, palette_distances, palette_of
from context_diffusion.scenes import OBJECTS, STYLES, Rendering
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench, foreign
from ..claims import Claim, decide
from ..curves import label_points, picture_of, with_error
from ..edges_and_depth import depth_kept, edges_kept
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..styles.tasks import Folder, Task, in_style
from ..tables import Table
from ..units import carry_out
from ..unseen import LAYOUT, query
from .references import Alone, invert, reference
from .scorers import Scorers, drawn_by
from .sets import ALIGNED, PLAIN

SCALES, MODES = (0.0, 0.5, 1.0, 1.5, 2.0), (PLAIN, ALIGNED)
SCORES = ("edge F1", "depth rank correlation", "palette distance", "style", "object")
LAYOUT_SCORE = {"canny": "edge F1", "depth": "depth rank correlation"}  # by kind of control


def run(bench: Bench) -> Report | None:
    """Draw and score twelve queries, or those of a folder, under every setting."""
    return carry_out(ControlScales(bench, count=bench.first(12, 3)), bench.work, foreign(bench))


class UnseenQueries:
    """Tasks with one unseen reference and one prompt: the object of an unseen query, in the reference's style."""

    def __init__(self, count: int) -> None:
        self.count, self.lent = count, Alone(count)

    def about(self) -> list[object]:
        """What the pictures of each task depend on: nothing but its number."""
        return []

    def note(self) -> str:
        """What was asked, in a line of the report."""
        return f"{self.count} unseen queries, each with an unseen reference"

    def task(self, index: int) -> Task:
        """The reference of a number, and the prompt."""
        (_, style), thing = reference(index), article(query_of(index).scene.object)
        return replace(self.lent.task(index), prompts=(f"{thing}, {style} style",), seeds=(index,))

    def query(self, index: int) -> Image.Image:
        """The query of a number."""
        return query_of(index).image

    def title(self, index: int) -> str:
        """What stands above its pictures on a sheet."""
        return STYLES[index % len(STYLES)]


class OwnQueries:
    """Tasks with each picture of a folder as the reference, and the next one as the query, which the prompt names.

    Raises as :class:`Folder` does.
    """

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        self.folder = Folder(folder)
        self.folder.check_pair("control takes the style from one picture and the layout from another")
        self.count = min(self.folder.count, limit or self.folder.count)

    def about(self) -> list[object]:
        """What the pictures of each task depend on: the files of reference and query, and their captions."""
        return [[self.folder.mark(index), self.folder.mark(self.shown(index))] for index in range(self.count)]

    def note(self) -> str:
        """What was asked, in a line of the report."""
        names = self.folder.names
        pairs = ", ".join(f"{names[self.shown(index)]} in the style of {names[index]}" for index in range(self.count))
        return f"pictures of {self.folder.folder.name}: {pairs}"

    def shown(self, index: int) -> int:
        """Which picture is the query."""
        return self.folder.others(index)[0]

    def task(self, index: int) -> Task:
        """The reference of a number, and the prompt."""
        prompt = in_style(self.title(index), self.folder.said(index)[1])
        return Task((prompt,), (self.folder.image(index),), (self.folder.captions[index],), (index,))

    def query(self, index: int) -> Image.Image:
        """The query of a number."""
        return self.folder.image(self.shown(index))

    def title(self, index: int) -> str:
        """What the query shows."""
        return self.folder.said(self.shown(index))[0]


class ControlScales:
    """Queries x kinds of control that the model has x scales x aligned or not.

    Raises ``FileNotFoundError`` for a model that has none.
    """

    name = "control"

    def __init__(self, bench: Bench, *, count: int) -> None:
        bench.need("controlnet-canny or controlnet-depth")
        self.bench, self.scorers = bench, Scorers(bench, "judge", "depth")
        self.tasks = OwnQueries(bench.references, bench.limit) if bench.references else UnseenQueries(count)
        self.has_truth = not bench.references
        self.kinds = [kind for kind in LAYOUT_SCORE if bench.has(f"controlnet-{kind}")]
        if "depth" in self.scorers.missing and "depth" in self.kinds:
            self.kinds.remove("depth")
        if not self.kinds:
            raise FileNotFoundError(self.scorers.missing["depth"])
        self.settings = {f"{k} {s:g}, {m}": (k, s, m) for k, s, m in itertools.product(self.kinds, SCALES, MODES)}
        self.trajectory = lru_cache(maxsize=4)(lambda index: invert(bench, self.tasks.task(index)))

    def about(self) -> dict:
        """The model, the settings, the pictures."""
        return {
            **drawn_by(self.bench, *(f"controlnet-{kind}" for kind in self.kinds), "depth"),
            "sets": self.tasks.about(),
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every query under every setting, one query after the other."""
        return [Unit(setting, index) for index in range(self.tasks.count) for setting in self.settings]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the query's object in the reference's style, with the query's edges or depth as layout."""
        kind, scale, mode = self.settings[unit.setting]
        task, aligned = self.tasks.task(unit.index), mode == ALIGNED
        shown = self.tasks.query(unit.index)
        request = Request(shown, (), task.prompts[0], layout=kind, control_scale=scale, seed=task.seeds[0])
        with style_aligned(self.bench.pipe, references=self.trajectory(unit.index)) if aligned else nullcontext():
            return self.bench.draw([request], self.bench.without_contexts, progress=False)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score the layout against the query, the style against the reference."""
        shown, task = self.tasks.query(unit.index), self.tasks.task(unit.index)
        if not self.has_truth:
            shown = resize(shown, pictures[0].size)  # cropped as the ControlNet's map of it is
        scores = {
            "edge F1": edges_kept(pictures, [shown]).tolist(),
            "palette distance": palette_distances(pictures, palette_of(task.references[0])).tolist(),
        }
        if self.has_truth:
            thing, style = article(query_of(unit.index).scene.object), reference(unit.index)[1]
            scores |= self.scorers.of_content(pictures, [thing], style, [None])
        if "depth" in self.scorers.networks:
            estimate = self.scorers.networks["depth"]
            depth = query_of(unit.index).depth if self.has_truth else estimate(shown).numpy()
            scores["depth rank correlation"] = depth_kept(estimate, pictures, [depth]).tolist()
        return scores

    def report(self, results: Results) -> Report:
        """The table, the figure of layout against style, and a sheet."""
        rows = {setting: results.estimates(setting, SCORES) for setting in self.settings}
        report = Report(notes=[
            f"{self.tasks.note()}, {self.bench.steps} steps; the query is the "
            "unit; at scale 0 the ControlNet does nothing; palette distance: to the reference",
            *self.scorers.notes(),
        ])  # fmt: skip
        if not self.has_truth and "depth" in self.scorers.networks:
            report.notes.append("depth rank correlation: with what the estimator sees in the query")
        title = "Layout and style over the scale of a ControlNet"
        report.add_table("scores", Table(title, rows, lower=("palette distance",)))
        report.claims = claims(results)
        report.sheets["trade"] = trade(rows, self.kinds)
        report.sheets["pictures"] = self.sheet(results)
        return report

    def sheet(self, results: Results) -> Image.Image:
        """The first queries under every setting of the Canny ControlNet, and with the depth ControlNet at scale 1."""
        shown = range(min(self.tasks.count, 10))
        rows = {
            "query": [self.tasks.query(i) for i in shown],
            "reference": [self.tasks.task(i).references[0] for i in shown],
        }
        for setting, (kind, scale, _) in self.settings.items():
            if kind == "canny" or scale == 1:
                rows[setting.replace(", ", ",\n")] = [results.pictures(Unit(setting, i))[0] for i in shown]
        titles = [shorten(self.tasks.title(i), 12, placeholder=" ...") for i in shown]
        return labelled_sheet(rows, titles, cell=80)


OWN_PICTURES = OwnQueries


def query_of(index: int) -> Rendering:
    """Draw the unseen query of a number; its object is not that of its reference."""
    return query(LAYOUT + 5000 + index, index, object=OBJECTS[(index + 5) % len(OBJECTS)])


def claims(results: Results) -> list[Claim]:
    """What control and alignment do to each other, as differences paired by query."""
    asked = [
        ("the Canny ControlNet keeps edges", "canny 1, plain", "canny 0, plain", "edge F1", "above"),
        ("the depth ControlNet keeps depth", "depth 1, plain", "depth 0, plain", "depth rank correlation", "above"),
        ("alignment costs no edges under control", "canny 1, aligned", "canny 1, plain", "edge F1", "not below"),
        ("alignment brings the palette under control as well", "canny 1, aligned", "canny 1, plain",
         "palette distance", "below"),
        ("control costs aligned pictures no palette", "canny 1, aligned", "canny 0, aligned", "palette distance",
         "not above"),
        ("twice the scale keeps more edges", "canny 2, aligned", "canny 1, aligned", "edge F1", "above"),
    ]  # fmt: skip
    return decide(results, asked)


def trade(rows: dict[str, dict[str, Estimate]], kinds: Sequence[str]) -> Image.Image:
    """Draw layout over scale, style over scale, and one against the other, in a row for each kind of control."""
    figure = Figure(figsize=(10, 2.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 3, squeeze=False)
    numbered = {line[2]: [] for line in axes}
    for line, kind in zip(axes, kinds, strict=True):
        layout, style = LAYOUT_SCORE[kind], "palette distance"
        for mode in MODES:
            points = {scale: rows[f"{kind} {scale:g}, {mode}"] for scale in SCALES}
            with_error(line[0], {scale: point[layout] for scale, point in points.items()}, label=mode)
            with_error(line[1], {scale: point[style] for scale, point in points.items()}, label=mode)
            ordered = [(point[style].value, point[layout].value) for point in points.values()]
            line[2].plot(*zip(*ordered, strict=True), marker="o", markersize=3, label=mode)
            numbered[line[2]] += [(f"{scale:g}", place) for scale, place in zip(SCALES, ordered, strict=True)]
        line[0].set(xlabel="control scale", ylabel=layout, title=kind)
        line[1].set(xlabel="control scale", ylabel="palette distance")
        line[2].set(xlabel="palette distance to the reference", ylabel=layout, title="numbers: control scale")
        line[2].margins(0.15)
        line[0].legend(fontsize="small")
    figure.draw_without_rendering()  # only now the panels have their places
    for axis, points in numbered.items():
        label_points(axis, points, 0.16)
    return picture_of(figure)
