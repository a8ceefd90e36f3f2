"""What helps when a given picture is the reference: StyleAligned and what came after it, on the same references.

The references, prompts and noises are those of :mod:`.references`. A reference is inverted, or cheaply noised. Then it
is turned louder; or the keys of its subject are scaled down (Only-Style); or its keys and values alone are seen in the
late layers, and guidance leads away from its layout (NVQG of StyleKeeper). The truth tells two things more: how good
the mask of the subject is, and what a perfect mask would do.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import ddim_invert, noised_reference
from context_diffusion.alignment.settings import StyleSettings
from context_diffusion.alignment.subject import subject_mask
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.latents import generators
from context_diffusion.metrics import Estimate, estimate_mean
from context_diffusion.scenes import SEGMENTS
from context_diffusion.scenes.vocabulary import article

from ..bench import Bench
from ..claims import Claim, decide
from ..curves import points
from ..report import Report
from ..results import Results, Scores, Unit
from ..sheets import labelled_sheet
from ..tables import Table
from ..units import carry_out
from .references import PICTURES, further_scenes, others, reference
from .scorers import Scorers, drawn_by
from .sets import PLAIN, REAL

Mask = Bool[Tensor, "references height width"]


@dataclass(frozen=True)
class Method:
    """How the reference is made, whose mask of its subject is used, and the settings."""

    made: Literal["inverted", "noised"] = "noised"
    settings: StyleSettings = field(default_factory=StyleSettings)
    mask: Literal["found", "true"] | None = None


INVERTED, NOISED, SHIFT = "StyleAligned, inverted", "StyleAligned, noised", "shift log 2"
SWAP, NVQG = "swapped attention", "NVQG"
ONLY, LOUD = "Only-Style", "shift log 64"
LOUD_ONLY, LOUD_TRUE = "shift log 64, Only-Style", "shift log 64, Only-Style, true mask"
_LOUD = StyleSettings(score_shift=math.log(64))  # so loud that objects leak
METHODS: dict[str, Method | None] = {
    PLAIN: None,
    INVERTED: Method("inverted"),
    NOISED: Method(),
    SHIFT: Method(settings=StyleSettings(score_shift=math.log(2))),
    SWAP: Method(settings=StyleSettings.nvqg(negative_query=False)),
    NVQG: Method(settings=StyleSettings.nvqg()),
    ONLY: Method(settings=StyleSettings(subject_scale=0.5), mask="found"),
    LOUD: Method(settings=_LOUD),
    LOUD_ONLY: Method(settings=replace(_LOUD, subject_scale=0.0), mask="found"),
    LOUD_TRUE: Method(settings=replace(_LOUD, subject_scale=0.0), mask="true"),
}
ROWS = (*METHODS, REAL)
SCORES = ("style", "object", "leakage", "palette distance", "DINO", "mask IoU")
LOWER = ("leakage", "palette distance", "time over plain")


def run(bench: Bench) -> Report | None:
    """Draw and score ten references by every method, and time each."""
    return carry_out(StyleMethods(bench, count=bench.first(10, 2)), bench.work)


class StyleMethods:
    """Unseen references x methods."""

    name = "methods"

    def __init__(self, bench: Bench, *, count: int) -> None:
        self.bench, self.count, self.scorers = bench, count, Scorers(bench, "dino", "judge")
        self.trajectory = lru_cache(maxsize=8)(partial(make_reference, bench))
        self.mask = lru_cache(maxsize=8)(self.find_mask)  # scoring asks for it again

    def about(self) -> dict:
        """The model, the methods, how many references."""
        return {
            **drawn_by(self.bench),
            "methods": {name: repr(method) for name, method in METHODS.items()},
            "scorers": self.scorers.about(),
        }

    def units(self) -> list[Unit]:
        """Every reference by every method, one reference after the other."""
        return [Unit(name, i) for i in range(self.count) for name in ROWS]

    def draw(self, unit: Unit) -> list[Image.Image]:
        """Draw the other objects, each from a noise of its own, the same by every method."""
        if unit.setting == REAL:
            return further_scenes(unit.index)
        _, style = reference(unit.index)
        prompts = [f"{text}, {style} style" for text in others(unit.index)]
        method, noise = METHODS[unit.setting], generators(10 * unit.index, PICTURES)
        with nullcontext() if method is None else self.aligned(unit.index, method):
            return self.bench.pipe(prompts, generator=noise, **self.bench.sampling).images

    def aligned(self, index: int, method: Method):
        """Align what is drawn inside the block with the reference of a number."""
        mask = None if method.mask is None else self.mask(index, method.mask)
        trajectory = self.trajectory(index, method.made)
        return style_aligned(self.bench.pipe, references=trajectory, settings=method.settings, subject=mask)

    def find_mask(self, index: int, kind: Literal["found", "true"] = "found") -> Mask:
        """Where the subject of the reference is: by cross-attention, or in truth."""
        if kind == "true":
            return true_mask(index, self.trajectory(index, "noised").latents.shape[-2:])
        return subject_mask(self.bench.pipe, self.trajectory(index, "noised"), reference(index)[0].scene.object)

    def score(self, unit: Unit, pictures: Sequence[Image.Image]) -> Scores:
        """Score the pictures of one reference."""
        drawn, style = reference(unit.index)
        texts, lent = others(unit.index), [article(drawn.scene.object)] * PICTURES
        scores = self.scorers.of_reference(pictures, drawn.image)
        scores |= self.scorers.of_content(pictures, texts, style, lent)
        if unit.setting == ONLY:
            scores["mask IoU"] = [overlap(self.mask(unit.index, "found"), self.mask(unit.index, "true"))]
        return scores

    def report(self, results: Results) -> Report:
        """The table with what each method costs, the claims, and a sheet of pictures."""
        rows = {name: results.estimates(name, SCORES) for name in ROWS}
        seconds, making = self.times(repeats=self.bench.count(3, 1))
        for name, over_plain in seconds.items():
            rows[name]["time over plain"] = over_plain
        report = Report(notes=[
            f"{self.count} unseen references, {PICTURES} pictures each, {self.bench.steps} steps; the reference is the "
            "unit; palette distance and DINO are between picture and reference",
            "time over plain: drawing in one batch, of the plain batch, the reference at hand; making it is apart",
            *self.scorers.notes(),
        ])  # fmt: skip
        report.add_table("scores", Table("A reference picture, by method", rows, lower=LOWER))
        for name, over_plain in making.items():
            report.add(f"time of making a reference over drawing plainly, {name}", over_plain)
        report.claims = claims(results)
        shown = [name for name in SCORES if name in rows[PLAIN]]
        report.sheets["points"] = points(rows, shown)
        numbers = range(min(self.count, 10))
        pictures = {"reference": [reference(i)[0].image for i in numbers]}
        pictures |= {name: [results.pictures(Unit(name, i))[0] for i in numbers] for name in ROWS}
        report.sheets["pictures"] = labelled_sheet(pictures, [others(i)[0] for i in numbers], cell=96)
        return report

    def times(self, repeats: int) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        """Time each method's drawing, and the making of a reference, as ratios to plain drawing, by turns."""
        makers = {
            "inverted": lambda: make_reference(self.bench, 0, "inverted"),
            "noised": lambda: make_reference(self.bench, 0, "noised"),
            "mask of the subject": lambda: self.find_mask(0),
        }
        drawing: dict[str, list[float]] = {name: [] for name in METHODS}
        making: dict[str, list[float]] = {name: [] for name in makers}
        for method in METHODS.values():  # everything that is kept is made before the clock starts
            if method is not None:
                self.trajectory(0, method.made)
                self.mask(0, method.mask or "found")
        for _ in range(repeats):
            spent = {name: clocked(partial(self.draw, Unit(name, 0))) for name in METHODS}
            for name in METHODS:
                drawing[name].append(spent[name] / spent[PLAIN])
            for name, make in makers.items():
                making[name].append(clocked(make) / spent[PLAIN])
        means = [
            {name: estimate_mean(ratios).within(0) for name, ratios in spent.items()} for spent in (drawing, making)
        ]
        return means[0], means[1]


def clocked(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes: of the processor, which does not count those of others, or with a GPU all."""
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = now()
    work()
    return now() - start


def make_reference(bench: Bench, index: int, made: Literal["inverted", "noised"]) -> Trajectory:
    """Invert or noise the reference of a number; its object and style are the prompt."""
    drawn, style = reference(index)
    prompt = f"{article(drawn.scene.object)}, {style} style"
    if made == "inverted":
        return ddim_invert(bench.pipe, drawn.image, prompt, num_inference_steps=bench.steps)
    return noised_reference(bench.pipe, drawn.image, prompt, num_inference_steps=bench.steps)


def true_mask(index: int, size: Sequence[int]) -> Mask:
    """Where the object of the reference is drawn: the latents of which it covers half or more."""
    inside = torch.from_numpy(reference(index)[0].segments == SEGMENTS.index("object")).float()
    return F.adaptive_avg_pool2d(inside[None], tuple(size)) >= 0.5


def overlap(found: Mask, true: Mask) -> float:
    """Intersection over union of two masks."""
    return float((found & true).sum() / (found | true).sum().clamp(min=1))


def claims(results: Results) -> list[Claim]:
    """What the papers say of their methods, as paired differences."""
    asked = [
        ("a noised reference keeps the palette of an inverted one", NOISED, INVERTED, "palette distance", "not above"),
        ("a noised reference keeps the style of an inverted one", NOISED, INVERTED, "style", "not below"),
        ("a noised reference leaks less than an inverted one", NOISED, INVERTED, "leakage", "below"),
        ("a shift of log 2 brings palettes closer", SHIFT, NOISED, "palette distance", "below"),
        ("swapped attention brings palettes closer than plain", SWAP, PLAIN, "palette distance", "below"),
        ("negative queries leak less than swapping alone", NVQG, SWAP, "leakage", "below"),
        ("NVQG leaks less than StyleAligned", NVQG, NOISED, "leakage", "below"),
        ("NVQG draws the prompt's object more often than StyleAligned", NVQG, NOISED, "object", "above"),
        ("NVQG keeps the palette of StyleAligned", NVQG, NOISED, "palette distance", "not above"),
        ("Only-Style keeps the palette of StyleAligned", ONLY, NOISED, "palette distance", "not above"),
        ("a very loud reference leaks", LOUD, NOISED, "leakage", "above"),
        ("Only-Style leaks less where the reference is very loud", LOUD_ONLY, LOUD, "leakage", "below"),
        ("Only-Style draws the prompt's object more often there", LOUD_ONLY, LOUD, "object", "above"),
        ("a true mask leaks less than a found one", LOUD_TRUE, LOUD_ONLY, "leakage", "below"),
    ]
    return decide(results, asked)
