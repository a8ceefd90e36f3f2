"""Does the picture keep the query's layout? Edges and depth, with a ControlNet and without.

Texture has edges of its own: no halftone picture can have exactly the edges of a plain drawing. So the table ends with
the best to be expected: the same layout, really drawn in the style of the prompt, and what the autoencoder leaves
of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.control import DepthEstimator
from context_diffusion.images import resize
from context_diffusion.metrics import depth_rank_correlations, edge_f1_scores, estimate_difference, estimate_mean
from context_diffusion.scenes import STYLES, Rendering, caption, render

from .bench import Bench
from .reconstruction import decoded
from .report import Report
from .sheets import labelled_sheet
from .tables import Table
from .unseen import LAYOUT, query, seed_of, style_draw

THRESHOLDS = (100, 200)  # those of control.canny_map
OUTLINED = ("flat", "line art", "neon", "blueprint")  # styles without texture
OFF, REAL, DECODED = "no ControlNet", "really drawn", "really drawn, decoded"
STRONG = "canny at scale 1.5"
CLOSE = 0.03  # as near to what is really drawn as a ControlNet should come


def run(bench: Bench) -> Report:
    """Edge F1 and depth rank correlation of 60 unseen queries."""
    count = bench.count(60, 4)
    queries = [query(LAYOUT + i, i) for i in range(count)]
    styles = [STYLES[i % len(STYLES)] for i in range(count)]
    draws = [style_draw(LAYOUT + i, style) for i, style in enumerate(styles)]
    prompts = [caption(one.scene, style) for one, style in zip(queries, draws, strict=True)]
    report = Report(notes=[
        "edge F1: Canny at 100 and 200 on both pictures, 2 pixels of tolerance; depth: what the estimator sees in the "
        "picture against the scene's exact depth; one query is one unit",
        f"plain styles are {', '.join(OUTLINED)}: the others have texture, whose edges no query has",
    ])  # fmt: skip
    drawn = {OFF: bench.draw([Request(prompt=prompt, seed=i) for i, prompt in enumerate(prompts)])}
    for kind in ("canny", "depth"):
        if bench.has(f"controlnet-{kind}") and (kind == "canny" or bench.has("depth")):
            requests = [Request(queries[i].image, (), p, layout=kind, seed=i) for i, p in enumerate(prompts)]
            drawn[kind] = bench.draw(requests)
            if kind == "canny":
                drawn[STRONG] = bench.draw([replace(request, control_scale=1.5) for request in requests])
        else:
            report.notes.append(f"not measured, for lack of weights: {kind}")
    drawn[REAL] = [
        render(one.scene, style, seed_of(LAYOUT + i)).image
        for i, (one, style) in enumerate(zip(queries, draws, strict=True))
    ]
    drawn[DECODED] = decoded(bench, drawn[REAL])
    add_edges(report, drawn, queries, np.array(styles))
    if bench.has("depth"):
        add_depth(report, bench, drawn, queries)
    rows = {"query": [one.image for one in queries]} | drawn
    shown = {key.replace(" at ", "\nat "): row[:10] for key, row in rows.items()}
    report.sheets["pictures"] = labelled_sheet(shown, styles[:10])
    return report


def edges_kept(pictures: Sequence[Image.Image], queries: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
    """Edge F1 of each picture and its query, at the query's size, whatever the size that the model draws."""
    resized = [resize(picture, query.size) for picture, query in zip(pictures, queries, strict=True)]
    return edge_f1_scores(resized, queries, thresholds=THRESHOLDS)


def depth_kept(
    estimator: DepthEstimator, pictures: Sequence[Image.Image], depths: Sequence[Float[np.ndarray, "height width"]]
) -> Float[np.ndarray, " pictures"]:
    """Rank correlation of each picture's estimated depth with the depth that it should have, at the latter's size."""
    resized = [resize(picture, depth.shape[::-1]) for picture, depth in zip(pictures, depths, strict=True)]
    return depth_rank_correlations(map(estimator, resized), depths)


def add_edges(
    report: Report, drawn: dict[str, list[Image.Image]], queries: Sequence[Rendering], styles: np.ndarray
) -> None:
    """Add edge F1 over all styles, the plain ones and each, and what the Canny ControlNet and its scale add to it."""
    targets, plain = [one.image for one in queries], np.isin(styles, OUTLINED)
    scores = {key: edges_kept(pictures, targets) for key, pictures in drawn.items()}
    for key, values in scores.items():
        report.add(f"edge F1, {key}", estimate_mean(values).within(0, 1))
        report.add(f"edge F1, {key}, plain styles", estimate_mean(values[plain]).within(0, 1))
    if "canny" in scores:
        report.add("edge F1, canny less none", estimate_difference(scores["canny"], scores[OFF]))
        report.add(f"edge F1, {STRONG} less canny", estimate_difference(scores[STRONG], scores["canny"]))
        for most in (REAL, DECODED):
            less = estimate_difference(scores["canny"], scores[most])
            report.add(f"edge F1, canny less {most}", less, at_least=-CLOSE if most == REAL else None)
        rows = {
            style: {
                f"edge F1, {key}": estimate_mean(scores[key][styles == style]).within(0, 1) for key in ("canny", REAL)
            }
            for style in dict.fromkeys(styles.tolist())
        }
        report.add_table("styles", Table("Edges kept, style by style", rows))


def add_depth(report: Report, bench: Bench, drawn: dict[str, list[Image.Image]], queries: Sequence[Rendering]) -> None:
    """Add the rank correlation of depths, and what the depth ControlNet adds to it."""
    depths = [one.depth for one in queries]
    scores = {key: depth_kept(bench.depth, pictures, depths) for key, pictures in drawn.items()}
    for key, values in scores.items():
        report.add(f"depth rank correlation, {key}", estimate_mean(values).within(-1, 1))
    if "depth" in scores:
        report.add("depth rank correlation, depth less none", estimate_difference(scores["depth"], scores[OFF]))
