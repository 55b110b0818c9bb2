"""Checks of arguments: each raises with the argument's name, its value and the remedy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from . import errors


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `least`, and of 64 bits."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or not least <= value < 2**63:
        raise errors.not_a_count(name, value, least)


def check_name(argument: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless `value` is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise errors.unknown_name(argument, value, known)


def flag(name: str, value: Any) -> bool:
    """Return `value`; raise unless it is True or False."""
    if not isinstance(value, bool):
        raise errors.not_a_number(name, value, "True or False")
    return value


def _number(name: str, value: Any, accept: Callable[[float], bool], what: str) -> float:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond any float
            number = math.inf
        if math.isfinite(number) and accept(number):
            return number
    raise errors.not_a_number(name, value, what)


def finite(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a finite number."""
    return _number(name, value, lambda x: True, "a finite number")


def positive(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is positive and finite."""
    return _number(name, value, lambda x: x > 0, "a positive number")


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is finite and at least 0."""
    return _number(name, value, lambda x: x >= 0, "a number of at least 0")


def fraction(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless ``0 <= value < 1``."""
    return _number(name, value, lambda x: 0 <= x < 1, "a number from 0 up to, not including, 1")


def as_python(instance: Any, **converters: Callable[[Any], Any]) -> None:
    """Replace fields of a frozen dataclass by what the converters make of them.

    NumPy scalars would widen float32 arrays and are refused by strict namespaces.
    """
    for name, convert in converters.items():
        object.__setattr__(instance, name, convert(getattr(instance, name)))
