"""A number with its error bars: what every score of this package returns.

A table with nine pictures in each cell has to say how far off the same experiment, repeated with other seeds, would
land. Two rules keep that honest here. **Pictures that belong together are resampled together** (``sets``): four
pictures of one style draw are closer to one observation than to four. **Small samples get wide intervals**: below some
thirty units the plain percentile bootstrap is too narrow, so it is stretched by Student's t.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import special

from ..checks import check_count, check_number, plain, shown
from ..signatures import WHOLE, checked

CONFIDENCE = 0.95
RESAMPLES, MOST_RESAMPLES = 2000, 1_000_000
_CHUNK = 4_000_000  # random indices drawn at once: keeps the bootstrap within some 64 MB


@dataclass(frozen=True)
class Estimate:
    """A measured value, its standard error, a 95 % interval, and the number ``n`` of independent units behind it.

    ``n`` counts the resampled units: sets if pictures come in sets, otherwise pictures. One unit says nothing about
    spread, so with ``n == 1`` the standard error and the interval are NaN,
    and the text leaves them out.

    >>> print(Estimate(0.512, 0.014, 0.484, 0.541, 100))
    0.512 ± 0.014 [0.484, 0.541] (n=100)
    >>> print(estimate_mean([0.512]))
    0.512 (n=1)
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        spread = f" ± {self.standard_error:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{'' if math.isnan(self.standard_error) else spread} (n={self.n})"

    def within(self, low: float = -math.inf, high: float = math.inf) -> "Estimate":
        """The same estimate, its interval cut where the quantity itself ends: a distance is never below ``low=0``.

        ``high`` is where it ends above, 1 for an F1. The stretched bootstrap of a small sample knows of neither.

        >>> print(Estimate(0.2, 0.3, -0.4, 0.8, 3).within(0))
        0.200 ± 0.300 [0.000, 0.800] (n=3)
        """
        low, high = (_bound(name, bound) for name, bound in (("low", low), ("high", high)))
        ends = np.clip([self.low, self.high], low, high)  # NaN stays NaN
        return replace(self, low=float(ends[0]), high=float(ends[1]))


@checked
def estimate_mean(
    values: Iterable[float], sets: Iterable[Hashable] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimate the mean of ``values``; with ``sets`` (one label per value), values that share a label move together.

    The value is sum(y) / count. With s_k the sum and m_k the size of set k, the residual of a set is
    r_k = (s_k - value m_k) / mean(m), and the standard error is sqrt(sum r_k^2 / (n (n - 1))): for sets of one, the
    textbook's s / sqrt(n). The result does not depend on the order of the values, to the last bit. Raises
    ``ValueError`` if there are no values, a value is not finite, or there is not one label for each.

    >>> estimate_mean([1.0, 2.0, 3.0]).value, estimate_mean([1.0, 2.0, 3.0]).n
    (2.0, 3)
    """
    resamples, seed = check_count("resamples", resamples, MOST_RESAMPLES), check_count("seed", seed, WHOLE, low=0)
    sums, counts = _set_totals(values, sets)
    value = math.fsum(sums) / math.fsum(counts)
    residuals = (sums - value * counts) / counts.mean()
    return estimate_from_influence(value, [residuals], n=len(sums), resamples=resamples, seed=seed)


@checked
def estimate_difference(
    first: Iterable[float],
    second: Iterable[float],
    sets: Iterable[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of ``first[i] - second[i]``: two methods scored on the same prompts and seeds.

    This is far sharper than comparing two intervals, because whatever a prompt adds to both scores cancels. The methods
    differ at the 5 % level if the interval excludes 0.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise ValueError(
            f"A paired difference needs one score of each method per seed; there are {len(first)} and {len(second)}: "
            "score both methods on the same prompts and seeds, in the same order."
        )
    return estimate_mean(first - second, sets, resamples=resamples, seed=seed)


@checked
def estimate_rate(events: Iterable[bool | np.bool_ | int], sets: Iterable[Hashable] | None = None) -> Estimate:
    """Estimate how often something happens, with Wilson's interval instead of the bootstrap's.

    A bootstrap of twenty pictures without a single event says "0 to 0"; Wilson (1927) says "0 to 0.16":
    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). With ``sets``, n is the effective number of independent
    pictures, p(1-p)/SE^2, kept between the number of sets and the number of pictures.
    """
    ones = [_zero_or_one(number, event) for number, event in enumerate(events)]
    mean = estimate_mean(ones, sets, resamples=1)
    p, size = mean.value, float(len(ones))
    if mean.n < size:  # pictures come in sets: how many independent pictures would have this standard error?
        spread = p * (1 - p)
        effective = spread / mean.standard_error**2 if mean.n > 1 and spread > 0 and mean.standard_error > 0 else 0.0
        size = min(max(effective, float(mean.n)), size)
    z = float(special.ndtri(0.5 + CONFIDENCE / 2))
    centre = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * math.sqrt(p * (1 - p) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    low = 0.0 if p == 0 else centre - half
    high = 1.0 if p == 1 else centre + half
    return Estimate(p, mean.standard_error, low, high, mean.n)


def jackknife_influence(without: Float[np.ndarray, " units"]) -> Float[np.ndarray, " units"]:
    """Turn a statistic recomputed ``without`` each unit into each unit's pull on it: (n - 1)(mean(V_-i) - V_-i).

    To first order the statistic is its value plus the mean of these pulls, so they can be resampled in its place (Efron
    and Tibshirani 1993, chapter 11). For a mean they are exactly the deviations from it.
    """
    return (len(without) - 1) * (without.mean() - without)


def estimate_from_influence(
    value: float,
    influences: Sequence[Float[np.ndarray, " _"]],
    *,
    n: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Bootstrap ``value`` through the influence of each unit, one array per independent sample.

    A resample is value + the sum, over samples, of the mean of a resampled influence. The interval runs from the 2.5 %
    to the 97.5 % percentile of the resamples, with their distances from the value stretched by sqrt(n/(n-1)) t/z: the
    first factor because resamples spread like 1/n instead of 1/(n-1), the second because their spread is itself a guess
    (Hesterberg 2015, "What teachers should know about the bootstrap", on narrowness bias). t is the quantile of
    Student's distribution with the smallest sample's n - 1 degrees of freedom, z the normal one; the whole factor is
    1.25 for nine units and 1.02 for a hundred.
    """
    smallest = min(len(influence) for influence in influences)
    if smallest < 2:
        return Estimate(float(value), math.nan, math.nan, math.nan, n)
    generator = np.random.default_rng(seed)
    influences = [np.sort(np.asarray(influence, dtype=np.float64)) for influence in influences]
    variance = sum(float(np.dot(i, i)) / (len(i) * (len(i) - 1)) for i in influences)
    drawn = value + sum(_resampled_means(influence, resamples, generator) for influence in influences)
    t = float(special.stdtrit(smallest - 1, 0.5 + CONFIDENCE / 2))
    stretch = math.sqrt(smallest / (smallest - 1)) * t / float(special.ndtri(0.5 + CONFIDENCE / 2))
    low, high = value + stretch * (np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]) - value)
    return Estimate(float(value), math.sqrt(variance), float(low), float(high), n)


def _resampled_means(
    values: Float[np.ndarray, " units"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " resamples"]:
    """Draw the means of ``resamples`` samples with replacement, one chunk at a time."""
    size = len(values)
    rows = max(1, _CHUNK // size)
    means = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), size)
        means.append(values[generator.integers(0, size, shape)].mean(axis=1))
    return np.concatenate(means)


def _bound(name: str, value: object) -> float:
    """A number that may be infinite."""
    return (
        plain(value)
        if isinstance(plain(value), float) and math.isinf(plain(value))
        else check_number(name, value, -math.inf)
    )


def _zero_or_one(number: int, event: object) -> float:
    happened = plain(event)
    if not isinstance(happened, int | float) or happened not in (0, 1):
        raise ValueError(f"An event is True or False: it happened or not; number {number} is {shown(event)}.")
    return float(happened)


def _checked(values: Iterable[float]) -> Float[np.ndarray, " values"]:
    """Bring scores to a float64 vector, or raise ``ValueError`` that says what is wrong with them."""
    array = np.asarray(values if hasattr(values, "__len__") else list(values), dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"An estimate needs a list of at least one number; this one has the shape {array.shape}.")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"Scores must be finite; number {where} is {array[where]}: find the picture behind it.")
    return array


def _set_totals(
    values: Iterable[float], sets: Iterable[Hashable] | None
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]:
    """The sum and size of each set, in an order that depends on the numbers alone."""
    array = _checked(values)
    if sets is None:
        return np.sort(array), np.ones(len(array))
    labels = list(sets)
    if len(labels) != len(array):
        raise ValueError(
            f"sets names the set of every picture: there are {len(array)} scores and {len(labels)} labels."
        )
    members: dict[Hashable, list[float]] = {}
    for label, value in zip(labels, array, strict=True):
        members.setdefault(label, []).append(value)
    totals = sorted((math.fsum(group), len(group)) for group in members.values())
    return np.array([total for total, _ in totals]), np.array([float(size) for _, size in totals])
