"""Z-SAMB's protocol: several references, their weights swept, blended linearly, by SLERP, or in attention.

The prompt names a thing and no style, so that all style comes from the references. The question is obedience: does the
share of each style in the picture follow its weight? Three rulers measure shares (CLIP, DINO, palette), each against
real scenes in the very styles of the references. The published score, weighted DINO, can be won by a collapse to one
style; the blend score next to it cannot.

Pictures of one's own (``--references``) are mixed each with the next two. Of their styles there are no further scenes,
so the palette is the only ruler, and there are neither blend scores nor real scenes.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import ddim_invert
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.metrics import (
    blend_scores,
    estimate_difference,
    estimate_mean,
    palette_of,
    weighted_multi_style_scores,
)

from ..bench import Bench, foreign
from ..claims import Claim
from ..report import Report
from ..results import Results, Scores, Unit
from ..tables import Table, published
from ..units import carry_out
from .blend_figures import pictures_of_pairs, pictures_of_three, share_curves
from .mixtures import Mixtures, OwnMixtures, Ruler, mixture, palette_shares, real
from .scorers import Scorers, drawn_by

BLENDS = ("linear", "slerp", "attention")
WEIGHTS = tuple(k / 8 for k in range(9))  # of the second reference
GUIDANCES = (1.5, 6.0)  # in addition to the model's own
THIRDS = ((1 / 3, 1 / 3, 1 / 3), (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5))
SCORES = (
    "weighted DINO", "blend score, CLIP", "blend score, DINO", "misfit, CLIP", "misfit, palette", "CLIP, object",
    "object",
)  # fmt: skip


def settings() -> dict[str, tuple[str, tuple[float, ...], float | None]]:
    """Every setting by name: blend ("real" for real scenes), weights, and guidance if it is not the model's own."""
    named = {f"{b} {w:g}": (b, (1 - w, w), None) for b, w in itertools.product(BLENDS, WEIGHTS)}
    named |= {f"{b} 0.5, guidance {g:g}": (b, (0.5, 0.5), g) for b, g in itertools.product(BLENDS, GUIDANCES)}
    for blend, weights in itertools.product(BLENDS, THIRDS):
        named[f"{blend} {':'.join(f'{w:.2f}' for w in weights)}"] = (blend, weights, None)
    return named | {"real, first style": ("real", (1.0, 0.0), None), "real, second style": ("real", (0.0, 1.0), None)}


SETTINGS = settings()
OWN_PICTURES = OwnMixtures


def run(bench: Bench) -> Report | None:
    """Draw and score eight mixtures, or those of a folder, under every setting."""
    return carry_out(StyleBlends(bench, count=bench.first(8, 2)), bench.work, foreign(bench))


class StyleBlends:
    """Mixtures of references x blends x weights; ``rulers`` are the networks that measure shares, by name."""

    name = "blends"

    def __init__(self, bench: Bench, *, count: int) -> None:
        self.bench, self.scorers = bench, Scorers(bench, "clip", "dino", "judge")
        self.tasks = OwnMixtures(bench.references, bench.limit) if bench.references else Mixtures(count)
        self.has_truth = not bench.references
        self.settings = {
            name: (blend, weights, guidance)
            for name, (blend, weights, guidance) in SETTINGS.items()
            if len(weights) <= self.tasks.references and (self.has_truth or blend != "real")
        }
        self.trajectory = lru_cache(maxsize=4)(self._trajectory)
        self.palettes = lru_cache(maxsize=4)(
            lambda index: [palette_of(one) for one in self.tasks.task(index).references]
        )
        networks = {name: self.scorers.networks.get(name.lower()) for name in ("CLIP", "DINO")}
        known = {name: Ruler(network) for name, network in networks.items() if network is not None}
        self.rulers = known if self.has_truth else {}

    def about(self) -> dict:
        """The model, the settings, the references."""
        return {
            **drawn_by(self.bench),
            "settings": {name: list(setting) for name, setting in self.settings.items()},
            "sets": self.tasks.about(),
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every mixture under every setting, one mixture after the other."""
        return [Unit(setting, index) for index in range(self.tasks.count) for setting in self.settings]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the things of a mixture, from the same noises under every setting."""
        blend, weights, guidance = self.settings[unit.setting]
        if blend == "real":
            return [real(unit.index, weights.index(1.0), thing)[0] for thing in mixture(unit.index).things]
        task, trajectory = self.tasks.task(unit.index), self.trajectory(unit.index, len(weights))
        sampling = self.bench.sampling | ({} if guidance is None else {"guidance_scale": guidance})
        with style_aligned(self.bench.pipe, references=trajectory, weights=weights, blend=blend):
            return self.bench.pipe(list(task.prompts), generator=task.noise(), **sampling).images

    def _trajectory(self, index: int, count: int) -> Trajectory:
        task = self.tasks.task(index)
        images, captions = list(task.references[:count]), list(task.captions[:count])
        return ddim_invert(self.bench.pipe, images, captions, num_inference_steps=self.bench.steps)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """The shares, how far they are from the weights, and the two multi-style scores, of every picture."""
        _, weights, _ = self.settings[unit.setting]
        count, task = len(weights), self.tasks.task(unit.index)
        scores = self.scorers.of_text(pictures, object=task.prompts)
        if self.has_truth:
            scores |= self.scorers.of_content(pictures, task.prompts, "", [None] * len(pictures))
        if "dino" in self.scorers.networks:
            encode = self.scorers.networks["dino"].encode_images
            weighted = weighted_multi_style_scores(list(pictures), list(task.references[:count]), weights, encode)
            scores["weighted DINO"] = weighted.tolist()
        for name, ruler in self.rulers.items():
            self.add_blend(scores, name, ruler, unit.index, weights, pictures)
        for picture in pictures:
            add_shares(scores, "palette", palette_shares(picture, self.palettes(unit.index)[:count]), weights)
        return scores

    def add_blend(
        self,
        scores: Scores,
        name: str,
        ruler: Ruler,
        index: int,
        weights: Sequence[float],
        pictures: Sequence[Image.Image],
    ) -> None:
        """Write down the shares by a network, and the blend score."""
        rows, kept = ruler.encoder.encode_images(pictures), []
        for row, thing in zip(rows, mixture(index).things, strict=True):
            styles, common = ruler.yardstick(index, len(weights), thing), ruler.common(thing)
            kept.append(float(blend_scores(row[None], styles, weights, center=common)[0]))
            add_shares(scores, name, ruler.shares(index, len(weights), thing, row), weights)
        scores[f"blend score, {name}"] = kept

    def report(self, results: Results) -> Report:
        """Tables of scores and of slopes, the curves, and two sheets."""
        rulers = (*self.rulers, "palette")
        shown = (*SCORES, *(f"share, {ruler}" for ruler in rulers))
        count = self.tasks.count
        rows = {setting: results.estimates(setting, shown) for setting in self.settings}
        slopes = {
            f"slope, {blend}": {r: estimate_mean(slopes_of(results, blend, r, count)) for r in rulers}
            for blend in BLENDS
        }
        report = Report(notes=[
            f"{self.tasks.note()}, {self.bench.steps} steps; the mixture is the "
            "unit; weight: of the second reference; misfit: total variation between shares and weights, 0 is obedience",
            *self.scorers.notes(),
        ])  # fmt: skip
        title = "Slope of the second style's share over its weight (1 is obedience)"
        report.add_table("slopes", Table(title, slopes))
        lower = ("misfit, CLIP", "misfit, palette")
        report.add_table("scores", Table("Several references", rows, published("blends"), lower))
        report.claims = claims(results, count, rulers)
        report.sheets["shares"] = share_curves(results, BLENDS, WEIGHTS, rulers)
        report.sheets["pairs"] = pictures_of_pairs(results, self.tasks, BLENDS, WEIGHTS)
        if self.tasks.references > 2:
            report.sheets["three"] = pictures_of_three(results, self.tasks, BLENDS, THIRDS)
        return report


def add_shares(scores: Scores, ruler: str, shares: Sequence[float], weights: Sequence[float]) -> None:
    """Write down the second style's share, and the total variation between all shares and the weights."""
    scores.setdefault(f"share, {ruler}", []).append(shares[1])
    misfit = sum(abs(s - w) for s, w in zip(shares, weights, strict=True)) / 2
    scores.setdefault(f"misfit, {ruler}", []).append(misfit)


def slopes_of(results: Results, blend: str, ruler: str, count: int) -> np.ndarray:
    """The least-squares slope of the second style's share over its weight, for each mixture."""
    shares = np.array([
        [np.mean(results.scores[Unit(f"{blend} {w:g}", i)][f"share, {ruler}"]) for w in WEIGHTS] for i in range(count)
    ])  # fmt: skip
    return np.polyfit(WEIGHTS, shares.T, 1)[0]


def claims(results: Results, count: int, rulers: Sequence[str]) -> list[Claim]:
    """What is claimed of the three ways to blend, as differences paired by mixture."""
    found = []
    for ruler in (one for one in rulers if one != "DINO"):
        slopes = {blend: slopes_of(results, blend, ruler, count) for blend in BLENDS}
        found += [
            Claim(f"SLERP obeys the weights more than linear ({ruler} slope)",
                  estimate_difference(slopes["slerp"], slopes["linear"]), "above"),
            Claim(f"attention obeys the weights more than SLERP ({ruler} slope)",
                  estimate_difference(slopes["attention"], slopes["slerp"]), "above"),
        ]  # fmt: skip
    inner = [f"{w:g}" for w in WEIGHTS[1:-1]]
    for text, first, second, score in (
        ("SLERP scores above linear (weighted DINO)", "slerp", "linear", "weighted DINO"),
        ("SLERP scores above linear (blend score, CLIP)", "slerp", "linear", "blend score, CLIP"),
        ("attention scores above SLERP (blend score, CLIP)", "attention", "slerp", "blend score, CLIP"),
        ("attention keeps more objects than SLERP", "attention", "slerp", "object"),
    ):
        a, b = (
            [(v, i) for w in inner for v, i in zip(*results.values(f"{blend} {w}", score), strict=True)]
            for blend in (first, second)
        )
        if a:
            found.append(
                Claim(text, estimate_difference([v for v, _ in a], [v for v, _ in b], [i for _, i in a]), "above")
            )
    return found
