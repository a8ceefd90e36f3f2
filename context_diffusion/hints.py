"""What an unknown name was meant to be, for messages."""

import difflib
import re
from collections.abc import Iterable


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
