"""Read a recording as a :class:`Sound`: one channel of float32 samples in [-1, 1] at the rate that a model wants.

Channels are averaged, which keeps what they share; if they cancel each other, a note says so. A polyphase filter
(``scipy.signal.resample_poly``) changes the rate and removes the frequencies that the new rate cannot hold.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from ..checks import LIMITS, check_list, check_number, plain, reason, shown
from ..files import as_path, shown_path

Recording = str | os.PathLike | tuple[ArrayLike, float] | ArrayLike  # a file, (samples, rate), or samples alone

LONGEST = 300.0  # seconds
RATES = (1_000, 768_000)  # Hz, lowest and highest
MOST_CHANNELS = 32
MOST_SAMPLES = 100_000_000  # of a file, over all channels: 400 MB
KINDS = ("uint8", "int16", "int32")  # the integers of wav files, as scipy.io.wavfile reads them
SILENCE = -60.0  # dBFS, root mean square: below this there is nothing to listen to
QUIET = 35.0  # dB below the loudest stretch of a recording: a pause
STRETCH, MARGIN = 0.02, 0.1  # seconds: over which a level is measured; of a pause that stays
CLIPPED = 0.01  # share of clipped samples that earns a note
FULL_SCALE = 1 - 2**-15  # the largest 16-bit sample
FLAT = 3  # so many samples at full scale in a row are a clipped peak; a peak that just touches it has fewer
TOO_LOUD = 16.0  # the loudest an overdriven float recording can be; beyond this the scale is wrong


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of samples in [-1, 1], their rate in Hz, a name for people, and notes on what they should know."""

    samples: Float32[np.ndarray, " samples"]
    rate: int
    name: str = "a recording"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.samples) / self.rate

    @property
    def level(self) -> float:
        """The loudness in dBFS: 20 log10 of the root mean square about the mean, -inf for constant samples."""
        spread = float(self.samples.std(dtype=np.float64))
        return 20 * math.log10(spread) if spread > 1e-9 else -math.inf

    @property
    def silent(self) -> bool:
        """Whether there is nothing to listen to: a level below :data:`SILENCE`."""
        return self.level < SILENCE


def read_sound(
    recording: Recording | Sound, target_rate: int, *, rate: float | None = None, longest: float = LONGEST
) -> Sound:
    """Read a recording: a wav, flac, ogg or mp3 file, a pair ``(samples, rate)``, or samples with their ``rate``.

    Samples have the shape (samples,) or (samples, channels) and are floats in [-1, 1] or integers of a kind in
    :data:`KINDS`, which are scaled by their range. Floats beyond 1 are cut off there and counted as clipped.

    Raises ``FileNotFoundError`` for a missing file, and ``ValueError`` or ``TypeError`` for a recording that is broken,
    empty or longer than ``longest`` seconds, and for samples of another shape or kind, or not finite.

    >>> read_sound(([0, 0.5, 0, -0.5] * 4000, 16000), 8000).seconds
    1.0
    """
    check_number("longest", longest, 0, LONGEST * 100)
    if isinstance(recording, Sound):
        sound = _sound(recording.samples[:, None], recording.rate, target_rate, recording.name)
        return Sound(sound.samples, sound.rate, sound.name, recording.notes or sound.notes)
    if isinstance(recording, (str, os.PathLike)):
        if rate is not None:
            raise TypeError(f"A file names its own rate; leave out rate={rate!r}.")
        samples, found, name = *_from_file(file := as_path(recording, "A recording"), longest), file.name
    else:
        if isinstance(recording, tuple) and len(recording) == 2 and rate is None:
            recording, rate = recording
        found, name = check_rate(rate), "a recording"
        samples = _channels(recording)
        _check_length(len(samples), found, longest, name)
    return _sound(_scaled(samples, name), found, target_rate, name)


def check_sounds(sounds: Iterable[Sound], rate: int) -> list[Sound]:
    """Return a list of sounds, at least one, if all have the ``rate`` that a model hears."""
    found = check_list("sounds", sounds, LIMITS["images"])
    if not found:
        raise ValueError("There is nothing to listen to: pass at least one sound.")
    for sound in found:
        if not isinstance(sound, Sound):
            raise TypeError(f"A model hears a Sound, as read_sound returns it, not {shown(sound)}.")
        if sound.rate != rate:
            raise ValueError(f"This model hears {rate} Hz; {sound.name} has {sound.rate}: read_sound resamples.")
    return found


def check_rate(rate: object) -> int:
    """Return a sampling rate as a whole number of Hz; raise ``ValueError`` for anything else."""
    number = plain(rate)
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or number != number // 1
        or not RATES[0] <= number <= RATES[1]
    ):
        raise ValueError(
            f"A sampling rate is a whole number of Hz from {RATES[0]:,} to {RATES[1]:,}, given as (samples, rate) or "
            f"rate=; got {shown(rate)}."
        )
    return int(number)


def resampled(samples: Float32[np.ndarray, " samples"], rate: int, target: int) -> Float32[np.ndarray, " others"]:
    """Change the rate by target/rate with scipy's polyphase filter; the result is clipped to [-1, 1]."""
    from scipy.signal import resample_poly

    if rate != target:
        common = math.gcd(rate, target)
        samples = resample_poly(samples, target // common, rate // common)
    return np.clip(samples, -1, 1).astype(np.float32)


def without_quiet_ends(samples: Float32[np.ndarray, " samples"], rate: int) -> Float32[np.ndarray, " others"]:
    """Cut off what is quiet before the first sound and after the last, but for :data:`MARGIN` seconds of it.

    Quiet is a stretch of :data:`STRETCH` seconds whose level is :data:`QUIET` dB or more below that of the loudest.
    """
    width = max(1, round(STRETCH * rate))
    moving = samples - samples.mean(dtype=np.float64)  # a constant is no sound
    power = np.add.reduceat(moving**2, np.arange(0, len(samples), width)) / width
    loud = np.flatnonzero(power > power.max() * 10 ** (-QUIET / 10))
    if not len(loud):
        return samples
    margin = round(MARGIN * rate)
    return samples[max(0, loud[0] * width - margin) : (loud[-1] + 1) * width + margin]


def clipped_share(samples: np.ndarray) -> float:
    """Share of the samples, over all channels, in a flat peak: at least :data:`FLAT` in a row at full scale."""
    high = np.pad(np.abs(samples) >= FULL_SCALE, ((FLAT - 1, FLAT - 1), (0, 0)))
    starts = np.logical_and.reduce([high[i : len(high) - FLAT + 1 + i] for i in range(FLAT)])  # where a flat run starts
    flat = np.logical_or.reduce([starts[FLAT - 1 - i : len(starts) - i] for i in range(FLAT)])
    return float(flat.mean())


def _sound(samples: Float32[np.ndarray, "samples channels"], rate: int, target: int, name: str) -> Sound:
    """Average the channels, change the rate, and note what people should know."""
    notes, share = [], clipped_share(samples)
    if share >= CLIPPED:
        notes.append(f"{share:.0%} of the samples are clipped")
    mono = Sound(resampled(np.clip(samples, -1, 1).mean(axis=1), rate, check_rate(target)), target, name)
    if mono.silent:
        loud = any(not Sound(channel, rate).silent for channel in samples.T)
        if loud:
            notes.append("the channels cancel each other: their average is silent")
        elif math.isinf(mono.level):
            notes.append("silence: the samples do not move")
        else:
            notes.append(f"near silence: {mono.level:.0f} dBFS")
    return Sound(mono.samples, target, name, tuple(notes))


def _from_file(file: Path, longest: float) -> tuple[Float32[np.ndarray, "samples channels"], int]:
    """Read a file's samples and rate, after checking its length."""
    import soundfile

    if not file.is_file():
        what = "is a folder" if file.is_dir() else f"does not exist (looked from {Path.cwd()})"
        raise FileNotFoundError(f"A recording is a file; {shown_path(file)} {what}.")
    with _decoding(file):
        opened = soundfile.SoundFile(file)
    with opened:
        rate = check_rate(opened.samplerate)
        _check_length(opened.frames, rate, longest, file.name)
        if opened.frames * opened.channels > MOST_SAMPLES:
            raise ValueError(
                f"{shown_path(file)} has more than {MOST_SAMPLES:,} samples over all its channels; cut it."
            )
        with _decoding(file):
            return opened.read(dtype="float32", always_2d=True), rate
    raise AssertionError  # for the type checker: a file is a context manager that swallows nothing


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Let a decoder raise anything: it becomes one sentence."""
    try:
        yield
    except Exception as error:
        why = reason(error).rpartition(": ")[2].strip().rstrip(".")
        raise ValueError(
            f"{shown_path(file)} ({file.stat().st_size:,} bytes) cannot be read as a recording: {why}. "
            "WAV, FLAC, OGG and MP3 can."
        ) from error


def _channels(samples: object) -> np.ndarray:
    """Bring samples to the shape (samples, channels), or raise an error that says what is wrong with them."""
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Samples are an array of numbers; got a {type(samples).__name__} ({error}).") from error
    if array.dtype.kind != "f" and array.dtype.name not in KINDS:
        raise TypeError(f"Samples are floats in [-1, 1], or integers of {', '.join(KINDS)}; these are {array.dtype}.")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MOST_CHANNELS):
        raise ValueError(
            f"Samples have the shape (samples,) or (samples, channels), with at most {MOST_CHANNELS} channels; these "
            f"have {array.shape}" + ("; transpose them." if array.ndim == 2 else ".")
        )
    return array if array.ndim == 2 else array[:, None]


def _check_length(count: int, rate: int, longest: float, name: str) -> None:
    if not count:
        raise ValueError(f"{name} is empty: it holds no samples.")
    if count / rate > longest:
        raise ValueError(f"{name} lasts {count / rate:,.0f} s and at most {longest:g} s are heard; cut it.")


def _scaled(samples: np.ndarray, name: str) -> Float32[np.ndarray, "samples channels"]:
    """Bring integers and floats to float32 with full scale at 1."""
    if samples.dtype.kind != "f":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        return ((samples - (half if samples.dtype.kind == "u" else 0.0)) / half).astype(np.float32)
    if not np.isfinite(samples).all():
        where = int(np.argwhere(~np.isfinite(samples))[0, 0])
        raise ValueError(f"Samples are finite; number {where} of {name} is {samples[where].tolist()}.")
    peak = float(np.abs(samples).max())
    if peak > TOO_LOUD:
        raise ValueError(f"Float samples lie in [-1, 1]; {name} reaches {peak:g}: divide integers by their range.")
    return samples.astype(np.float32)
