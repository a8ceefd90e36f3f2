"""Layout against style: a ControlNet's scale swept, with style alignment and without (StyleAligned, section 5).

A query gives the layout, another picture the style (it is inverted), the prompt the query's object in that style. What
the ControlNet gains in layout, edge F1 and depth rank correlation to the query, may cost style: palette distance to
the reference. Both are drawn from the same noise at every scale.
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache, partial

import torch
from matplotlib.figure import Figure
from PIL import Image

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.control import canny_map, control_image
from context_diffusion.metrics import Estimate, depth_rank_correlations, edge_f1_scores, palette_distances, palette_of
from context_diffusion.pipelines import load_pipeline
from context_diffusion.scenes import OBJECTS, STYLES, Rendering
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench
from ..layout import THRESHOLDS
from ..report import Report
from ..sheets import labelled_sheet
from ..unseen import LAYOUT, query
from .claims import Claim, decide
from .curves import picture_of, with_error
from .references import invert_reference, reference
from .scorers import Scorers, drawn_by
from .sets import ALIGNED, PLAIN
from .tables import Table
from .units import Results, Scores, Unit

KINDS, SCALES, MODES = ("canny", "depth"), (0.0, 0.5, 1.0, 1.5, 2.0), (PLAIN, ALIGNED)
SCORES = ("edge F1", "depth rank correlation", "palette distance", "style", "object")
LAYOUT_SCORE = {"canny": "edge F1", "depth": "depth rank correlation"}
SETTINGS = {f"{k} {s:g}, {m}": (k, s, m) for k, s, m in itertools.product(KINDS, SCALES, MODES)}


class ControlScales:
    """Queries x kinds of control x scales x aligned or not."""

    name = "control"

    def __init__(self, bench: Bench, *, count: int = 12) -> None:
        self.bench, self.count, self.scorers = bench, count, Scorers(bench)
        self.trajectory = lru_cache(maxsize=4)(partial(invert_reference, bench))

    def about(self) -> dict:
        """The model and the settings."""
        return {
            **drawn_by(self.bench, *(f"controlnet-{kind}" for kind in KINDS), "depth"),
            "scorers": self.scorers.about("judge"),
        }

    def units(self) -> list[Unit]:
        """Every query under every setting, one query after the other."""
        return [Unit(setting, index) for index in range(self.count) for setting in SETTINGS]

    @cached_property
    def pipes(self) -> dict:
        """The pipeline with each ControlNet."""
        pipes = {kind: load_pipeline(self.bench.name, control=kind) for kind in KINDS}
        for pipe in pipes.values():
            pipe.set_progress_bar_config(disable=True)
        return pipes

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the query's object in the reference's style, guided by the query's edges or depth."""
        kind, scale, mode = SETTINGS[unit.setting]
        drawn, (_, style) = query_of(unit.index), reference(unit.index)
        control = control_image(canny_map(drawn.image) if kind == "canny" else self.bench.depth(drawn.image))
        pipe = self.pipes[kind]
        aligned = mode == ALIGNED
        with style_aligned(pipe, references=self.trajectory(unit.index)) if aligned else nullcontext():
            return pipe(
                f"{article(drawn.scene.object)}, {style} style",
                image=control,
                controlnet_conditioning_scale=scale,
                num_inference_steps=self.bench.steps,
                guidance_scale=self.bench.guidance,
                generator=torch.Generator().manual_seed(unit.index),
            ).images

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Layout against the query, style against the reference."""
        drawn, (lent, style) = query_of(unit.index), reference(unit.index)
        depths = [self.bench.depth(picture) for picture in pictures]
        return {
            "edge F1": edge_f1_scores(list(pictures), [drawn.image], thresholds=THRESHOLDS).tolist(),
            "depth rank correlation": depth_rank_correlations(depths, [drawn.depth]).tolist(),
            "palette distance": palette_distances(pictures, palette_of(lent.image)).tolist(),
            **self.scorers.of_content(pictures, [article(drawn.scene.object)], style, [None]),
        }

    def report(self, results: Results) -> Report:
        """The table, the figure of layout against style, and a sheet."""
        rows = {setting: results.estimates(setting, SCORES) for setting in SETTINGS}
        report = Report(notes=[
            f"{self.count} unseen queries, each with an unseen reference, {self.bench.steps} steps; the query is the "
            "unit; at scale 0 the ControlNet does nothing; palette distance: to the reference",
        ])  # fmt: skip
        title = "Layout and style over the scale of a ControlNet"
        report.add_table("scores", Table(title, rows, lower=("palette distance",)))
        report.claims = claims(results)
        report.sheets["trade"] = trade(rows)
        report.sheets["pictures"] = self.sheet(results)
        return report

    def sheet(self, results: Results) -> Image.Image:
        """The first queries under every setting of the Canny ControlNet, and the depth ControlNet at its own scale."""
        shown = range(min(self.count, 10))
        rows = {
            "query": [query_of(i).image for i in shown],
            "reference": [reference(i)[0].image for i in shown],
        }
        for setting, (kind, scale, _) in SETTINGS.items():
            if kind == "canny" or scale == 1:
                rows[setting.replace(", ", ",\n")] = [results.pictures(Unit(setting, i))[0] for i in shown]
        return labelled_sheet(rows, [STYLES[i % len(STYLES)] for i in shown], cell=80)


def query_of(index: int) -> Rendering:
    """Draw the unseen query of a number; its object is not its reference's."""
    return query(LAYOUT + 5000 + index, index, object=OBJECTS[(index + 5) % len(OBJECTS)])


def claims(results: Results) -> list[Claim]:
    """What control and alignment do to each other, as differences paired by query."""
    asked = [
        ("the Canny ControlNet keeps edges", "canny 1, plain", "canny 0, plain", "edge F1", "above"),
        ("the depth ControlNet keeps depth", "depth 1, plain", "depth 0, plain", "depth rank correlation", "above"),
        ("alignment costs no edges under control", "canny 1, aligned", "canny 1, plain", "edge F1", "not below"),
        ("alignment brings the palette under control, too", "canny 1, aligned", "canny 1, plain", "palette distance",
         "below"),
        ("control costs aligned pictures no palette", "canny 1, aligned", "canny 0, aligned", "palette distance",
         "not above"),
        ("twice the scale keeps more edges", "canny 2, aligned", "canny 1, aligned", "edge F1", "above"),
    ]  # fmt: skip
    return decide(results, asked)


def trade(rows: dict[str, dict[str, Estimate]]) -> Image.Image:
    """Draw layout over scale, style over scale, and one against the other, a row for each kind of control."""
    figure = Figure(figsize=(10, 2.8 * len(KINDS)), layout="constrained")
    axes = figure.subplots(len(KINDS), 3, squeeze=False)
    for line, kind in zip(axes, KINDS, strict=True):
        layout, style = LAYOUT_SCORE[kind], "palette distance"
        for mode in MODES:
            points = {scale: rows[f"{kind} {scale:g}, {mode}"] for scale in SCALES}
            with_error(line[0], {scale: point[layout] for scale, point in points.items()}, label=mode)
            with_error(line[1], {scale: point[style] for scale, point in points.items()}, label=mode)
            ordered = [(point[style].value, point[layout].value) for point in points.values()]
            line[2].plot(*zip(*ordered, strict=True), marker="o", markersize=3, label=mode)
            for scale, (x, y) in zip(SCALES, ordered, strict=True):
                line[2].annotate(f"{scale:g}", (x, y), fontsize="x-small", xytext=(3, 3), textcoords="offset points")
        line[0].set(xlabel="control scale", ylabel=layout, title=kind)
        line[1].set(xlabel="control scale", ylabel="palette distance")
        line[2].set(xlabel="palette distance to the reference", ylabel=layout, title="numbers: control scale")
        line[0].legend(fontsize="small")
    return picture_of(figure)
