"""Checks of single parameters: one sentence with the parameter, its value, and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from cleave.errors import RequestError


def refuse(name: str, value: object, allowed: str) -> RequestError:
    """The error of a parameter that is out of range; `value` is quoted, at most 80 characters of it."""
    text = repr(value)
    return RequestError(f"{name} is {text if len(text) <= 80 else text[:77] + '...'}; it must be {allowed}")


def number(name: str, value: Any, low: float, high: float, *, without_low: bool = False) -> float:
    """`value` as a float from `low` to `high`, `low` itself not included where that is said."""
    above = f"above {low:g}" if without_low else f"at least {low:g}"
    allowed = f"a finite number {above}" if math.isinf(high) else f"a number {above} and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise refuse(name, value, allowed)
    result = float(value)
    if not math.isfinite(result) or not low <= result <= high or (without_low and result == low):
        raise refuse(name, value, allowed)
    return result


def whole(name: str, value: Any, low: int, high: int | None = None, *, note: str = "") -> int:
    """`value` as an int of at least `low`, at most `high` where that is given."""
    allowed = f"a whole number of at least {low}" + ("" if high is None else f" and at most {high}") + note
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise refuse(name, value, allowed) from None
    if result < low or (high is not None and result > high):
        raise refuse(name, value, allowed)
    return result


def flag(name: str, value: object) -> None:
    """Raises RequestError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """`value` as a tuple of token ids; whether the vocabulary has them is for the model to say."""
    allowed = "a list of token ids"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise refuse(name, value, allowed)
    return tuple(whole(f"a token of {name}", token, 0) for token in value)


def texts(name: str, value: Any, *, most: int, longest: int) -> tuple[str, ...]:
    """`value`, a string or several, as a tuple: at most `most`, each of 1 to `longest` characters."""
    allowed = f"a string or a list of strings, at most {most} of 1 to {longest} characters"
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise refuse(name, value, allowed)
    items = tuple(value)
    if len(items) > most:
        raise RequestError(f"{name} has {len(items)} strings; at most {most} are allowed")
    for item in items:
        if not isinstance(item, str) or not item:
            raise refuse(f"a string of {name}", item, f"text of 1 to {longest} characters")
        if len(item) > longest:
            raise RequestError(
                f"a string of {name} has {len(item)} characters; at most {longest} are allowed"
            )
        if not _is_unicode(item):
            raise refuse(f"a string of {name}", item, "text that UTF-8 can encode")
    return items


def biases(name: str, value: Any, most: float) -> dict[int, float]:
    """`value` as a dict of token id to a number from -most to most."""
    if not isinstance(value, Mapping):
        raise refuse(name, value, f"a dict of token id to a number from {-most:g} to {most:g}")
    return {
        whole(f"a token of {name}", token, 0): number(f"{name}[{token}]", bias, -most, most)
        for token, bias in value.items()
    }


def in_vocabulary(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Raises RequestError for a token that the vocabulary does not have."""
    for token in tokens:
        if token >= vocab_size:
            raise RequestError(
                f"{name} has token {token}, which is out of the vocabulary; ids go from 0 to {vocab_size - 1}"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
