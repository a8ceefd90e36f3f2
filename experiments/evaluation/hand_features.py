"""Music measured by hand: tempo, mode, brightness and the like from the samples, and the nearest class mean of them.

Nothing is learned but averages: the baseline that a learned model has to beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

HOP, WINDOW, LONG = 160, 1024, 8192  # samples at 16 kHz: 10 ms, 64 ms; 0.5 s for pitch
SLOWEST, FASTEST = 50.0, 190.0  # beats per minute
USUAL, OCTAVES = 100.0, 1.0  # the prior on tempo: log-normal around 100 with a standard deviation of one octave
# How well each pitch class, from C, fits the key of C (Krumhansl and Kessler 1982, probe tones).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
FEATURES = (
    "log tempo", "major minus minor", "onsets per second", "log centroid", "log rolloff", "flux", "flatness",
    "slope of the level", "spread of the level", "share below 200 Hz", "roughness of the chroma",
)  # fmt: skip


def hand_features(samples: Float[np.ndarray, " samples"], rate: int) -> Float[np.ndarray, " features"]:
    """The numbers of :data:`FEATURES`, in this order."""
    power = _spectra(samples, WINDOW, HOP)
    hertz = np.fft.rfftfreq(WINDOW, 1 / rate)
    onset = _rises(power)
    mean = power.mean(axis=0) + 1e-12
    level = 10 * np.log10(power.sum(axis=1) + 1e-6)
    cumulated = np.cumsum(mean) / mean.sum()
    tones = chroma(samples, rate)
    major, minor = key_fits(tones)
    peaks = (onset[1:-1] > onset[:-2]) & (onset[1:-1] >= onset[2:]) & (onset[1:-1] > onset.mean() + onset.std())
    return np.array([
        np.log2(_tempo(onset, rate)),
        major.max() - minor.max(),
        peaks.sum() / (len(samples) / rate),
        np.log2((mean * hertz).sum() / mean.sum() + 1),
        np.log2(hertz[np.searchsorted(cumulated, 0.95)] + 1),
        onset.mean(),
        np.log(mean).mean() - np.log(mean.mean()),
        np.polyfit(np.linspace(-0.5, 0.5, len(level)), level, 1)[0],
        level.std(),
        mean[hertz < 200].sum() / mean.sum(),
        (tones * np.roll(tones, 1)).sum() / max((tones**2).sum(), 1e-12),
    ])  # fmt: skip


def chroma(samples: Float[np.ndarray, " samples"], rate: int) -> Float[np.ndarray, " 12"]:
    """The share of each pitch class, from C, in the amplitudes from 60 Hz to 1.6 kHz."""
    spectrum = np.sqrt(_spectra(samples, LONG, LONG // 4)).sum(axis=0)
    hertz = np.fft.rfftfreq(LONG, 1 / rate)
    heard = (hertz > 60) & (hertz < 1600)
    classes = np.round(69 + 12 * np.log2(hertz[heard] / 440)).astype(int) % 12
    found = np.bincount(classes, spectrum[heard], 12)
    return found / max(found.sum(), 1e-12)


def key_fits(tones: Float[np.ndarray, " 12"]) -> tuple[Float[np.ndarray, " 12"], Float[np.ndarray, " 12"]]:
    """Correlation of a chroma with each major and each minor key, from C."""
    keys = np.array([[np.roll(profile, tonic) for tonic in range(12)] for profile in (MAJOR, MINOR)])
    keys = keys - keys.mean(axis=2, keepdims=True)
    tones = tones - tones.mean()
    fits = keys @ tones / (np.linalg.norm(keys, axis=2) * max(float(np.linalg.norm(tones)), 1e-12))
    return fits[0], fits[1]


@dataclass(frozen=True)
class NearestMean:
    """Finds the class whose mean is nearest, in units of the spread within the classes (Mahalanobis distance)."""

    means: Float[np.ndarray, "classes features"]
    whitening: Float[np.ndarray, "features features"]

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "n features"], labels: Sequence[int] | Int[np.ndarray, " n"]
    ) -> "NearestMean":
        """Compute the means, and from the pooled covariance C within the classes the whitening W, W W^T = C^-1."""
        labels = np.asarray(labels)
        means = np.stack([features[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        within = np.cov((features - means[labels]).T) + 1e-9 * np.eye(features.shape[1])
        return cls(means, np.linalg.cholesky(np.linalg.inv(within)))

    def __call__(self, features: Float[np.ndarray, "n features"]) -> Int[np.ndarray, " n"]:
        """The index of the nearest class for each row."""
        gaps = (features[:, None] - self.means[None]) @ self.whitening
        return (gaps**2).sum(axis=2).argmin(axis=1)


def _spectra(samples: Float[np.ndarray, " samples"], window: int, hop: int) -> Float[np.ndarray, "frames bins"]:
    """Power spectra of Hann-windowed frames; sound shorter than one is padded."""
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2 / window


def _rises(power: Float[np.ndarray, "frames bins"]) -> Float[np.ndarray, " others"]:
    """How much louder each frame of 10 ms is than the one before the last: the mean rise of the log spectrum."""
    logs = np.log1p(100 * np.sqrt(power))
    return np.maximum(0, logs[2:] - logs[:-2]).mean(axis=1)


def _tempo(onset: Float[np.ndarray, " frames"], rate: int) -> float:
    """Beats per minute: the likeliest period of the onsets, by autocorrelation under a prior (Ellis 2007)."""
    lags = np.arange(int(60 * rate / HOP / FASTEST), int(60 * rate / HOP / SLOWEST) + 1)
    moved = np.pad(onset - onset.mean(), (0, lags[-1]))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(moved)) ** 2, len(moved))
    tempi = 60 * rate / HOP / lags
    prior = np.exp(-0.5 * (np.log2(tempi / USUAL) / OCTAVES) ** 2)
    return float(tempi[np.argmax(correlation[lags] * prior)])
