"""Word error rate: how many of the spoken words must be changed, added or dropped to get what was written down."""

import re
from collections.abc import Hashable, Iterable, Sequence

from ..checks import check_count
from ..signatures import checked
from .estimates import Estimate, estimate_mean

MOST_WORDS = 5000  # of an utterance; the distance takes their number squared


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Count the substitutions, insertions and deletions that turn one sequence into the other (Levenshtein 1966).

    D(i, j) = min(D(i-1, j) + 1, D(i, j-1) + 1, D(i-1, j-1) + [a_i != b_j]), row by row.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words_of("A boat, neon style.")
    ['a', 'boat', 'neon', 'style']
    """
    return re.findall(r"[\w'-]+", text.casefold())


def word_errors(said: str, written: str) -> int:
    """Count the words of ``said`` that are wrong or missing in ``written``, and the extra words there."""
    return edit_distance(words_of(said), words_of(written))


@checked
def word_error_rate(
    said: Iterable[str], written: Iterable[str], sets: Iterable[Hashable] | None = None, **options
) -> Estimate:
    """Estimate the sum of errors / the sum of words over all utterances, resampled by utterance, or by set.

    It can exceed 1. ``options`` go to :func:`.estimates.estimate_mean`. Raises ``ValueError`` if an utterance has no
    words, or if ``written`` is not as long as ``said``.

    >>> word_error_rate(["a boat by the sea", "a neon cat"], ["a boat by the sea", "neon hat"]).value
    0.25
    """
    said, written = list(said), list(written)
    labels = list(range(len(said)) if sets is None else sets)
    if not len(said) == len(written) == len(labels):
        raise ValueError(
            "Each utterance needs what was written down for it, and its set if there are any; there are "
            f"{len(said)} said, {len(written)} written and {len(labels)} labels."
        )
    values, owners = [], []
    for one, other, label in zip(said, written, labels, strict=True):
        count = len(words_of(one))
        check_count("The number of words of an utterance", max(count, len(words_of(other))), MOST_WORDS, low=0)
        if not count:
            raise ValueError("A word error rate is per spoken word; one of the utterances has no words.")
        values += [float(word_errors(one, other)), *[0.0] * (count - 1)]  # one per word, so that the mean is the rate
        owners += [label] * count
    return estimate_mean(values, owners, **options).within(0)
