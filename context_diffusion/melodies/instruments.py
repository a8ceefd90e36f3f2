"""Timbres: one note of an instrument, or one stroke of a drum, as float32 samples.

A pitched tone is read from two tables of one period each, a mellow and a bright sum of sines, sum_n a_n sin(2 pi n p)
over those n below the Nyquist frequency; the bright part dies away faster, as on a plucked string.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .piece import RATE

TABLE = 2048  # samples in one period
RELEASE = 0.06  # seconds that a note takes to end


@dataclass(frozen=True)
class Timbre:
    """The sound of an instrument; times are in seconds."""

    slope: float  # overtone n has amplitude n^-slope
    attack: float = 0.005
    decay: float = 60.0  # of the mellow part, to 1/e
    bright_decay: float = 60.0  # of the bright part, to 1/e
    odd: bool = False  # only odd overtones
    overtones: int = 40
    vibrato: float = 0.0  # relative to the pitch
    detune: float = 0.0  # of a second voice, relative to the pitch
    breath: float = 0.0  # amplitude of the noise
    drive: float = 0.0  # gain into a soft clipper


TIMBRES = {
    "pad": Timbre(1.6, attack=0.35, detune=0.004, overtones=12),
    "flute": Timbre(2.6, attack=0.06, vibrato=0.006, breath=0.02, overtones=6),
    "piano": Timbre(1.5, decay=1.3, bright_decay=0.35, overtones=20),
    "electric piano": Timbre(2.2, decay=1.6, bright_decay=0.12, overtones=9),
    "brass": Timbre(0.9, attack=0.05, vibrato=0.003, overtones=18),
    "guitar": Timbre(1.1, decay=0.7, bright_decay=0.18, overtones=24),
    "distorted guitar": Timbre(0.9, decay=3.0, detune=0.003, drive=5.0),
    "fiddle": Timbre(1.0, attack=0.08, vibrato=0.007, overtones=24),
    "synthesizer": Timbre(1.0, attack=0.003, decay=1.2, bright_decay=0.25, detune=0.006),
    "square": Timbre(1.0, attack=0.003, odd=True),
    "bass": Timbre(1.8, decay=0.8, bright_decay=0.15, overtones=10),
}


def hertz(pitch: float) -> float:
    """The frequency in Hz of a MIDI pitch, equally tempered: 440 * 2^((pitch - 69) / 12).

    >>> hertz(57)
    220.0
    """
    return 440.0 * 2 ** ((pitch - 69) / 12)


def tone(
    name: str, pitch: float, seconds: float, brightness: float, generator: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """Play one note at about unit amplitude; it sounds for ``seconds``, then fades within ``RELEASE``."""
    timbre, frequency = TIMBRES[name], hertz(pitch)
    time = np.arange(int((seconds + RELEASE) * RATE), dtype=np.float32) / RATE
    sway = timbre.vibrato * np.sin(2 * np.pi * 5.5 * time) / (2 * np.pi * 5.5) if timbre.vibrato else 0.0
    wave = np.zeros_like(time)
    for factor in (1.0, 1 + timbre.detune) if timbre.detune else (1.0,):
        place = (frequency * factor * (time + sway) + generator.random()) % 1.0
        index = (place * TABLE).astype(np.int64) % TABLE
        for slope, decay in ((timbre.slope + 1.5, timbre.decay), (timbre.slope, timbre.bright_decay)):
            share = brightness if slope == timbre.slope else 1 - brightness
            period = _period(frequency, slope + 0.8 * (0.5 - brightness), timbre.odd, timbre.overtones)
            wave += share * period[index] * np.exp(-time / decay)
    wave /= 1 + bool(timbre.detune)
    if timbre.drive:
        wave = np.tanh(timbre.drive * (0.3 + brightness) * wave) * np.exp(-time / timbre.decay)
    if timbre.breath:
        wave += timbre.breath * generator.standard_normal(len(time), dtype=np.float32)
    return (wave * _envelope(time, timbre.attack, seconds)).astype(np.float32)


def _period(frequency: float, slope: float, odd: bool, overtones: int) -> Float[np.ndarray, " table"]:
    """One period of the sum of sines, with unit energy."""
    numbers = np.arange(1, min(overtones, max(1, int(0.45 * RATE / frequency))) + 1)
    numbers = numbers[::2] if odd else numbers
    amplitudes = numbers.astype(np.float64) ** -slope
    spectrum = np.zeros(TABLE // 2 + 1, dtype=np.complex128)
    spectrum[numbers] = amplitudes / np.sqrt((amplitudes**2).sum()) * -0.5j * TABLE
    return np.fft.irfft(spectrum, TABLE).astype(np.float32)


def _envelope(time: Float[np.ndarray, " samples"], attack: float, seconds: float) -> Float[np.ndarray, " samples"]:
    """Rise linearly during ``attack``, stay, and fall linearly after ``seconds``."""
    return np.minimum(1.0, time / attack) * np.clip((seconds + RELEASE - time) / RELEASE, 0.0, 1.0)


def stroke(drum: str, generator: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """Play one stroke of ``"kick"``, ``"snare"``, ``"hat"``, ``"ride"`` or ``"shaker"``."""
    length, decay = {
        "kick": (0.3, 0.09), "snare": (0.22, 0.06), "hat": (0.08, 0.02), "ride": (0.4, 0.12), "shaker": (0.12, 0.04),
    }[drum]  # fmt: skip
    time = np.arange(int(length * RATE), dtype=np.float32) / RATE
    if drum == "kick":  # a sine falling from 160 Hz to 50 Hz
        phase = 50 * time + 110 * 0.03 * (1 - np.exp(-time / 0.03))
        return (np.sin(2 * np.pi * phase) * np.exp(-time / decay)).astype(np.float32)
    noise = generator.standard_normal(len(time) + 2).astype(np.float32)
    hiss = np.diff(noise, 2) * 0.35  # twice differenced: a high-pass of 12 dB per octave
    if drum == "snare":
        hiss = 0.35 * noise[2:] + 0.5 * np.sin(2 * np.pi * 190 * time)
    attack = np.minimum(1.0, time / 0.02) if drum == "shaker" else 1.0
    return (hiss * attack * np.exp(-time / decay)).astype(np.float32)
