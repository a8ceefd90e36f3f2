"""Word errors of the offline transcriber in voices that it never heard, without noise and with it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

from context_diffusion.fusion.description import Description
from context_diffusion.fusion.sound import Sound
from context_diffusion.fusion.speech import Transcriber, cut_at_pauses
from context_diffusion.metrics import Estimate, estimate_mean, estimate_rate, word_error_rate
from context_diffusion.metrics.words import word_errors

from ..training.speech_data import HELD_OUT, NOISES, RATE, UNSEEN, Speech, in_any_order, noise, speech, with_noise
from .bench import Bench
from .curves import picture_of
from .report import Report
from .tables import Table

DECIBELS = (20, 10, 5)  # signal to noise
AIM = 0.1  # word error rate without noise
AROUND = RATE // 5  # samples of silence, or of noise alone, before and after
BEFORE = (0.0, 0.5, 1.0, 1.5)  # seconds of silence before, in the rows that vary it


def run(bench: Bench) -> Report:
    """Error rates without noise, in noise and by voice, and whether the confidence tells right from wrong."""
    transcriber = Transcriber.from_pretrained()
    spoken = speech(bench.count(400, 20), HELD_OUT, UNSEEN)
    number = list(range(len(spoken)))
    clean = transcriber.describe_all(recording(spoken, index) for index in number)
    report = Report(notes=[
        "rate = wrong, missing and surplus words / words said, without punctuation; one utterance is one unit",
        "spoken by espeak-ng in variants of its voice that were not trained on, four of ten in unheard accents as well",
        "each utterance meets white, pink and babble noise (other utterances, in the training voices) at each level",
    ])  # fmt: skip
    report.add("word error rate, clean", rate(spoken, clean), at_most=AIM)
    for name, loose in (("captions and prompts", False), ("words in any order", True)):
        kept = [index for index in number if in_any_order(HELD_OUT + index) == loose]
        if kept:
            report.add(f"word error rate, clean, {name}", rate(spoken, clean, kept))
    kept = [index for index in number if not in_any_order(HELD_OUT + index)]
    whole = WholeTranscriber.from_pretrained()
    for seconds in BEFORE:
        name = f"word error rate, clean, captions and prompts, {seconds:g} s of silence before"
        for listener, how in ((transcriber, "cut off"), (whole, "heard as well")):
            later = listener.describe_all(recording(spoken, index, before=round(seconds * RATE)) for index in kept)
            report.add(f"{name}, {how}", rate(spoken, dict(zip(kept, later, strict=True)), kept))
    by_kind: dict[str, dict[int, Estimate]] = {kind: {} for kind in NOISES}
    others = speech(bench.count(400, 20))
    for decibels in DECIBELS:
        heard = {
            kind: transcriber.describe_all(recording(spoken, index, kind, decibels, others) for index in number)
            for kind in NOISES
        }
        by_kind = {kind: by_kind[kind] | {decibels: rate(spoken, heard[kind])} for kind in NOISES}
        said = [text for _ in NOISES for text in spoken.texts]
        written = [one.text for kind in NOISES for one in heard[kind]]
        report.add(f"word error rate, {decibels} dB", word_error_rate(said, written, sets=number * len(NOISES)))
    right = np.array([not word_errors(said, one.text) for said, one in zip(spoken.texts, clean, strict=True)])
    report.add("utterances without an error, clean", estimate_rate(right))
    for name, among in (("without an error", right), ("with one", ~right)):
        if among.any():
            sure = [one.confidence for one, counted in zip(clean, among, strict=True) if counted]
            report.add(f"mean confidence of utterances {name}, clean", estimate_mean(sure).within(0, 1))
    said_by = {
        voice: [index for index in number if spoken.voices[index] == voice] for voice in sorted({*spoken.voices})
    }
    rows = {voice: {"word error rate": rate(spoken, clean, kept)} for voice, kept in said_by.items()}
    report.add_table("voices", Table("Unseen voices, clean", rows, lower=("word error rate",)))
    report.sheets = {"noise": draw_rates(by_kind, rate(spoken, clean))}
    return report


class WholeTranscriber(Transcriber):
    """A transcriber that hears the quiet ends of a recording, too."""

    def _windows(self, sound: Sound) -> list[Float[np.ndarray, " _"]]:
        return cut_at_pauses(sound.samples, self.window, self.rate)


def recording(
    spoken: Speech, index: int, kind: str | None = None, decibels: float = 0.0, others: Speech | None = None,
    *, before: int = AROUND,
) -> Sound:  # fmt: skip
    """One utterance with silence around it, and noise of a ``kind``, if any, over all of it."""
    samples = spoken[index]
    length = len(samples) + 2 * AROUND
    if kind is None:
        return Sound(np.pad(samples, (before, AROUND)), RATE, f"utterance {index}")
    generator = np.random.default_rng([index, NOISES.index(kind), int(decibels)])
    return Sound(with_noise(samples, noise(kind, length, generator, others), decibels), RATE, f"utterance {index}")


def rate(
    spoken: Speech, heard: Sequence[Description] | Mapping[int, Description], kept: Sequence[int] | None = None
) -> Estimate:
    """The word error rate of all utterances, or of those whose numbers are ``kept``."""
    kept = range(len(spoken)) if kept is None else kept
    return word_error_rate([spoken.texts[index] for index in kept], [heard[index].text for index in kept])


def draw_rates(rates: Mapping[str, Mapping[int, Estimate]], clean: Estimate) -> Image.Image:
    """Draw the rates against the signal-to-noise ratio, a line for each kind of noise, with 95 % intervals."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="signal-to-noise ratio, dB", ylabel="word error rate, %")
    for shift, (kind, points) in enumerate(rates.items()):
        places = [decibels + 0.3 * (shift - 1) for decibels in points]
        values = np.array([[one.value, one.low, one.high] for one in points.values()]) * 100
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        axes.errorbar(places, values[:, 0], yerr=spread, marker="o", capsize=3, label=kind)
    axes.axhspan(100 * clean.low, 100 * clean.high, color="gray", alpha=0.25, linewidth=0)
    axes.axhline(100 * clean.value, color="gray", linestyle="--", label="clean")
    axes.set_xticks(sorted({decibels for points in rates.values() for decibels in points}))
    axes.set_ylim(bottom=0)
    axes.legend()
    return picture_of(figure)
