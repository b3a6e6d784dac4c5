"""Amounts of memory: what the machine has, and what users write."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from numbers import Real
from pathlib import Path

__all__ = ["memory_bytes", "parse_bytes"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_ASSUMED = 8 * 2**30


def parse_bytes(amount: int | float | str) -> int:
    """Read an amount of memory.

    Args:
        amount: Bytes, or a text such as ``"4GB"``, ``"500 MB"`` or ``"2GiB"``.

    Returns:
        Bytes.

    Raises:
        ValueError: If it is not such an amount, or not positive.
    """
    if isinstance(amount, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", amount.lower())
        number = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    else:
        number = float(amount) if isinstance(amount, Real) else 0.0
    if not 1 <= number < float("inf"):
        raise ValueError(f"memory must be a positive number of bytes or a text such as '4GB', got {amount!r}")
    return int(number)


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's if that is less.

    Returns:
        Bytes.
    """
    amounts = []
    with suppress(AttributeError, ValueError, OSError):
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            amounts.append(int(Path(path).read_text()))
    return min(amounts, default=_ASSUMED)
