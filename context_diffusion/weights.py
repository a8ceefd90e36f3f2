"""Weights of several images or references: checked in one sentence, scaled to sum 1."""

import math
from collections.abc import Iterable


def normalized_weights(weights: Iterable[float] | None, count: int, what: str = "reference") -> tuple[float, ...]:
    """Check ``count`` weights and divide them by their sum; ``None`` means equal weights.

    Raises ``ValueError`` if there are not ``count`` of them, or if one is negative or not finite, or all are zero.

    >>> normalized_weights([1, 3], 2)
    (0.25, 0.75)
    """
    if weights is None:
        return (1 / count,) * count
    weights = [float(weight) for weight in weights]
    if len(weights) != count:
        raise ValueError(f"Give one weight for each {what}: {count} {what}(s), {len(weights)} weight(s).")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"Weights are finite, not negative, and not all zero, such as [0.3, 0.7]; got {weights}.")
    largest = max(weights)
    scaled = [weight / largest for weight in weights]  # first, so that huge weights do not overflow the sum
    total = sum(scaled)
    return tuple(weight / total for weight in scaled)
