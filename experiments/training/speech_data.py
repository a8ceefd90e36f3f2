"""Spoken captions: sentences of the offline world, said by espeak-ng in many voices; noises; the examples.

    python -m experiments.training.speech_data --examples        # -> data/audio/

Training and scoring call the program espeak-ng (GPL-3.0, the Debian package of that name); using the models does not.
A voice is an accent and a variant of the larynx, "en-us+f3". Nothing is trained on the variants of :data:`UNSEEN`, nor
on two of its accents, Scottish and Received Pronunciation.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm.auto import tqdm

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import DATA, ROOT, written_whole
from context_diffusion.fusion.sound import resampled
from context_diffusion.scenes import PALETTE_FAMILIES, STYLES, Scene, Style, caption, words
from context_diffusion.scenes.vocabulary import OBJECTS, PLACES, SUN, SYNONYMS, article

from .data import given_up_early, kept

RATE = 16_000  # Hz
CACHE = ROOT / "build" / "speech"
COUNT = 8_000  # utterances to train on
HELD_OUT = 1_000_000  # the first seed of what is scored
SECONDS = 5.2  # the longest utterance; what takes longer is said faster
THREADS = 2

ACCENTS = ("en-us", "en", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS = (
    "m1", "m2", "m4", "m5", "m6", "m7", "f1", "f3", "f4", "f5", "klatt", "klatt3", "klatt4", "klatt5", "adam",
    "Alex", "Alicia", "Andrea", "antonio", "aunty", "benjamin", "boris", "Denis", "Diogo", "ed", "Gene",
    "grandma", "grandpa", "gustave", "Henrique", "Hugo", "iven", "iven3", "Jacky", "john", "Lee", "marcelo", "Marco",
    "max", "michel", "Mike", "Nguyen", "norbert", "pablo", "pedro", "quincy", "rob", "sandro", "shelby", "steph2",
    "steph3", "travis", "victor", "zac", "anika", "croak",
)  # fmt: skip
UNSEEN = (
    "en-us+f2", "en-us+m3", "en+Andy", "en+edward", "en-us+linda", "en-us+Michael", "en-gb-scotland+belinda",
    "en-gb-scotland+paul", "en-gb-x-rp+steph", "en-gb-x-rp+robert",
)  # fmt: skip
NOISES = ("white", "pink", "babble")
CAPTIONS, PROMPTS = 0.5, 0.25  # shares of the texts; the rest are words in any order


@dataclass(frozen=True)
class Utterance:
    """A text and how it is said: the voice of espeak-ng, its speed in words a minute, its pitch from 0 to 99."""

    text: str
    voice: str
    speed: int = 160
    pitch: int = 50

    @classmethod
    def draw(cls, seed: int, voices: Sequence[str] = ()) -> "Utterance":
        """Draw a text and a voice, or take ``voices`` in turn."""
        generator = np.random.default_rng([seed, 9])
        voice = voices[seed % len(voices)] if voices else f"{generator.choice(ACCENTS)}+{generator.choice(VARIANTS)}"
        speed, pitch = int(generator.integers(120, 211)), int(generator.integers(25, 76))
        return cls(draw_text(seed), voice, speed, pitch)


def draw_text(seed: int) -> str:
    """A sentence of the offline world: mostly a caption, otherwise a short prompt or words in any order.

    The last teach a model to hear a word for what it sounds like, not only where captions lead it to expect it.
    """
    generator = np.random.default_rng([seed, 10])
    kind = generator.random()
    nouns = [noun for name in OBJECTS for noun in (name, *SYNONYMS.get(name, ()))]
    noun, style = str(generator.choice(nouns)), str(generator.choice(STYLES))
    places = [place for phrases in PLACES.values() for place in phrases if place]
    family = str(generator.choice(PALETTE_FAMILIES))
    if kind < CAPTIONS:
        return caption(Scene.draw(seed), Style.draw(seed), seed)
    if kind < CAPTIONS + PROMPTS:
        sun, here, there, near = (str(generator.choice(these)) for these in (SUN, places, places, places))
        other = article(str(generator.choice(nouns)))
        short = (
            article(noun), noun, f"{style} style", f"{family} colors", f"{article(style)} {noun}", sun,
            f"{article(noun)} {here}", f"{there}, {style} style, {family} colors", f"{article(family)} {noun} {near}",
            f"{article(noun)} and {other}",
        )  # fmt: skip
        return str(generator.choice(short))
    return " ".join(generator.choice(words(), int(generator.integers(1, 6))))


def in_any_order(seed: int) -> bool:
    """Whether the text of a seed is words in any order, rather than a caption or a prompt."""
    return np.random.default_rng([seed, 10]).random() >= CAPTIONS + PROMPTS


def say(utterance: Utterance) -> Float32[np.ndarray, " samples"]:
    """Let espeak-ng say it, faster where it would take too long: samples at :data:`RATE`, the loudest at 0.9.

    Raises ``FileNotFoundError`` where espeak-ng is not installed.
    """
    import soundfile

    if shutil.which("espeak-ng") is None:
        raise FileNotFoundError("espeak-ng speaks what is trained and scored; install the Debian package espeak-ng.")
    for speed in range(utterance.speed, 400, 40):
        settings = ["-v", utterance.voice, "-s", str(speed), "-p", str(utterance.pitch)]
        spoken = subprocess.run(
            ["espeak-ng", *settings, "--stdout", utterance.text], capture_output=True, check=True, timeout=60
        )
        samples, rate = soundfile.read(io.BytesIO(spoken.stdout), dtype="float32")
        if len(samples) <= SECONDS * rate:
            break
    samples = resampled(samples, rate, RATE)
    return samples * (0.9 / max(np.abs(samples).max(), 1e-3))


@dataclass(frozen=True)
class Speech:
    """Many utterances: their texts, their voices, and their samples one after another, int16 at :data:`RATE`."""

    texts: list[str]
    voices: list[str]
    ends: np.ndarray  # of each utterance in ``samples``
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Float32[np.ndarray, " samples"]:
        start = self.ends[index - 1] if index else 0
        return self.samples[start : self.ends[index]].astype(np.float32) / 2**15

    def lengths(self) -> np.ndarray:
        """The number of samples in each utterance."""
        return np.diff(self.ends, prepend=0)


def speech(count: int = COUNT, first: int = 0, voices: Sequence[str] = ()) -> Speech:
    """The utterances of ``count`` consecutive seeds; said once, then kept in ``build/speech/``."""
    file = CACHE / f"{first}-{count}.npz"

    def make(table: Path) -> None:
        utterances = [Utterance.draw(seed, voices) for seed in range(first, first + count)]
        spoken = [np.round(samples * 2**15).astype(np.int16) for samples in _said(utterances)]
        with written_whole(file.with_suffix(".npy")) as sound:
            np.save(sound, np.concatenate(spoken))
        np.savez(
            table, texts=[one.text for one in utterances], voices=[one.voice for one in utterances],
            ends=np.cumsum([len(samples) for samples in spoken]),
        )  # fmt: skip

    return kept(file, _read, make)


def _read(table: Path) -> Speech:
    with np.load(table) as columns:
        texts, said_by, ends = columns["texts"].tolist(), columns["voices"].tolist(), columns["ends"]
    samples = np.load(table.with_suffix(".npy"), mmap_mode="r")
    if len(texts) != len(ends) or len(samples) != ends[-1]:
        raise ValueError("the sound beside it is of other utterances")
    return Speech(texts, said_by, ends, samples)


def _said(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    with given_up_early(ThreadPoolExecutor(THREADS)) as pool:
        yield from tqdm(pool.map(say, utterances), total=len(utterances), desc="espeak-ng speaks", mininterval=5)


def noise(
    kind: str, length: int, generator: np.random.Generator, speech: Speech | None = None
) -> Float32[np.ndarray, " length"]:
    """Noise of unit power: white, pink (power falling as 1/f), or the babble of four voices of ``speech``."""
    if kind == "babble":
        samples = np.zeros(length)
        for _ in range(4):
            talk: list[np.ndarray] = []
            while sum(map(len, talk)) < length:
                talk.append(speech[int(generator.integers(len(speech)))])
            samples += np.concatenate(talk)[:length]
    elif kind in ("white", "pink"):
        samples = generator.standard_normal(length)
        if kind == "pink":
            spectrum = np.fft.rfft(samples)
            samples = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), n=length)
    else:
        raise ValueError(f"There is no noise {kind!r}; take {', '.join(NOISES)}.")
    return (samples / max(np.sqrt(np.mean(samples**2)), 1e-9)).astype(np.float32)


def with_noise(
    samples: Float32[np.ndarray, " length"], noise: Float32[np.ndarray, " longer"], decibels: float
) -> Float32[np.ndarray, " longer"]:
    """Add noise at a signal-to-noise ratio of ``decibels``: 10 log10(power of the samples / power of the noise).

    Noise that lasts longer begins before the samples and ends after them. The sum is made quieter only where it would
    exceed 1.
    """
    level = np.sqrt(np.mean(samples**2) / np.mean(noise**2)) * 10 ** (-decibels / 20)
    spare = len(noise) - len(samples)
    mixed = np.pad(samples, (spare // 2, spare - spare // 2)) + level * noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def write_examples(folder: Path = DATA / "audio") -> list[Path]:
    """Write the small recordings of ``data/audio``: unseen voices, one also in noise and overdriven, and silence."""
    import soundfile

    boat, around = "a boat by the sea", RATE // 5
    one = np.pad(say(Utterance(boat, UNSEEN[0])), around)
    generator = np.random.default_rng(0)
    recordings = {
        "boat": one,
        "boat-scottish": np.pad(say(Utterance(boat, UNSEEN[7])), around),
        "boat-noisy": with_noise(one[around:-around], noise("pink", len(one), generator), 10),
        "boat-clipped": np.clip(8 * one, -1, 1),
        "cat-neon": np.pad(say(Utterance("a cat in a field, neon style", UNSEEN[3])), around),
        "silence": np.zeros(RATE),
    }
    paths = []
    for name, samples in recordings.items():
        paths.append(folder / f"{name}.flac")
        with written_whole(paths[-1]) as temporary:
            soundfile.write(temporary, samples, RATE, subtype="PCM_16")
    return paths


def main() -> None:
    """Write the examples, or say the sentences to train on ahead of time."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", action="store_true", help="write data/audio/ instead of build/speech/")
    if parser.parse_args().examples:
        print(*(path.relative_to(ROOT) for path in write_examples()), sep="\n")
    else:
        print(f"{len(speech()):,} utterances in {CACHE.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
