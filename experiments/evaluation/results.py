"""Units of work, and the scores of all of them: by setting, as estimates, as paired differences, as CSV."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from context_diffusion.metrics import Estimate, estimate_difference, estimate_mean, estimate_rate

Scores = dict[str, list[float]]
RATES = (
    "object",
    "style",
    "leakage",
    "background",
    "sun",
    "passes",
)  # scores that are 0 or 1: their means stay in [0, 1], and so do the intervals
_FROM_ZERO = (
    "palette distance", "slot palette", "texture", "period", "angle", "weight", "strength", "softness",
    "diversity of pixels", "diversity of layouts",
)  # fmt: skip
_COSINES = ("DINO", "CLIP, prompt", "CLIP, object", "depth rank correlation")
ENDS = {"edge F1": (0, 1)} | dict.fromkeys(_COSINES, (-1, 1)) | dict.fromkeys(_FROM_ZERO, (0,))  # where the others end


@dataclass(frozen=True)
class Unit:
    """Pictures that are drawn together: the setting (a row of the table), which set or reference, which seed."""

    setting: str
    index: int
    seed: int = 0

    @property
    def path(self) -> str:
        """Where it goes: ``"without-adain/007-2"``."""
        return f"{re.sub('[^a-z0-9.]+', '-', self.setting.lower()).strip('-')}/{self.index:03d}-{self.seed}"


class Results:
    """The scores of all units; ``pictures(unit)`` reads those of a unit, where a figure asks for them."""

    def __init__(self, scores: Mapping[Unit, Scores], pictures: Callable[[Unit], list[Image.Image]]):
        self.scores, self.pictures = scores, pictures

    def of(self, setting: str) -> dict[Unit, Scores]:
        """The units of one setting, in order."""
        return {unit: scores for unit, scores in self.scores.items() if unit.setting == setting}

    def values(self, setting: str, score: str) -> tuple[list[float], list[int]]:
        """All numbers of a score under a setting, and for each the index of its set, the unit of resampling."""
        pairs = [(value, unit.index) for unit, scores in self.of(setting).items() for value in scores.get(score, ())]
        return [value for value, _ in pairs], [index for _, index in pairs]

    def estimates(self, setting: str, scores: Sequence[str]) -> dict[str, Estimate]:
        """Estimate every score that was measured under a setting; the index is what is resampled."""
        found = {}
        for score in scores:
            values, indices = self.values(setting, score)
            if values:
                if score in RATES:
                    found[score] = estimate_rate(map(bool, values), indices)
                else:
                    found[score] = estimate_mean(values, indices).within(*ENDS.get(score, ()))
        return found

    def difference(self, first: str, second: str, score: str) -> Estimate | None:
        """Estimate ``first - second``, paired unit by unit; None where the score was not measured."""
        (a, indices), (b, _) = self.values(first, score), self.values(second, score)
        return estimate_difference(a, b, indices) if a and b else None

    def csv(self) -> str:
        """One line for each unit: setting, index, seed, and the mean of each score over the unit's pictures."""
        names = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["setting", "index", "seed", *names])
        for unit, scores in self.scores.items():
            means = [f"{sum(scores[n]) / len(scores[n]):.5g}" if scores.get(n) else "" for n in names]
            writer.writerow([unit.setting, unit.index, unit.seed, *means])
        return out.getvalue()
