"""Does the picture keep the query's layout: edges and depth, with a ControlNet and without.

A texture has edges of its own, and no picture in halftone can have the edges of a plain drawing and no others. So the
table ends with what is to be had at most: the same layout, really drawn in the style of the prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from context_diffusion.context.model import ContextDiffusion
from context_diffusion.metrics import depth_rank_correlations, edge_f1_scores, estimate_difference, estimate_mean
from context_diffusion.scenes import STYLES, Rendering, caption, render

from .bench import Bench
from .drawing import Order
from .papers.tables import Table
from .report import Report
from .sheets import labelled_sheet
from .unseen import LAYOUT, query, seed_of, style_draw

THRESHOLDS = (100, 200)  # those of control.canny_map
OUTLINED = ("flat", "line art", "neon", "blueprint")  # styles that draw no texture on a surface
OFF, REAL = "no ControlNet", "really drawn"
BOTH = "canny in both branches"  # of guidance
WEAK = "canny at scale 1"


def run(bench: Bench) -> Report:
    """Edge F1 and depth rank correlation of 60 unseen queries."""
    count = bench.count(60, 4)
    queries = [query(LAYOUT + i, i) for i in range(count)]
    styles = [STYLES[i % len(STYLES)] for i in range(count)]
    draws = [style_draw(LAYOUT + i, style) for i, style in enumerate(styles)]
    prompts = [caption(one.scene, style) for one, style in zip(queries, draws, strict=True)]
    report = Report(notes=[
        "edge F1: Canny at 100 and 200 on both pictures, 2 pixels of tolerance; depth: the estimator's of the picture "
        "against the scene's exact one; one query is one unit",
        f"plain styles are {', '.join(OUTLINED)}: the others draw texture, whose edges no query has",
    ])  # fmt: skip
    drawn = {OFF: bench.draw([Order(prompt, seed=i) for i, prompt in enumerate(prompts)], OFF)}
    for kind in ("canny", "depth"):
        if bench.has(f"controlnet-{kind}") and (kind == "canny" or bench.has("depth")):
            orders = [Order(p, (), queries[i].image, kind, i) for i, p in enumerate(prompts)]
            drawn[kind] = bench.draw(orders, f"ControlNet {kind}")
            if kind == "canny":
                drawn[WEAK] = bench.draw(orders, WEAK, changed(bench.model, control_scale=1.0))
                drawn[BOTH] = bench.draw(orders, BOTH, changed(bench.model, control_scale=1.0, guided_control=False))
        else:
            report.notes.append(f"not measured for want of weights: {kind}")
    drawn[REAL] = [
        render(one.scene, style, seed_of(LAYOUT + i)).image
        for i, (one, style) in enumerate(zip(queries, draws, strict=True))
    ]
    add_edges(report, drawn, queries, np.array(styles))
    if bench.has("depth"):
        add_depth(report, bench, drawn, queries)
    rows = {"query": [one.image for one in queries]} | drawn
    shown = {key.replace(" in ", "\nin "): row[:10] for key, row in rows.items()}
    report.sheets["pictures"] = labelled_sheet(shown, styles[:10])
    return report


def changed(model: ContextDiffusion, **row) -> ContextDiffusion:
    """The same model with another row in the table of models.

    ``guided_control=False`` puts its ControlNets in both branches as diffusers does: guidance does not amplify them.
    """
    return ContextDiffusion(model.pipeline, replace(model.model, **row), model.contexts)


def add_edges(
    report: Report, drawn: dict[str, list[Image.Image]], queries: Sequence[Rendering], styles: np.ndarray
) -> None:
    """Add edge F1 over all styles, the plain ones and each, and what guidance and the Canny ControlNet add to it."""
    targets, plain = [one.image for one in queries], np.isin(styles, OUTLINED)
    scores = {key: edge_f1_scores(pictures, targets, thresholds=THRESHOLDS) for key, pictures in drawn.items()}
    for key, values in scores.items():
        report.add(f"edge F1, {key}", estimate_mean(values), at_least=0.75 if key == "canny" else None)
        report.add(f"edge F1, {key}, plain styles", estimate_mean(values[plain]))
    if "canny" in scores:
        report.add("edge F1, canny less none", estimate_difference(scores["canny"], scores[OFF]))
        report.add(f"edge F1, canny less {WEAK}", estimate_difference(scores["canny"], scores[WEAK]))
        report.add(f"edge F1, {WEAK} less {BOTH}", estimate_difference(scores[WEAK], scores[BOTH]))
        report.add("edge F1, canny less really drawn", estimate_difference(scores["canny"], scores[REAL]))
        rows = {
            style: {f"edge F1, {key}": estimate_mean(scores[key][styles == style]) for key in ("canny", REAL)}
            for style in dict.fromkeys(styles.tolist())
        }
        report.add_table("styles", Table("Edges kept, style by style", rows))


def add_depth(report: Report, bench: Bench, drawn: dict[str, list[Image.Image]], queries: Sequence[Rendering]) -> None:
    """Add the rank correlation of depths, and what the depth ControlNet adds to it."""
    scores = {
        key: depth_rank_correlations(map(bench.depth, pictures), [one.depth for one in queries])
        for key, pictures in drawn.items()
    }
    for key, values in scores.items():
        report.add(f"depth rank correlation, {key}", estimate_mean(values))
    if "depth" in scores:
        report.add("depth rank correlation, depth less none", estimate_difference(scores["depth"], scores[OFF]))
