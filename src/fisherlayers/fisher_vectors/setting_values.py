"""Values at the settings' door: NumPy's numbers become Python's, and what has no meaning is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from fisherlayers.precision import has_float64

__all__ = ["as_number", "as_setting", "as_switch", "as_whole_number", "check_device"]


def as_setting(name: str, value: Any, kind: str) -> Any:
    """Return a value as its setting has it.

    Args:
        name: Of the setting.
        value: Given by the user.
        kind: The annotation of the setting: ``"int"``, ``"float"``, ``"bool"``, ``"tuple[int, ...]"``, another, or one
            of them ``"| None"``. For several whole numbers a single one may stand.

    Returns:
        A number, a bool, or a tuple of ints; other kinds as they come. What is of another kind is refused by a
        ValueError.
    """
    kind, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if kind == "int":
        return as_whole_number(name, value)
    if kind == "float":
        return as_number(name, value)
    if kind == "bool":
        return as_switch(name, value)
    if kind != "tuple[int, ...]":
        return value
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return as_whole_number(name, value)
    return tuple(as_whole_number(name, entry) for entry in value)


def as_whole_number(name: str, value: Any) -> int:
    """Return a whole number; 1e5 and NumPy's integers are some.

    Args:
        name: Of the argument, for the error.
        value: To check.

    Returns:
        An int.

    Raises:
        ValueError: If it is none.
    """
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if isinstance(value, bool | np.bool_) or not whole:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def as_number(name: str, value: Any) -> float:
    """Return a finite number.

    Args:
        name: Of the argument, for the error.
        value: To check.

    Returns:
        A float, or the int that was given.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real) or not isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def as_switch(name: str, value: Any) -> bool:
    """Return True or False.

    Args:
        name: Of the argument, for the error.
        value: To check.

    Returns:
        A bool.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_device(device: Any) -> None:
    """Refuse a device that torch does not know, or this machine does not have.

    Args:
        device: As for ``torch.device``.

    Raises:
        ValueError: If there is no such device, or it has no float64.
    """
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda', got {device!r}") from None
    if not has_float64(torch.device(device)):
        raise ValueError(f"device is {device!r}, which has no float64, and fitted networks need it: take 'cpu'")
    there: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available}
    if kind in there and not there[kind]():
        raise ValueError(f"device is {device!r}, and torch finds none on this machine: take 'cpu'")
