"""Sums over parts of an array: one after the other here, in threads or over processes where a caller wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Total", "in_turn", "parts_of"]

Total = Callable[[Callable[[Tensor], Tensor], Sequence[Tensor]], Tensor]
"""Sums a function over parts of an array; it may ask for the function of no rows, where it has no part."""


def parts_of(rows: Tensor, chunk: int) -> Sequence[Tensor]:
    """Cut an array.

    Args:
        rows: (N, ...).
        chunk: Rows a part, about.

    Returns:
        Parts of nearly equal size, at least one.
    """
    return torch.tensor_split(rows, max(1, round(len(rows) / chunk)))


def in_turn(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Sum a function over parts, one after the other.

    Args:
        function: part -> tensor, a new one.
        parts: At least one.

    Returns:
        The sum.
    """
    sums = function(parts[0])
    for part in parts[1:]:
        sums += function(part)
    return sums
