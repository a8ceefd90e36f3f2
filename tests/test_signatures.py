"""Annotations are kept: what fits arrives in the form asked for, what does not is refused in one sentence."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from context_diffusion.signatures import check_fields, check_fixed, checked, fitted, wanted

Matrix = Float[Tensor, "rows columns"]
FITS = [  # annotation, what comes, what arrives
    (int, np.int64(3), 3), (int, torch.tensor(3), 3), (float, np.float32(0.5), 0.5), (float, 3, 3),
    (bool, np.bool_(True), True), (str, "a", "a"), (int | None, None, None), (Literal["a", "b"], "b", "b"),
    (Iterable[float], iter([1, np.float64(2)]), [1, 2.0]), (Iterable[float], np.array([0.5, np.nan])[:1], [0.5]),
    (tuple[str, ...], ["a"], ("a",)), (tuple[int, float], [1, 2.5], (1, 2.5)), (Iterable[Hashable], "aab", list("aab")),
    (Mapping[str, int], {"a": np.int8(1)}, {"a": 1}), (str | Path, Path("a"), Path("a")), (object, 3, 3),
]  # fmt: skip
REFUSED = [  # annotation, what comes, error, sentence
    (int, 2.5, TypeError, "x is a whole number, not 2.5."), (int, True, TypeError, "x is a whole number, not True."),
    (int, 10**400, ValueError, "x is a whole number of at most 63 bits"), (float, "1", TypeError, "x is a number, not"),
    (float, float("nan"), ValueError, "x is a finite number; got nan."), (bool, "no", TypeError, "x is True or False"),
    (str, b"a", TypeError, "x is a text, not b'a'."), (int | None, "a", TypeError, "x is a whole number, not 'a'."),
    (int | str, None, TypeError, "x is a whole number or a text, not None."), (Callable, 3, TypeError, "x is a"),
    (Literal["a", "b"], "c", ValueError, "x is 'a' or 'b'; got 'c'"), (Iterable[int], "12", TypeError, "x is a list"),
    (Iterable[int], [1, None], TypeError, "item 1 of x is a whole number, not None."),
    (Sequence[str], {"a": 1}, TypeError, "x is a list of texts"), (tuple[int, int], (1,), TypeError, "x is (a whole"),
    (Matrix, torch.zeros(3), TypeError, "x is a tensor of numbers (rows columns), not torch.float32 numbers of the"),
    (str | Path, Path("a\0b"), ValueError, "x is a name or the"), (Mapping[str, int], [], TypeError, "x is a di"),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "came", "arrives"), FITS)
def test_what_fits_arrives_in_the_form_asked_for(hint, came, arrives):
    found = fitted("x", came, hint)
    assert found == arrives and type(found) is type(arrives)


@pytest.mark.parametrize(("hint", "came", "error", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(hint, came, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        fitted("x", came, hint)
    assert "\n" not in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.binary(), st.lists))
def test_any_value_fits_or_is_refused(value):
    for hint in (int, float, str, Iterable[float], Sequence[str], tuple[int, float], Matrix | None, Literal["a"]):
        try:
            fitted("x", value, hint)
        except (TypeError, ValueError) as error:
            assert str(error).startswith(("x ", "item ")) and "\n" not in str(error)


def test_a_checked_function_is_called_as_before():
    @checked
    def add(a: int, /, b: float = None, *rest: int, c: int = 1, **others) -> tuple:  # type: ignore[assignment]
        """Add."""
        return a, b, rest, c, others

    assert add(np.int64(1)) == (1, None, (), 1, {})  # a default fits whatever it is
    assert add(1, 2, "x", c=np.int32(3), d="y") == (1, 2, ("x",), 3, {"d": "y"})
    assert add.__doc__ == "Add."
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        add()


def test_fields_are_checked_and_brought_into_form():
    @dataclass(frozen=True)
    class Point:
        x: int
        names: tuple[str, ...] = ()

        def __post_init__(self):
            check_fields(self)

    assert Point(np.int64(3), ["a"]) == Point(3, ("a",))
    with pytest.raises(TypeError, match="x is a whole number, not 'a'"):
        Point("a")
    with pytest.raises(TypeError, match="A Point has no 'y'; it has x or names"):
        check_fixed(Point, {"y": 3})


def test_annotations_are_said_in_words():
    assert wanted(int | None) == "a whole number or None"
    assert wanted(Mapping[str, int]) == "a dictionary" and wanted(Callable[[int], int]) == "a function"
