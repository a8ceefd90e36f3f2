"""A public function's annotations, kept: what does not fit is refused in one sentence, before the function runs::

    @checked
    def estimate_mean(values: Iterable[float], *, resamples: int = 2000): ...

    estimate_mean([1, 2], resamples="many")      # TypeError: resamples is a whole number, not 'many'.

Numbers of NumPy and torch arrive as Python's own, iterables of numbers and words as lists. A number is finite, unless
it is one of a list, and a bool is none. What an annotation cannot say (a range, a shape that depends on another) stays
with the function.
"""

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from .checks import check_choice, check_flag, check_path, check_text, either, plain, shown

P = ParamSpec("P")
R = TypeVar("R")
WHOLE = 2**63  # beyond it, NumPy and torch have no whole numbers
MOST = 10_000_000  # items of a list; an endless iterator is noticed here
PLURALS = {int: "whole numbers", float: "numbers", str: "texts", bool: "True and False", Hashable: "labels"}
PLURALS |= {typing.SupportsInt: "whole numbers"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of each call against the annotations; raises ``TypeError`` or ``ValueError``."""
    signature = inspect.signature(function)
    places = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        hints = _hints(function)

        def fit(name: str, value: object) -> object:
            return value if name not in hints or value is defaults.get(name, call) else fitted(name, value, hints[name])

        given: Any = [fit(name, value) for name, value in zip(places, args, strict=False)] + list(args[len(places) :])
        others: Any = {name: fit(name, value) for name, value in named.items()}
        return function(*given, **others)

    return call


def check_fields(instance: object, *names: str) -> None:
    """Check the fields of a frozen dataclass (all, or those named) against its annotations, in ``__post_init__``."""
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        if name in (names or kind.__dataclass_fields__):
            object.__setattr__(instance, name, fitted(name, getattr(instance, name), hint))


def check_fixed(kind: Any, fixed: Mapping[str, object]) -> None:
    """Refuse keywords that name no field of the dataclass ``kind``."""
    fields = kind.__dataclass_fields__
    for name in fixed:
        if name not in fields:
            raise TypeError(f"A {kind.__name__} has no {name!r}; it has {either(fields)}.")


def fitted(name: str, value: object, hint: Any) -> Any:
    """Return a value in the form that an annotation asks for, or raise one sentence that says what fits."""
    rule = RULES.get(hint)
    if rule is not None:
        return rule(name, value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(name, value, inner)
    if origin is Literal:
        return check_choice(name, value, inner)
    if origin is Callable:
        return value if callable(value) else _refuse(name, value, hint)
    if origin is tuple and inner[-1:] != (...,):
        return _tuple(name, value, hint, inner)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(name, value, hint, inner)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Iterable):
        return _items(name, value, hint, origin, inner[0])
    if _is_open(hint) or isinstance(value, hint):
        return value
    return _refuse(name, value, hint)


def wanted(hint: Any) -> str:
    """Say in words what fits an annotation.

    >>> wanted(int | None), wanted(Sequence[str])
    ('a whole number or None', 'a list of texts')
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin in (Union, types.UnionType):
        return either(dict.fromkeys(wanted(one) for one in inner))
    if origin is Literal:
        return either(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(wanted(one) for one in inner)})"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "a dictionary"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list of {PLURALS[inner[0]]}" if inner[0] in PLURALS else "a list"
    if hasattr(hint, "array_type"):  # jaxtyping's
        kind = "a tensor" if hint.array_type.__name__ == "Tensor" else "an array"
        return f"{kind} of {'numbers' if len(hint.dtypes) != 1 else hint.dtypes[0]} ({hint.dim_str.strip()})"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(function).items() if name != "return"}


def _refuse(name: str, value: object, hint: Any) -> typing.NoReturn:
    raise TypeError(f"{name} is {wanted(hint)}, not {_kind(value)}.")


def _kind(value: object) -> str:
    """Show a value; of an array or a tensor its kind and shape."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{shown(value.dtype)} numbers of the shape {tuple(shape)}"
    return shown(value)


def _whole(name: str, value: object) -> int:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number, not {shown(value)}.")
    if not -WHOLE <= number < WHOLE:
        raise ValueError(f"{name} is a whole number of at most 63 bits; got {shown(number)}.")
    return number


def _number(name: str, value: object) -> float:
    """A number as it is, NaN too, if it fits into 64 bits."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} is a number, not {shown(value)}.")
    if isinstance(number, int):
        return _whole(name, number)
    return float(number)


def _finite(name: str, value: object) -> float:
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is a finite number; got {number}.")
    return number


def _hashable(name: str, value: object) -> object:
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} is a label, such as a number or a text, not {shown(value)}.") from None
    return value


def _text(name: str, value: object) -> str:
    return check_text(name, value if isinstance(value, str) else _refuse(name, value, str))


def _file(name: str, value: object) -> object:
    check_path(name, value if isinstance(value, os.PathLike) else _refuse(name, value, os.PathLike))
    return value


def _nothing(name: str, value: object) -> None:
    return None if value is None else _refuse(name, value, types.NoneType)


def _one_of(name: str, value: object, hints: tuple) -> Any:
    """Take the first of several annotations that fits; if only one could be meant, let it say what is wrong."""
    refused: list[tuple[Any, TypeError | ValueError]] = []
    for hint in hints:
        try:
            return fitted(name, value, hint)
        except (TypeError, ValueError) as error:
            refused.append((hint, error))
    of_the_kind = [error for _, error in refused if isinstance(error, ValueError)]
    alone = [error for hint, error in refused if hint is not types.NoneType]
    if of_the_kind or len(alone) == 1:
        raise (of_the_kind or alone)[0] from None
    raise TypeError(f"{name} is {either(dict.fromkeys(map(wanted, hints)))}, not {_kind(value)}.")


def _tuple(name: str, value: object, hint: Any, inner: tuple) -> tuple:
    value = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else plain(value)
    if not isinstance(value, list) or len(value) != len(inner):
        raise TypeError(f"{name} is {wanted(hint)}, not {_kind(value)}.")
    return tuple(
        fitted(f"item {place} of {name}", one, kind) for place, (one, kind) in enumerate(zip(value, inner, strict=True))
    )


def _mapping(name: str, value: object, hint: Any, inner: tuple) -> Mapping:
    if not isinstance(value, Mapping):
        _refuse(name, value, hint)
    key, kind = inner
    return {fitted(f"a key of {name}", k, key): fitted(f"{name}[{shown(k, 40)}]", v, kind) for k, v in value.items()}


def _items(name: str, value: object, hint: Any, origin: type, inner: Any) -> Any:
    """Refuse what is one value, and check the items where an annotation names numbers, words or labels."""
    value = plain(value)
    if isinstance(value, str) and inner is Hashable:
        return list(value)  # one letter for each
    if isinstance(value, str | bytes | Mapping | set | frozenset) or not _iterates(value):
        _refuse(name, value, hint)
    if inner not in PLURALS:
        ready = isinstance(value, Sequence) or hasattr(value, "__len__") or origin is Iterable
        return value if ready else _refuse(name, value, hint)
    if origin is not Iterable and isinstance(value, Iterator):
        _refuse(name, value, hint)
    given: Any = value.tolist() if hasattr(value, "tolist") else value
    items = list(islice(given, MOST + 1))
    if len(items) > MOST:
        raise ValueError(f"{name} holds at most {MOST:,} items; got more.")
    rule = _number if inner is float else RULES[inner]  # NaN is told by the function, which knows what it stands for
    found = [rule(f"item {place} of {name}", one) for place, one in enumerate(items)]
    return tuple(found) if origin is tuple else found


def _iterates(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, type) and getattr(value, "ndim", 1) != 0


def _is_open(hint: Any) -> bool:
    """Whether an annotation says nothing that can be checked: ``object``, ``Any``, a type variable."""
    protocol = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
    return hint in (object, Any) or isinstance(hint, TypeVar) or protocol


RULES: dict[Any, Callable[[str, Any], Any]] = {
    int: _whole,
    typing.SupportsInt: _whole,
    float: _finite,
    bool: check_flag,
    str: _text,
    os.PathLike: _file,
    Path: _file,
    Hashable: _hashable,
    types.NoneType: _nothing,
}
WORDS: dict[Any, str] = {
    int: "a whole number", typing.SupportsInt: "a whole number", float: "a number", bool: "True or False",
    str: "a text", os.PathLike: "a path", Path: "a path", Hashable: "a label", types.NoneType: "None",
}  # fmt: skip
