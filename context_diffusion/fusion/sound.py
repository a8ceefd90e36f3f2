"""A recording as a :class:`Sound`: one channel of float32 samples in [-1, 1] at the rate that a model wants.

The channels are averaged, which keeps what they share; where they cancel each other, a note says so. The rate is
changed by a polyphase filter (``scipy.signal.resample_poly``), which takes out what the new rate cannot hold.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

Recording = str | os.PathLike | tuple[ArrayLike, float] | ArrayLike  # a file, (samples, rate), or samples alone

LONGEST = 300.0  # seconds
RATES = (1_000, 768_000)  # Hz, lowest and highest
MOST_CHANNELS = 32
KINDS = ("uint8", "int16", "int32")  # of integers that wav files hold, as scipy.io.wavfile reads them
SILENCE = -60.0  # dBFS of the root mean square: below it, there is nothing to listen to
CLIPPED = 0.01  # share of the samples from which on a note says so
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
FLAT = 3  # samples at full scale in a row, at least, are a clipped peak; a peak that just touches it has fewer
TOO_LOUD = 16.0  # the largest float that can be an overdriven recording; beyond, the scale is wrong


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples in [-1, 1] of one channel, their rate in Hz, a name for people, and what they should know of it."""

    samples: Float32[np.ndarray, " samples"]
    rate: int
    name: str = "a recording"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def level(self) -> float:
        """The loudness in dBFS: 20 log10 of the root mean square about the mean, -inf where nothing moves."""
        spread = float(self.samples.std(dtype=np.float64))
        return 20 * math.log10(spread) if spread > 1e-9 else -math.inf

    @property
    def silent(self) -> bool:
        """Whether there is nothing to listen to: a level below :data:`SILENCE`."""
        return self.level < SILENCE


def read_sound(
    recording: Recording | Sound, target_rate: int, *, rate: float | None = None, longest: float = LONGEST
) -> Sound:
    """Read a recording: a wav, flac or ogg file, a pair ``(samples, rate)``, or samples whose ``rate`` is given beside.

    Samples have the shape (samples,) or (samples, channels); they are floats in [-1, 1], or integers of
    :data:`KINDS`, which are scaled by their range. Floats beyond 1 are cut off there and counted as clipped.

    Raises ``FileNotFoundError`` for a missing file, and ``ValueError`` or ``TypeError`` for one that is broken, empty,
    or longer than ``longest`` seconds, and for samples of another shape or kind, or not finite.

    >>> read_sound(([0, 0.5, 0, -0.5] * 4000, 16000), 8000).seconds
    1.0
    """
    if isinstance(recording, Sound):
        sound = _sound(recording.samples[:, None], recording.rate, target_rate, recording.name)
        return Sound(sound.samples, sound.rate, sound.name, recording.notes or sound.notes)
    if isinstance(recording, (str, os.PathLike)):
        if rate is not None:
            raise TypeError(f"A file names its own rate; leave out rate={rate!r}.")
        samples, found, name = *_from_file(Path(recording), longest), Path(recording).name
    else:
        if isinstance(recording, tuple) and len(recording) == 2 and rate is None:
            recording, rate = recording
        found, name = check_rate(rate), "a recording"
        samples = _channels(recording)
        _check_length(len(samples), found, longest, name)
    return _sound(_scaled(samples, name), found, target_rate, name)


def check_rate(rate: object) -> int:
    """Return a sampling rate as a whole number of Hz, or say what one is."""
    number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
    if not number or not math.isfinite(rate) or rate != int(rate) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(
            f"A sampling rate is a whole number of Hz from {RATES[0]:,} to {RATES[1]:,}, given as (samples, rate) or "
            f"rate=; got {rate!r:.40}."
        )
    return int(rate)


def resampled(samples: Float32[np.ndarray, " samples"], rate: int, target: int) -> Float32[np.ndarray, " others"]:
    """Change the rate by target/rate with scipy's polyphase filter; the result is held within [-1, 1]."""
    from scipy.signal import resample_poly

    if rate != target:
        common = math.gcd(rate, target)
        samples = resample_poly(samples, target // common, rate // common)
    return np.clip(samples, -1, 1).astype(np.float32)


def clipped_share(samples: np.ndarray) -> float:
    """Say what share of the samples (of every channel) lies in a flat peak: at full scale, :data:`FLAT` in a row."""
    high = np.pad(np.abs(samples) >= FULL_SCALE, ((FLAT - 1, FLAT - 1), (0, 0)))
    starts = np.logical_and.reduce([high[i : len(high) - FLAT + 1 + i] for i in range(FLAT)])  # a flat run starts here
    flat = np.logical_or.reduce([starts[FLAT - 1 - i : len(starts) - i] for i in range(FLAT)])
    return float(flat.mean())


def _sound(samples: Float32[np.ndarray, "samples channels"], rate: int, target: int, name: str) -> Sound:
    """Average the channels, change the rate, and look for what people should know."""
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
    """Read a file's samples and rate, its length checked before anything is read."""
    import soundfile

    if not file.is_file():
        what = "is a folder" if file.is_dir() else f"does not exist (looked from {Path.cwd()})"
        raise FileNotFoundError(f"A recording is a file; {file} {what}.")
    try:
        with soundfile.SoundFile(file) as opened:
            rate = check_rate(opened.samplerate)
            _check_length(opened.frames, rate, longest, file.name)
            return opened.read(dtype="float32", always_2d=True), rate
    except soundfile.SoundFileError as error:
        size = file.stat().st_size
        reason = str(error).rpartition(": ")[2].strip().rstrip(".")
        raise ValueError(
            f"{file} ({size:,} bytes) cannot be read as a recording: {reason}. WAV, FLAC, OGG and MP3 can."
        ) from error


def _channels(samples: ArrayLike) -> np.ndarray:
    """Bring samples to the shape (samples, channels), or say what is wrong with them."""
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Samples are an array of numbers; this is a {type(samples).__name__} ({error}).") from error
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
        raise ValueError(f"{name} lasts {count / rate:,.0f} s and at most {longest:g} s are listened to; cut it.")


def _scaled(samples: np.ndarray, name: str) -> Float32[np.ndarray, "samples channels"]:
    """Bring integers and floats to float32, full scale at 1."""
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
