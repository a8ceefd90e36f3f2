"""Checks: whatever comes is returned in Python's own form, or refused by a ``raise`` of ours in one line."""

import math
import traceback

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from context_diffusion import checks


@pytest.fixture(scope="module", autouse=True)
def untyped():
    """Our own sentences, not the type checker's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**600), st.floats(), st.text(), st.binary(),
        st.complex_numbers(), st.decimals(), st.fractions(), st.datetimes(),
        st.sampled_from([object, len, np.int64(2), np.float32(0.5), np.bool_(True), np.array(3),
                         torch.tensor(2.5), np.zeros((2, 2)), torch.zeros(3), np.array(["a"]), "\ud800", "a\0b"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=4,
)  # fmt: skip
CHECKS = (
    lambda value: checks.check_number("x", value, -1, 1e300),
    lambda value: checks.check_number("x", value, 0),
    lambda value: checks.check_count("n", value, 10),
    lambda value: checks.check_flag("f", value),
    lambda value: checks.check_choice("c", value, ["a", "b"]),
    lambda value: checks.check_text("t", value),
    lambda value: checks.check_texts("t", value),
    lambda value: checks.check_path("p", value),
    lambda value: checks.check_list("l", value, 5),
    lambda value: checks.check_callback("f", value, "a", "b"),
    lambda value: checks.normalized_weights(value, 2),
    lambda value: checks.check_size(value, 8, 8),
)


@given(ANYTHING)
@settings(max_examples=300, deadline=None)
def test_anything_is_accepted_or_refused_in_one_line_of_our_own(value):
    for check in CHECKS:
        try:
            check(value)
        except (TypeError, ValueError) as error:
            assert traceback.extract_tb(error.__traceback__)[-1].filename.endswith("checks.py")
            assert "\n" not in str(error) and len(str(error)) < 400


@given(st.floats(-1e6, 1e6, width=32) | st.integers(-(2**31), 2**31 - 1))
@settings(deadline=None)
def test_the_numbers_of_arrays_are_those_of_python(number):
    kind = np.int64 if isinstance(number, int) else np.float64
    for form in (kind(number), np.array(number, kind), torch.tensor(number, dtype=torch.float64)):
        own = checks.check_number("x", form, -math.inf)
        assert own == number and type(own) in (int, float)


def test_a_bool_is_no_number_and_a_number_no_bool():
    for value in (True, np.bool_(False), torch.tensor(True)):
        with pytest.raises(TypeError, match="x is a number"):
            checks.check_number("x", value, 0)
        assert checks.check_flag("f", value) is bool(value)
    with pytest.raises(TypeError, match="f is True or False, not 1"):
        checks.check_flag("f", 1)


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
@settings(deadline=None)
def test_finite_is_what_numpy_says(values):
    for array in (np.array(values, np.float32), torch.tensor(values)):
        assert checks.is_finite(array) == bool(np.isfinite(values).all())


def test_finite_numbers_whose_sum_is_not_are_finite():
    assert checks.is_finite(torch.full((64,), 6e4, dtype=torch.float16))
    assert checks.is_finite(np.full(4, 3e38, np.float32)) and checks.is_finite(torch.zeros(0))
    assert not checks.is_finite(torch.tensor([torch.inf, -torch.inf]))


def test_a_number_of_more_digits_than_python_prints_is_refused():
    with pytest.raises(ValueError, match="at least 0; got a value of type int"):
        checks.check_number("x", 10**5000, 0)
    with pytest.raises(TypeError, match="t is a text, not a value of type list"):
        checks.check_text("t", [10**5000])


def test_a_library_is_quoted_in_one_line():
    assert checks.reason(ValueError("\n  first.\nsecond")) == "first"
    assert checks.reason(KeyError()) == "KeyError"
