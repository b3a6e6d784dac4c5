"""Sums over the inputs of a layer that wait for the optimizer's step, where they enter the information at once.

The vectors are s = [x - origin; 1], so that the sum of s sᵀ holds the count, the sum and the power of x - origin: for
an origin near the mean, a covariance from these sums is accurate in float32 however large the mean is. Sums about
different origins add up exactly after a change of origin: those of several batches, or of several processes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisherlayers.gram import gram_with_ones

__all__ = ["Moments", "about", "moments", "total"]


class Moments(NamedTuple):
    """``origin`` (..., D) and ``sums`` Σ s sᵀ of s = [x - origin; 1], (..., D + 1, D + 1)."""

    origin: Tensor
    sums: Tensor

    @property
    def number(self) -> Tensor:
        """How many inputs are in the sums, (...)."""
        return self.sums[..., -1, -1]


def moments(rows: Tensor, origin: Tensor) -> Moments:
    """Sum over inputs.

    Args:
        rows: x, (..., N, D).
        origin: (..., D).

    Returns:
        Their moments about the origin.
    """
    return Moments(origin, gram_with_ones(rows - origin.unsqueeze(-2)))


def about(given: Moments, origin: Tensor) -> Moments:
    """Change the origin.

    Args:
        given: Moments about any origin.
        origin: The new one, (..., D).

    Returns:
        The same sums about the new origin: with u = [old - new; 0], s_new = s + u.
    """
    if torch.equal(given.origin, origin):
        return given
    step = pad(given.origin - origin, (0, 1))
    last = given.sums[..., -1]
    cross = step.unsqueeze(-1) * last.unsqueeze(-2)
    square = given.number[..., None, None] * step.unsqueeze(-1) * step.unsqueeze(-2)
    return Moments(origin, given.sums + cross + cross.mT + square)


def total(first: Moments, second: Moments) -> Moments:
    """Add up.

    Args:
        first: Moments.
        second: More of them, about any origin.

    Returns:
        The moments of both, about the origin of the first.
    """
    return Moments(first.origin, first.sums + about(second, first.origin).sums)
