"""Scores over a parameter, with intervals, as one picture."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from context_diffusion.metrics import Estimate

Points = Mapping[float, Mapping[str, Estimate]]  # parameter -> score -> estimate


def curves(
    sweeps: Mapping[str, Points],
    scores: Sequence[str],
    *,
    baseline: Mapping[str, Estimate] | None = None,
    best: Mapping[str, Estimate] | None = None,
) -> Image.Image:
    """Draw a panel for each score (row) and sweep (column); dashed: ``baseline`` (plain), dotted: ``best`` (real)."""
    scores = [
        score for score in scores if any(score in point for points in sweeps.values() for point in points.values())
    ]
    figure = Figure(figsize=(2.6 * len(sweeps), 1.9 * len(scores)), layout="constrained")
    axes = figure.subplots(len(scores), len(sweeps), squeeze=False, sharey="row", sharex="col")
    for row, score in zip(axes, scores, strict=True):
        for axis, (title, points) in zip(row, sweeps.items(), strict=True):
            with_error(axis, {x: point[score] for x, point in points.items() if score in point})
            for level, style, name in ((baseline, "--", "plain"), (best, ":", "real scenes")):
                if level and score in level:
                    axis.axhline(level[score].value, color="0.4", linestyle=style, linewidth=1, label=name)
            axis.set(xlabel=title if score == scores[-1] else "", ylabel=score if title == next(iter(sweeps)) else "")
    axes[0][0].legend(fontsize="x-small")
    return picture_of(figure)


def points(rows: Mapping[str, Mapping[str, Estimate]], scores: Sequence[str]) -> Image.Image:
    """Draw a panel for each score, with the value and interval of each row on a line of its own."""
    figure = Figure(figsize=(1.8 + 2.3 * len(scores), 0.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axis, score in zip(axes, scores, strict=True):
        for line, row in enumerate(rows.values()):
            if score in row:
                e = row[score]
                axis.errorbar(
                    e.value, line, xerr=[[e.value - e.low], [e.high - e.value]], marker="o", capsize=3, color="#1f6f8b"
                )
        axis.set(title=score, yticks=range(len(rows)), yticklabels=list(rows))
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    return picture_of(figure)


def pareto(
    rows: Mapping[str, Mapping[str, Estimate]], pairs: Sequence[tuple[str, str]], lower: Sequence[str]
) -> Image.Image:
    """Draw a panel for each pair of scores; the rows that no other row beats in both are filled, and joined."""
    figure = Figure(figsize=(4.2 * len(pairs) + 2.2, 4.2), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    numbers = {name: number for number, name in enumerate(rows, start=1)}
    shown = []
    for axis, pair in zip(axes, pairs, strict=True):
        places = {name: tuple(row[s].value for s in pair) for name, row in rows.items() if all(s in row for s in pair)}
        shown.append(places)
        front = undominated(places, tuple(-1 if score in lower else 1 for score in pair))
        axis.plot(*zip(*sorted(places[name] for name in front), strict=True), color="#1f6f8b", linewidth=1, zorder=1)
        for name, (x, y) in places.items():
            axis.scatter(x, y, s=26, zorder=2, edgecolors="#1f6f8b", facecolors="#1f6f8b" if name in front else "white")
        labels = [f"{score} ({'lower' if score in lower else 'higher'} is better)" for score in pair]
        axis.set(xlabel=labels[0], ylabel=labels[1])
        axis.grid(alpha=0.3)
    listed = "\n".join(f"{number}  {name}" for name, number in numbers.items())
    axes[-1].text(1.06, 1.0, listed, transform=axes[-1].transAxes, va="top", fontsize=8)
    figure.draw_without_rendering()  # only now the panels have their places
    for axis, places in zip(axes, shown, strict=True):
        label_points(axis, [(str(numbers[name]), place) for name, place in places.items()])
    return picture_of(figure)


def label_points(axis: Axes, points: Sequence[tuple[str, tuple[float, float]]], distance: float = 0.13) -> None:
    """Write a label beside each point, ``distance`` inches from all else; the panels have their places already."""
    inches = axis.transData.transform([place for _, place in points]) / axis.figure.dpi
    for (label, place), offset in zip(points, beside(inches, distance), strict=True):
        axis.annotate(
            label, place, offset * 72, textcoords="offset points", ha="center", va="center", fontsize=7,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.5"},
        )  # fmt: skip


def beside(points: Float[np.ndarray, "points 2"], distance: float) -> Float[np.ndarray, "points 2"]:
    """Where the label of each point stands, as an offset: the nearest place that keeps ``distance`` from all else.

    >>> beside(np.array([[0.0, 0.0], [9.0, 9.0]]), 1.0).round(2).tolist()
    [[0.71, 0.71], [0.71, 0.71]]
    """
    angles = np.pi / 4 + np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    candidates = np.concatenate([circle * distance * times for times in (1, 1.5, 2, 3, 4)])
    taken, chosen = np.asarray(points, dtype=float), []
    for number, point in enumerate(points):
        others = np.delete(taken, number, axis=0)
        gaps = np.linalg.norm((point + candidates)[:, None] - others, axis=2).min(axis=1, initial=np.inf)
        chosen.append(candidates[np.argmax(np.minimum(gaps, distance))])
        taken = np.vstack([taken, point + chosen[-1]])
    return np.array(chosen)


def undominated(places: Mapping[str, tuple[float, ...]], signs: Sequence[int]) -> list[str]:
    """The names that no other is at least as good as in everything, and better in something.

    ``signs`` are 1 where higher is better, -1 where lower is.

    >>> undominated({"a": (1, 1), "b": (2, 0), "c": (0, 0)}, (1, 1))
    ['a', 'b']
    """
    good = {name: [sign * value for sign, value in zip(signs, place, strict=True)] for name, place in places.items()}
    return [
        name
        for name, own in good.items()
        if not any(other != own and all(b >= a for a, b in zip(own, other, strict=True)) for other in good.values())
    ]


def with_error(axis, points: Mapping[float, Estimate], **style) -> None:
    """Draw estimates with their intervals."""
    values = [e.value for e in points.values()]
    errors = [[e.value - e.low for e in points.values()], [e.high - e.value for e in points.values()]]
    axis.errorbar(list(points), values, yerr=errors, marker="o", markersize=3, capsize=2, linewidth=1.2, **style)


def picture_of(figure: Figure, dpi: int = 110) -> Image.Image:
    """Render a figure to pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer).convert("RGB")
