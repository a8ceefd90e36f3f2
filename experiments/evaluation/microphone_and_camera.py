"""From a microphone and a camera to a picture: "a boat by the sea", spoken, and a photograph of another style.

Fifty runs, ten styles by five voices: espeak-ng says the sentence in voices that no training heard, each at a speed and
pitch of its own; the photograph shows another object in an unseen draw of the style. The transcript is the prompt, and
the photograph is the context image of :class:`~context_diffusion.ContextDiffusion`; the name of its style, which the
captioner reads off it, goes into the prompt too. A run is right where the judge sees a boat *and* the style.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.fusion import Description, fuse_prompts
from context_diffusion.fusion.caption import Captioner
from context_diffusion.fusion.only import Only
from context_diffusion.fusion.speech import AudioSource, Transcriber
from context_diffusion.metrics import estimate_difference, estimate_mean, estimate_rate, palette_distances
from context_diffusion.scenes import OBJECTS, STYLES

from ..training.speech_data import HELD_OUT, RATE, UNSEEN, Utterance, say
from .accuracy import accuracy
from .bench import Bench
from .photograph import photographed
from .report import Report
from .sheets import labelled_sheet
from .transcripts import AROUND
from .unseen import unseen

SENTENCE = "a boat by the sea"
OBJECT = "boat"
VOICES = 5  # for each style
FIRST = 90_000  # number of the first unseen scene
AIM = 0.8


@dataclass(frozen=True)
class Run:
    """What one run is given: a spoken sentence, a picture, and its photograph."""

    style: str
    utterance: Utterance
    picture: Image.Image
    photograph: Image.Image


@dataclass(frozen=True)
class Condition:
    """One row of the table: where the words come from, which picture is the context, whether its style is named."""

    name: str
    spoken: bool = True
    context: str | None = "photograph"  # or "picture", or None
    style_word: bool = False


CONDITIONS = (
    Condition("speech, photograph, its style word", style_word=True),  # as lesson 10 advises: both doors
    Condition("speech, photograph"),
    Condition("typed, photograph", spoken=False),
    Condition("speech, the picture itself", context="picture"),
    Condition("speech, style word alone", context=None, style_word=True),
    Condition("speech alone", context=None),
)


def draw_run(number: int) -> Run:
    """Draw a run: the styles in turn, each with another voice at every turn."""
    style, turn = STYLES[number % len(STYLES)], number // len(STYLES)
    voice = UNSEEN[(number + turn) % len(UNSEEN)]
    utterance = replace(Utterance.draw(HELD_OUT + number), text=SENTENCE, voice=voice)
    others = [name for name in OBJECTS if name != OBJECT]
    picture = unseen(FIRST + number, style, object=others[number % len(others)]).image
    return Run(style, utterance, picture, photographed(picture, FIRST + number))


def run(bench: Bench) -> Report:
    """Draw every row of the table from the same runs and seeds, and let the judge look."""
    bench.need("context_projector or ip-adapter", "judge")
    transcriber, captioner, judge = Transcriber.from_pretrained(), Captioner.from_pretrained(), bench.judge
    runs = [draw_run(number) for number in range(VOICES * len(STYLES))][: bench.count(VOICES * len(STYLES), 4)]
    spoken = [say(one.utterance) for one in runs]
    tight = [AudioSource(samples, RATE, transcriber).describe() for samples in spoken]
    heard = [AudioSource(np.pad(samples, AROUND), RATE, transcriber).describe() for samples in spoken]
    styles = [Only(said, "style").describe() for said in captioner.describe_all(one.photograph for one in runs)]
    report = Report(notes=[
        f"{len(runs)} runs are the units: {len(STYLES)} styles in turn, {len(UNSEEN)} voices of espeak-ng in turn",
        f"recordings have {AROUND / RATE:g} s of silence before and after what is said, except in the row that says so",
        f'the models were trained on sentences like "{SENTENCE}", but never in these voices, and on no photograph',
    ])  # fmt: skip
    for name, texts in (("", heard), (", recording without silence around it", tight)):
        right = estimate_rate([said.text == SENTENCE for said in texts])
        report.add(f"sentence heard as it was said{name}", right)
    read = [said.text == f"{one.style} style" for said, one in zip(styles, runs, strict=True)]
    report.add("style word read off the photograph", estimate_rate(read))
    found: dict[str, Bool[np.ndarray, " runs"]] = {}
    for condition in CONDITIONS:
        pictures = bench.draw(requests(condition, runs, heard, styles))
        found[condition.name] = add_scores(report, condition, judge(pictures), runs)
        distances = palette_distances(pictures, [one.picture for one in runs])
        report.add(f"palette distance to the picture, {condition.name}", estimate_mean(distances).within(0))
        if condition == CONDITIONS[0]:
            report.sheets["pictures"] = sheet(runs, pictures)
    add_comparisons(report, found, runs)
    return report


def requests(
    condition: Condition, runs: Sequence[Run], heard: Sequence[Description], styles: Sequence[Description]
) -> list[Request]:
    """One request for each run; its seed is the run's number."""
    made = []
    for seed, (one, said, style) in enumerate(zip(runs, heard, styles, strict=True)):
        words = [said if condition.spoken else Description(SENTENCE), *([style] if condition.style_word else [])]
        context = {"photograph": (one.photograph,), "picture": (one.picture,), None: ()}[condition.context]
        made.append(Request(None, context, fused(words), seed=seed))
    return made


def fused(words: Sequence[Description]) -> str:
    """Fuse those that say anything into one prompt; an empty one if none does."""
    said = [one for one in words if one.text and one.confidence]
    return str(fuse_prompts(said)) if said else ""


def add_scores(
    report: Report, condition: Condition, seen: Mapping[str, Int[np.ndarray, " runs"]], runs: Sequence[Run]
) -> Bool[np.ndarray, " runs"]:
    """Add how often object, style and both are right; return where both are."""
    wanted = {"object": [OBJECTS.index(OBJECT)] * len(runs), "style": [STYLES.index(one.style) for one in runs]}
    right = np.logical_and.reduce([seen[head] == indices for head, indices in wanted.items()])
    aim = AIM if condition == CONDITIONS[0] else None
    report.add(f"boat and style, {condition.name}", estimate_rate(right), at_least=aim)
    report.add(f"boat, {condition.name}", accuracy(seen["object"], wanted["object"]))
    report.add(f"style, {condition.name}", accuracy(seen["style"], wanted["style"]))
    return right


def add_comparisons(report: Report, found: Mapping[str, Bool[np.ndarray, " runs"]], runs: Sequence[Run]) -> None:
    """Add how each other row differs from the first, run by run, and the first style by style."""
    first, *others = found
    for name in others:
        difference = estimate_difference(found[name].astype(float), found[first].astype(float))
        report.add(f"boat and style, {name}, minus {first}", difference)
    for style in dict.fromkeys(one.style for one in runs):
        among = [one.style == style for one in runs]
        report.add(f"boat and style, {first}, {style}", estimate_rate(found[first][among]))


def sheet(runs: Sequence[Run], pictures: Sequence[Image.Image]) -> Image.Image:
    """Every run, one row for each style: the photograph, and what was drawn."""
    rows: dict[str, list[Image.Image]] = {}
    for one, picture in zip(runs, pictures, strict=True):
        rows.setdefault(one.style, []).extend([one.photograph, picture])
    titles = ["photograph", "drawn"] * (len(next(iter(rows.values()))) // 2)
    return labelled_sheet(rows, titles, cell=96)
