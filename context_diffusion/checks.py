"""Checks that public functions share: numbers, counts, words, weights, and what an unknown name was meant to be.

Each takes the name of an argument and what came, and returns it in the form that the code below wants: Python's own
numbers for those of NumPy and torch, a text for ``None`` where ``None`` says nothing. What does not fit is refused in
one sentence, before any work starts.
"""

import difflib
import inspect
import math
import numbers
import os
import re
import sys
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any, TypeVar

# The most that is asked of one call, so that a slip of the finger is told at once and not by a full memory.
LIMITS = {
    "num_images": 1024,
    "images": 100_000,  # in a list
    "channels": 2**16,  # of a layer
    "height": 8192,  # pixels
    "width": 8192,
    "pixels": 2**26,  # of all pictures of a call together
    "guidance_scale": 1000,
    "control_scale": 1000,
    "requests": 1_000_000,
    "sources": 1000,  # of a prompt
    "references": 1000,  # of style alignment
    "weights": 100_000,
    "characters": 100_000,  # of a text
    "seed": 2**63 - 1,  # the largest that torch takes
    "training_steps": 10**7,
    "batch_size": 4096,
    "rank": 1024,  # of a LoRA; the widest projection of SD 1.x has 1280 rows
    "learning_rate": 1,
}
LARGEST = sys.float_info.max

Given = TypeVar("Given")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return ``value`` if it is finite and in [low, high]; else say what the range is.

    The numbers of NumPy and torch, 0-d arrays included, become Python's. A bool is no number.
    """
    number = _number(name, value)
    if not max(low, -LARGEST) <= number <= min(high, LARGEST):  # NaN is in no range
        wanted = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
        raise ValueError(f"{name} must be finite and {wanted}; got {shown(number)}.")
    return number


def check_count(name: str, value: object, high: float = math.inf, low: int = 1) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} is a whole number, not {shown(value)}.")
    return int(check_number(name, int(number), low, high))


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False; a word such as "no" would count as true."""
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name} is True or False, not {shown(value)}.")
    return flag


def check_choice(name: str, value: object, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the ``known`` words; else say which they are, and which was meant."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        near = hint(value, known) if isinstance(value, str) else "."
        raise ValueError(f"{name} is {either(map(repr, known))}; got {shown(value)}{near}")
    return value


def check_texts(name: str, values: object) -> list[str]:
    """Make a list of one text or of several, each checked by :func:`check_text`."""
    given = [values] if isinstance(values, str) else check_list(name, values, LIMITS["images"])
    if not given:
        raise ValueError(f"Give at least one text as {name}; the list is empty.")
    return [check_text(name, value) for value in given]


def check_text(name: str, value: object) -> str:
    """Return a text that can be written as UTF-8, of bounded length; ``None`` says nothing and becomes ""."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a text, not {shown(value)}.")
    if len(value) > LIMITS["characters"]:
        raise ValueError(f"{name} has {len(value):,} characters; give at most {LIMITS['characters']:,}.")
    if not is_unicode(value):
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character: {shown(value)}.")
    return value


def check_path(name: str, value: object) -> str:
    """Return a path or a name as a text, ``~`` expanded; refuse what is neither, and what no path can hold."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str):
        raise TypeError(f"{name} is a text or a Path, not {shown(value)}.")
    if not path or "\0" in path or not is_unicode(path) or max(map(len, path.split("/"))) > 255:
        raise ValueError(f"{name} is a name or the path of a folder; got {shown(path)}.")
    return os.path.expanduser(path)


def check_callback(name: str, value: Given, *arguments: str) -> Given:
    """Return a function that can be called with these ``arguments``, or ``None``."""
    if value is None:
        return value
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} is a function to be called, or None, not {shown(value)}.")
    try:
        inspect.signature(value).bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{name} is called with ({', '.join(arguments)}), which {shown(value)} does not take."
        ) from None
    except ValueError:  # a function written in C does not say what it takes
        pass
    return value


def check_list(name: str, values: object, most: float) -> list:
    """Make a list of at most ``most`` values of what is iterable and has an order; a text is one value, not many."""
    values = plain(values)
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is a list, not {shown(values)}.")
    found = list(islice(values, int(most) + 1))
    if len(found) > most:
        raise ValueError(f"{name} holds at most {most}; got more.")
    return found


def check_finite(what: str, values: Given) -> Given:
    """Return a tensor or an array if all of it is finite: NaN would become a black picture without a word."""
    if not is_finite(values):
        raise ValueError(
            f"{what} must be finite, and came out with NaN or infinity: the weights, an adapter, a callback or half "
            "precision is at fault."
        )
    return values


def is_finite(values: Any) -> bool:
    """Whether a tensor or an array holds neither NaN nor infinity; in one pass, without memory of its own."""
    values = values.detach() if hasattr(values, "detach") else values
    if math.isfinite(values.sum()):
        return True
    return math.isfinite(float(values.max()) - float(values.min()))  # finite numbers whose sum was too large


def check_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    """Return a picture size as whole numbers; refuse one that the VAE cannot halve down to whole latents."""
    sides = []
    for name, given in (("width", width), ("height", height)):
        side = check_count(name, given, LIMITS[name])
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise ValueError(f"{name} must be a multiple of {multiple} (the VAE halves it); got {side}, take {near}.")
        sides.append(side)
    return sides[0], sides[1]


def normalized_weights(weights: Iterable[float] | None, count: int, what: str = "reference") -> tuple[float, ...]:
    """Check ``count`` weights and divide them by their sum; ``None`` means equal weights.

    Raises ``TypeError`` for what is no list of numbers, ``ValueError`` if there are not ``count`` of them, or if one is
    negative or not finite, or all are zero.

    >>> normalized_weights([1, 3], 2)
    (0.25, 0.75)
    """
    if weights is None:
        return (1 / count,) * count if count else ()
    given = check_list("weights", weights, LIMITS["weights"])
    if len(given) != count:
        raise ValueError(f"Give one weight for each {what}: {count} {what}(s), {len(given)} weight(s).")
    values = [_number("a weight", weight) for weight in given]
    if not all(0 <= weight <= LARGEST for weight in values) or not any(values):
        wanted = "Weights are finite, not negative, and not all zero, such as [0.3, 0.7]"
        raise ValueError(f"{wanted}; got {shown(values)}.")
    largest = float(max(values))
    scaled = [float(weight) / largest for weight in values]  # first, so that huge weights do not overflow the sum
    total = sum(scaled)
    return tuple(weight / total for weight in scaled)


def plain(value: object) -> Any:
    """Turn a number of NumPy or torch, a 0-d array too, into Python's own; anything else stays as it is."""
    own = getattr(value, "item", None)
    return own() if callable(own) and getattr(value, "shape", None) == () else value


def shown(value: object, width: int = 80) -> str:
    """Show a value in a message, in one line of at most ``width`` characters.

    >>> shown("a boat")
    "'a boat'"
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign __repr__; or a whole number of more digits than Python prints
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= width else f"{text[: width - 4]} ..."


def reason(error: BaseException) -> str:
    """Say in one line what a library complained of: its first line, or the kind of error where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].rstrip(".:,") if lines else ""
    return text[:200] or type(error).__name__


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def near_names(name: object, known: Iterable[str]) -> list[str]:
    """At most two of the known names that are like ``name``, the likest first; case and punctuation do not count.

    >>> near_names("SD-1.5", ["tiny-scenes", "sd15", "sdxl"])
    ['sd15', 'sdxl']
    """
    if not isinstance(name, str):
        return []
    simple = {_simple(one): one for one in known}
    return [simple[key] for key in difflib.get_close_matches(_simple(name), simple, n=2, cutoff=0.5)]


def hint(name: object, known: Iterable[str]) -> str:
    """End a sentence about an unknown name: ``"; did you mean 'sd15' or 'sdxl'?"``, or a full stop."""
    near = near_names(name, known)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def either(words: Iterable[str]) -> str:
    """List words as alternatives.

    >>> either(["canny", "depth", "img2img"])
    'canny, depth or img2img'
    """
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _number(name: str, value: object) -> Any:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} is a number, not {shown(value)}.")
    return number if isinstance(number, int | float) else float(number)


def _simple(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()[:100]
