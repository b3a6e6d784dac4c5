"""Arguments of a race: what is of another kind or out of range is refused by its name, before anything runs."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeVar

Entry = TypeVar("Entry")


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """Return a whole number; NumPy's become Python's.

    Args:
        name: of the argument.
        value: to check.
        least: the lowest that is allowed; None for any.

    Returns:
        An int.

    Raises:
        ValueError: it is none, or too low.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}; got {value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """Return a number that is more than 0; NumPy's become Python's.

    Args:
        name: of the argument.
        value: to check.

    Returns:
        A float.

    Raises:
        ValueError: it is none, not more than 0, or not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number of more than 0; got {value!r}")
    return float(value)


def several(name: str, values: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries of what holds several.

    Args:
        name: of the argument.
        values: such as a list.

    Returns:
        At least one entry.

    Raises:
        ValueError: there is none, or it is a single value.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must hold one or more, such as a list; got {values!r}")
    entries = tuple(values)
    if not entries:
        raise ValueError(f"{name} must hold one or more; got none")
    return entries


def distinct_seeds(name: str, seeds: Iterable[int]) -> tuple[int, ...]:
    """Return seeds, one or more and all different.

    Args:
        name: of the argument.
        seeds: to check.

    Returns:
        Ints.

    Raises:
        ValueError: they are not as stated.
    """
    found = tuple(whole_number(f"every seed of {name}", seed) for seed in several(name, seeds))
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must be all different; got {found}")
    return found
