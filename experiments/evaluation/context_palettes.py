"""Do contexts pass on their palette and style, and what is the statistic token worth?

The measure is a ratio: the earth mover's distance in Lab from the picture's palette to that of its own contexts, over
its distance to the contexts of other draws of the *same named style*. It is 1 where contexts tell no more than the
style's name; the last line says what it is for a further real scene of the same draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from context_diffusion.context.contexts import TokenContexts
from context_diffusion.context.model import ContextDiffusion
from context_diffusion.context.request import Request
from context_diffusion.metrics import Estimate, Palette, palette_distances, palette_of
from context_diffusion.metrics.estimates import estimate_from_influence
from context_diffusion.scenes import OBJECTS, STYLES, Rendering, Scene

from .accuracy import accuracy
from .bench import Bench
from .report import Report
from .sheets import labelled_sheet
from .unseen import CONTEXT, OTHERS, content, unseen, unseen_group

RIVALS = 4  # other draws of the same named style, for each picture
MOST = 1000  # cases
MAIN, FEWER = "3 contexts", 80  # the row with aims is measured on all groups, the others on fewer
SHOWN = 3  # contexts of a group; its fourth picture is the real further scene


class WithoutStatistic(TokenContexts):
    """The same contexts, with their last token set to zero: the one made of the removed statistics."""

    @torch.inference_mode()
    def tokens(self, contexts: Sequence[Image.Image], weights: Sequence[float]) -> Float[Tensor, "1 tokens dim"]:
        """Turn contexts into tokens, the last of which says nothing."""
        tokens = super().tokens(contexts, weights)
        return torch.cat([tokens[:, :-1], torch.zeros_like(tokens[:, -1:])], dim=1)


@dataclass(frozen=True)
class Condition:
    """One row of the table: how many contexts, what the prompt says, and whether the statistic token speaks."""

    name: str
    contexts: int
    prompt: str = "content"  # or "content and style", or "nothing"
    statistic: bool = True  # the token made of the removed statistics


CONDITIONS = (
    Condition("no context, style named", 0, "content and style"),
    Condition("1 context", 1),
    Condition("2 contexts", 2),
    Condition(MAIN, 3),
    Condition("3 contexts, no prompt", 3, "nothing"),
    Condition("3 contexts, no statistic token", 3, statistic=False),
)


@dataclass(frozen=True)
class Cases:
    """Groups of contexts in the ten styles, a scene to draw with each, and other draws of its style."""

    styles: list[str]
    groups: list[list[Rendering]]  # three contexts and a further scene of the same draw
    scenes: list[Scene]
    rivals: list[list[list[Rendering]]]

    @property
    def said(self) -> list[str]:
        """What the prompts say: content alone."""
        return [content(scene) for scene in self.scenes]


def context_cases(count: int) -> Cases:
    """Draw ``count`` unseen cases."""
    styles = [STYLES[i % len(STYLES)] for i in range(count)]
    return Cases(
        styles,
        [unseen_group(CONTEXT + i, style, SHOWN + 1) for i, style in enumerate(styles)],
        [unseen(CONTEXT + MOST + i, style, object=OBJECTS[i % 12]).scene for i, style in enumerate(styles)],
        [[unseen_group(OTHERS + RIVALS * i + k, s, SHOWN) for k in range(RIVALS)] for i, s in enumerate(styles)],
    )


def run(bench: Bench) -> Report:
    """Palette distance ratio, style and object accuracy for one to three contexts."""
    bench.need("context_projector", "judge")
    count = bench.count(240, 4)
    cases = context_cases(count)
    styles, groups, scenes, rivals = cases.styles, cases.groups, cases.scenes, cases.rivals
    contexts, model = [[one.image for one in group[:SHOWN]] for group in groups], bench.model
    report = Report(notes=[
        f"{count} groups of contexts for the row {MAIN!r}, {min(count, FEWER)} for the others, a group is one unit; "
        f"{RIVALS} other draws of the same style for each",
        "ratio of the mean distances; the statistic token is zeroed in a model that was trained with it: that shows "
        "what the token carries, not what a model trained without it would have learned",
    ])  # fmt: skip
    rows = {"a context": [images[0] for images in contexts]}
    for condition in CONDITIONS:
        main = condition.name == MAIN
        n = count if main else min(count, FEWER)
        requests = condition_requests(condition, contexts[:n], cases.said, styles)
        pictures = bench.draw(requests, reduced(model, condition))
        shown = condition.contexts or SHOWN
        ratio = palette_ratio(
            pictures, [c[:shown] for c in contexts[:n]], [[r[:shown] for r in rs] for rs in rivals[:n]]
        )
        report.add(f"palette ratio, {condition.name}", ratio, at_most=0.27 if main else None)
        seen, of = bench.judge(pictures), [STYLES.index(style) for style in styles[:n]]
        report.add(f"style accuracy, {condition.name}", accuracy(seen["style"], of), at_least=0.98 if main else None)
        if condition.prompt != "nothing":
            right = accuracy(seen["object"], [OBJECTS.index(scene.object) for scene in scenes[:n]])
            report.add(f"object accuracy, {condition.name}", right, at_least=0.98 if main else None)
        rows[condition.name.replace(", ", ",\n")] = pictures
    real = [group[SHOWN].image for group in groups]
    report.add("palette ratio, a real scene of the same draw", palette_ratio(real, contexts, rivals))
    rows["a real scene of\nthe same draw"] = real
    report.sheets["pictures"] = labelled_sheet({key: row[:10] for key, row in rows.items()}, styles[:10])
    return report


def reduced(model: ContextDiffusion, condition: Condition) -> ContextDiffusion:
    """The same model, without the statistic token where the condition says so."""
    if condition.statistic:
        return model
    return ContextDiffusion(
        model.pipeline, model.model, WithoutStatistic(model.contexts.vision, model.contexts.projector)
    )


def condition_requests(
    condition: Condition, contexts: Sequence[Sequence[Image.Image]], contents: Sequence[str], styles: Sequence[str]
) -> list[Request]:
    """One request for each group; its seed is the group's number."""
    prompts = {
        "content": contents,
        "content and style": [f"{what}, {style} style" for what, style in zip(contents, styles, strict=True)],
        "nothing": [""] * len(contents),
    }[condition.prompt]
    return [Request(None, tuple(contexts[i][: condition.contexts]), prompts[i], seed=i) for i in range(len(contexts))]


def palette_ratio(
    pictures: Sequence[Image.Image],
    own: Sequence[Sequence[Image.Image]],
    rivals: Sequence[Sequence[Sequence[Rendering]]],
) -> Estimate:
    """The distance of each picture's palette from its contexts', over its mean distance from the rivals'."""
    palettes = [palette_of(picture) for picture in pictures]
    near = palette_distances(palettes, [palette_of(list(contexts)) for contexts in own])
    far = [_mean_distance(palette, groups) for palette, groups in zip(palettes, rivals, strict=True)]
    return estimate_ratio(near, np.array(far))


def _mean_distance(palette: Palette, groups: Sequence[Sequence[Rendering]]) -> float:
    targets = [palette_of([one.image for one in group]) for group in groups]
    return float(palette_distances([palette] * len(targets), targets).mean())


def estimate_ratio(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> Estimate:
    """Estimate mean(first) / mean(second); the pairs are the units.

    To first order a pair (a, b) moves the ratio R by (a - R b) / mean(b) (the delta method); these are bootstrapped.
    """
    ratio = first.mean() / second.mean()
    return estimate_from_influence(float(ratio), [(first - ratio * second) / second.mean()], n=len(first)).within(0)
