"""Checks that public functions share: numbers, counts, sizes, weights, and what an unknown name was meant to be."""

import difflib
import math
import numbers
import re
from collections.abc import Iterable


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return ``value`` if it is finite and in [low, high]; else say what the range is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number, not {value!r}.")
    number = value if isinstance(value, int) else float(value)  # numpy's numbers become Python's
    if not math.isfinite(number) or not low <= number <= high:
        wanted = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
        raise ValueError(f"{name} must be finite and {wanted}; got {value}.")
    return number


def check_count(name: str, value: object, high: float = math.inf, low: int = 1) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is a whole number, not {value!r}.")
    return int(check_number(name, int(value), low, high))


def check_choice(name: str, value: object, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the ``known`` words; else say which they are, and which was meant."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name} is {either(map(repr, known))}; got {value!r}{hint(value, known)}")
    return value


def either(words: Iterable[str]) -> str:
    """List words as alternatives.

    >>> either(["canny", "depth", "img2img"])
    'canny, depth or img2img'
    """
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuse a picture size that the VAE cannot halve down to whole latents."""
    for name, side in (("width", width), ("height", height)):
        check_count(name, side)
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise ValueError(f"{name} must be a multiple of {multiple} (the VAE halves it); got {side}, take {near}.")


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


def near_names(name: object, known: Iterable[str]) -> list[str]:
    """At most two of the known names that are like ``name``, the likest first; case and punctuation do not count.

    >>> near_names("SD-1.5", ["tiny-scenes", "sd15", "sdxl"])
    ['sd15']
    """
    simple = {_simple(one): one for one in known}
    return [simple[key] for key in difflib.get_close_matches(_simple(str(name)), simple, n=2, cutoff=0.5)]


def hint(name: object, known: Iterable[str]) -> str:
    """End a sentence about an unknown name: ``"; did you mean 'sd15' or 'sdxl'?"``, or a full stop."""
    near = near_names(name, known)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def _simple(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()
