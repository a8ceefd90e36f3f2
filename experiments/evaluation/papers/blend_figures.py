"""The figures of the blending protocol: shares over weights, and rows of pictures."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from context_diffusion.metrics import estimate_mean

from ..curves import picture_of, with_error
from ..results import Results, Unit
from ..sheets import labelled_sheet
from .mixtures import Mixtures, OwnMixtures
from .prompts import noun

SHOWN = 3  # mixtures on the sheet of pairs, at most


def share_curves(
    results: Results, blends: Sequence[str], weights: Sequence[float], rulers: Sequence[str]
) -> Image.Image:
    """Draw the second style's share over its weight, a panel for each ruler; dotted: what it reads off real scenes.

    There are no dotted lines where no scenes are known.
    """
    figure = Figure(figsize=(3.2 * len(rulers), 2.8), layout="constrained")
    axes = figure.subplots(1, len(rulers), sharey=True, squeeze=False)[0]
    for axis, ruler in zip(axes, rulers, strict=True):
        for blend in blends:
            points = {w: estimate_mean(*results.values(f"{blend} {w:g}", f"share, {ruler}")) for w in weights}
            with_error(axis, points, label=blend)
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        for setting in ("real, first style", "real, second style"):
            if results.of(setting):
                level = estimate_mean(*results.values(setting, f"share, {ruler}")).value
                axis.axhline(level, color="0.4", linestyle=":", linewidth=1)
        axis.set(xlabel="weight of the second reference", title=ruler, ylim=(-0.05, 1.05))
    axes[0].set_ylabel("share of the second style")
    axes[0].legend(fontsize="small")
    return picture_of(figure)


def pictures_of_pairs(
    results: Results, tasks: Mixtures | OwnMixtures, blends: Sequence[str], weights: Sequence[float]
) -> Image.Image:
    """Show the first thing of the first mixtures over the weights, with the references at both ends."""
    rows = {}
    for index in range(min(SHOWN, tasks.count)):
        task = tasks.task(index)
        first, second, *_ = task.references
        for blend in blends:
            drawn = [results.pictures(Unit(f"{blend} {w:g}", index))[0] for w in weights]
            rows[f"{noun(task.prompts[0])}\n{blend}"] = [first, *drawn, second]
    return labelled_sheet(rows, ["first", *(f"{w:g}" for w in weights), "second"], cell=96)


def pictures_of_three(
    results: Results, tasks: Mixtures | OwnMixtures, blends: Sequence[str], thirds: Sequence[tuple[float, ...]]
) -> Image.Image:
    """Show the first mixture's three references, then all things under every blend at every weighting."""
    task = tasks.task(0)
    rows = {}
    for weights in thirds:
        name = ":".join(f"{w:.2f}" for w in weights)
        pictures = [picture for blend in blends for picture in results.pictures(Unit(f"{blend} {name}", 0))]
        rows[name] = [*task.references, *pictures]
    titles = ["first", "second", "third", *(f"{blend}, {noun(thing)}" for blend in blends for thing in task.prompts)]
    return labelled_sheet(rows, titles, cell=112)
