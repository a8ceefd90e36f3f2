"""Word errors: an edit distance is a metric and the shortest way, a rate weighs utterances by their words."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_diffusion.metrics.words import edit_distance, word_error_rate, word_errors, words_of

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@cache
def by_recursion(first: str, second: str) -> int:
    """The definition itself: the best of the three last steps."""
    if not first or not second:
        return len(first) + len(second)
    change = by_recursion(first[:-1], second[:-1]) + (first[-1] != second[-1])
    return min(change, by_recursion(first[:-1], second) + 1, by_recursion(first, second[:-1]) + 1)


@given(WORDS, WORDS)
def test_the_distance_is_that_of_the_definition(first, second):
    assert edit_distance(first, second) == by_recursion("".join(first), "".join(second))


@given(WORDS, WORDS, WORDS)
def test_the_distance_is_a_metric(first, second, third):
    assert edit_distance(first, second) == edit_distance(second, first)
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)


def test_marks_and_capitals_are_no_errors():
    assert word_errors("a boat by the sea, line art style", "A boat by the sea. Line art style!") == 0
    assert word_errors("a boat", "") == 2
    assert words_of("don't, well-known") == ["don't", "well-known"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_the_rate_is_all_errors_over_all_words_and_its_error_that_of_a_ratio(pairs):
    said = [" ".join("a" * length) for length, _ in pairs]
    written = [" ".join("b" * length) for _, length in pairs]  # nothing is right: max(lengths) errors
    found = word_error_rate(said, written, resamples=50)
    counts = np.array([length for length, _ in pairs])
    errors = np.array([max(pair) for pair in pairs])
    rate = errors.sum() / counts.sum()
    residuals = (errors - rate * counts) / counts.mean()
    assert found.value == pytest.approx(rate)
    assert found.standard_error == pytest.approx(np.sqrt((residuals**2).sum() / len(pairs) / (len(pairs) - 1)))
    assert found.n == len(pairs)


def test_utterances_of_one_set_stand_or_fall_together():
    said, written = ["a b", "c d", "e f", "g h"], ["a b", "c x", "x x", "g h"]
    pooled = word_error_rate(said, written, sets=[0, 0, 1, 1])
    assert (pooled.value, pooled.n) == (3 / 8, 2)


def test_nothing_said_or_not_as_much_written_is_refused():
    with pytest.raises(ValueError, match="one of the utterances has no words"):
        word_error_rate([", ."], ["a"])
    with pytest.raises(ValueError, match="2 said, 1 written"):
        word_error_rate(["a", "b"], ["a"])
