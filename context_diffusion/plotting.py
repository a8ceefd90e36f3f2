"""Pictures of pictures: every figure of the lessons and of the command line, each in one call."""

import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FormatStrFormatter, LogLocator
from torch import Tensor

from .checks import check_count, check_number, shown
from .images import ImageLike, listed, load_image
from .metrics.estimates import Estimate
from .signatures import checked

MOST_INSIDE = 3  # curves whose names fit into the picture; more go beside it
STYLE = {
    "figure.dpi": 100,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "image.interpolation": "nearest",
    "legend.frameon": False,
}
ACCENT, SECOND, GREY = "#1f6f8b", "#d95f02", "#9aa0a6"  # distinct for readers who do not see red and green


WIDEST, MOST_CELLS = 20, 1_000_000  # inches for a picture; cells of a heat map


def use_style() -> None:
    """Make the plots of a session look alike."""
    plt.rcParams.update(STYLE)


@checked
def show(
    images: ImageLike | Sequence[ImageLike],
    titles: str | Sequence[str] | None = None,
    *,
    captions: str | Sequence[str] | None = None,
    columns: int | None = None,
    title: str | None = None,
    width: float = 1.8,
) -> Figure:
    """Show pictures side by side: ``titles`` above them, ``captions`` below, at most ``columns`` in a row.

    It takes anything that is an image, and draws 2-d maps (edges, depth) in grey. ``width`` is in inches per picture.
    Returns the figure, without opening a window; a notebook shows it as the value of its cell.
    """
    images = listed(images)
    if not images:
        raise ValueError("There is no picture to show; pass at least one.")
    check_number("width, in inches per picture,", width, 0.1, WIDEST)
    titles, captions = (
        _one_each(texts, len(images), what) for texts, what in ((titles, "title"), (captions, "caption"))
    )
    columns = min(6 if columns is None else check_count("columns", columns), len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = _canvas(rows, columns, width, text_lines=bool(titles) + _lines(captions))
    for index, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if index < len(images):
            _draw(axis, images[index])
            axis.set_title(titles[index] if titles else "", pad=3)
            if captions:
                _caption(axis, captions[index])
    if title:
        figure.suptitle(title)
    return figure


@checked
def compare(
    rows: Mapping[str, Sequence[ImageLike]], titles: Sequence[str] | None = None, *, width: float = 1.4
) -> Figure:
    """Compare methods, one row each: a name and as many pictures as in the other rows; ``titles`` head the columns."""
    lengths = {name: len(images) for name, images in rows.items()}
    if not rows or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        raise ValueError(f"Each row needs the same number of pictures, at least one; got {lengths}.")
    check_number("width, in inches per picture,", width, 0.1, WIDEST)
    titles = _one_each(titles, next(iter(lengths.values())), "title")
    figure, axes = _canvas(len(rows), next(iter(lengths.values())), width, margin=0.09 * max(map(len, rows)))
    for number, (name, images) in enumerate(rows.items()):
        for axis, image in zip(axes[number], images, strict=True):
            _draw(axis, image)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[number, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    for axis, text in zip(axes[0], titles or [], strict=bool(titles)):
        axis.set_title(text, pad=3)
    return figure


@checked
def bars(
    samples: Mapping[str, Sequence[float]], *, label: str = "", confidence: float = 0.95, title: str | None = None
) -> Figure:
    """Draw the mean of each named sample with its confidence interval (Student's t), and the values themselves.

    A sample with a single value gets no interval: one number has no spread.
    """
    if not samples or not all(len(values) for values in samples.values()):
        raise ValueError("Each bar needs at least one value.")
    means, errors = zip(*(mean_and_interval(values, confidence) for values in samples.values()), strict=True)
    figure, axis = _horizontal_bars(list(samples), means, np.array(errors), label, title)
    for place, values in enumerate(samples.values()):
        spread = place + np.linspace(-0.2, 0.2, len(values)) * (len(values) > 1)
        axis.plot(values, spread, ".", color="0.15", markersize=4)
    return figure


@checked
def estimates(
    values: Mapping[str, Estimate], *, label: str = "", chance: float | None = None, title: str | None = None
) -> Figure:
    """Draw scores that bring their own interval; ``chance`` marks what guessing would get.

    A score from a single unit has no interval, and none is drawn.
    """
    if not values:
        raise ValueError("There is no estimate to draw; pass at least one.")
    means = [estimate.value for estimate in values.values()]
    reach = np.array([[e.value - e.low, e.high - e.value] for e in values.values()]).T
    figure, axis = _horizontal_bars(list(values), means, np.maximum(reach, 0), label, title)
    if chance is not None:
        axis.axvline(chance, color=SECOND, linestyle="--", linewidth=1)
    return figure


@checked
def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The mean and the half-width of its confidence interval, ``t_{n-1} s / sqrt(n)``; NaN width for one value."""
    from scipy import stats

    array = np.asarray(values, dtype=float)
    if not len(array):
        raise ValueError("A mean needs at least one value.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, such as 0.95; got {confidence}.")
    if len(array) < 2:
        return float(array.mean()), float("nan")
    quantile = stats.t.ppf(0.5 + confidence / 2, len(array) - 1)
    return float(array.mean()), float(quantile * array.std(ddof=1) / math.sqrt(len(array)))


@checked
def lines(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float] | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
) -> Figure:
    """Plot named curves over a common ``x``, by default their index.

    ``log`` makes both axes logarithmic, with every point marked, its ``x`` written below it, and plain numbers on the
    left; raises ``ValueError`` where a number is not positive.
    """
    if log and (x is None or not all(number > 0 for values in (x, *series.values()) for number in values)):
        raise ValueError("Logarithmic axes need an x, and positive numbers only.")
    for name, values in series.items():
        if x is not None and len(values) != len(x):
            raise ValueError(f"Each curve has a value for each of the {len(x)} x; {name!r} has {len(values)}.")
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for (name, values), color in zip(series.items(), _colors(len(series)), strict=True):
        axis.plot(range(len(values)) if x is None else x, values, "o-" if log else "-", label=name, color=color)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log and x is not None:
        axis.loglog()
        axis.set_xticks(x, [f"{number:g}" for number in x])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.minorticks_off()
    if len(series) > 1:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
        axis.legend(**beside if len(series) > MOST_INSIDE else {})
    plt.close(figure)
    return figure


@checked
def heatmap(
    values: Float[Tensor, "rows columns"] | Float[np.ndarray, "rows columns"],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    label: str = "",
) -> Figure:
    """Draw a matrix (similarities, attention), with its numbers written in if there is room."""
    array = np.asarray(values)
    height, width = array.shape
    rows, columns = _one_each(rows, height, "name", "row"), _one_each(columns, width, "name", "column")
    if not 0 < array.size <= MOST_CELLS:
        raise ValueError(f"A heat map has 1 to {MOST_CELLS:,} cells; this one has {array.size:,}.")
    figure, axis = plt.subplots(figsize=(0.55 * width + 2, 0.45 * height + 1), layout="constrained")
    picture = axis.imshow(array, cmap="viridis", aspect="auto")
    axis.set(xticks=range(width) if columns else [], yticks=range(height) if rows else [])
    axis.set_xticklabels(list(columns or []), rotation=40, ha="right")
    axis.set_yticklabels(list(rows or []))
    if array.size <= 150:
        middle = (array.min() + array.max()) / 2
        for (row, column), value in np.ndenumerate(array):
            color = "white" if value < middle else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(picture, label=label)
    plt.close(figure)
    return figure


@checked
def flow_diagram(paths: Sequence[str]) -> Figure:
    """Draw how data flows: each path is ``"text -> tokens -> U-Net"``; parts of one name are one box.

    Data flow from left to right; an arrow that skips columns runs between the boxes that it passes. Raises
    ``ValueError`` for a path without an arrow, for an empty part, and for paths that run in a circle.
    """
    split = [[part.strip() for part in path.split("->")] for path in paths]
    if not split or not all(len(parts) > 1 and all(parts) for parts in split):
        raise ValueError(f"Each path joins at least two parts, as in 'text -> tokens'; got {shown(list(paths))}.")
    edges = list(dict.fromkeys(pair for parts in split for pair in itertools.pairwise(parts)))
    columns, routes = _layered(edges)
    boxes = [[name for name in column if not name.startswith(_PASSING)] for column in columns]
    widths = [0.35 + 0.085 * max(len(line) for name in column for line in name.split("\n")) for column in boxes]
    lefts = np.cumsum([0, *(width + 0.55 for width in widths)])
    rows = max(map(len, columns))
    figure, axis = plt.subplots(figsize=(lefts[-1] - 0.35, 0.62 * rows + 0.3), layout="constrained")
    axis.set(xlim=(-0.1, lefts[-1] - 0.45), ylim=(rows - 0.4, -0.6))
    axis.set_axis_off()
    places = {}
    for column, left, width in zip(columns, lefts, widths, strict=False):
        for row, name in enumerate(column):
            places[name] = (left, left + width, row + (rows - len(column)) / 2)
            if not name.startswith(_PASSING):
                box = FancyBboxPatch(
                    (left, places[name][2] - 0.28), width, 0.56, boxstyle="round,pad=0,rounding_size=0.1"
                )
                box.set(facecolor="#e7f0f3", edgecolor=ACCENT)
                axis.add_patch(box)
                axis.text(left + width / 2, places[name][2], name, ha="center", va="center", fontsize=9, color="black")
    for route in routes:
        ends = [places[name] for name in route]
        points = [(ends[0][1], ends[0][2]), *((x, y) for *xs, y in ends[1:-1] for x in xs), (ends[-1][0], ends[-1][2])]
        if len(points) > 2:
            axis.plot(*zip(*points[:-1], strict=True), color="0.35", linewidth=1.2, solid_joinstyle="round")
        axis.annotate(
            "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 0}
        )
    plt.close(figure)
    return figure


_PASSING = "\0"  # begins the name of a place where an arrow passes a column


def _layered(edges: Sequence[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Columns of boxes and passing places, each box after all that it needs; and each edge's way through them."""
    depth = dict.fromkeys((name for edge in edges for name in edge), 0)
    for _ in depth:
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    if any(depth[target] <= depth[source] for source, target in edges):
        raise ValueError(f"Data flow forwards; these paths run in a circle: {shown(edges)}.")
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, column in depth.items():
        columns[column].append(name)
    routes = []
    for source, target in edges:
        between = [f"{_PASSING}{source} -> {target} {column}" for column in range(depth[source] + 1, depth[target])]
        for column, name in enumerate(between, depth[source] + 1):
            columns[column].append(name)
        routes.append([source, *between, target])
    before: dict[str, list[str]] = {}
    for route in routes:
        for source, target in itertools.pairwise(route):
            before.setdefault(target, []).append(source)
    for left, right in itertools.pairwise(columns):  # each at the mean height of what it follows
        height = {name: row - len(left) / 2 for row, name in enumerate(left)}
        right.sort(key=lambda name: np.mean([height[one] for one in before[name] if one in height] or [0]))
    return columns, routes


def _canvas(
    rows: int, columns: int, width: float, text_lines: int = 0, margin: float = 0.0
) -> tuple[Figure, np.ndarray]:
    size = (columns * width + margin, rows * (width + 0.2 * text_lines))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    plt.close(figure)  # the caller shows it; if it stayed open, a notebook would draw it twice
    return figure, axes


def _horizontal_bars(
    names: list[str], means: Sequence[float], errors: np.ndarray, label: str, title: str | None
) -> tuple[Figure, Axes]:
    """One bar for each name, the first on top, with its error bar."""
    figure, axis = plt.subplots(figsize=(6, 0.45 * len(names) + 0.8), layout="constrained")
    plt.close(figure)
    places = np.arange(len(names))
    axis.barh(places, means, xerr=errors, color=ACCENT, alpha=0.6, capsize=3, height=0.6)
    axis.set(yticks=places, yticklabels=names, xlabel=label, title=title or "")
    axis.invert_yaxis()
    return figure, axis


def _draw(axis: Axes, image: ImageLike) -> None:
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim == 2:
        low, high = (float(bound) for bound in (image.min(), image.max()))
        axis.imshow(np.asarray(image), cmap="gray", vmin=min(0, low), vmax=max(1, high))
    else:
        axis.imshow(load_image(image))


def _one_each(texts: str | Sequence[str] | None, count: int, what: str, of: str = "picture") -> list[str] | None:
    if texts is None:
        return None
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != count:
        raise ValueError(f"Give one {what} for each {of}: {count} {of}(s), {len(texts)} {what}(s).")
    return texts


def _lines(captions: Sequence[str] | None) -> int:
    return max(text.count("\n") + 1 for text in captions) if captions else 0


def _caption(axis: Axes, text: str) -> None:
    axis.text(0.5, -0.03, text, transform=axis.transAxes, ha="center", va="top", fontsize=8, color="0.3")


def _colors(count: int) -> list:
    return [ACCENT, SECOND, GREY][:count] if count <= 3 else list(plt.cm.viridis(np.linspace(0, 0.9, count)))
