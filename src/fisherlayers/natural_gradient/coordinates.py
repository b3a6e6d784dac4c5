"""The change of variables behind reconstruction, as pure functions of rows.

A layer computes W x + b. In the coordinates of a Fisher layer with root S and input mean μ it keeps (W', d) instead:

    W = W' S,    b = d - W μ        so that      W x + b = W' S (x - μ) + d.

With S S = C^(-1), C = Cov(x), this is the homogeneous layer [W b] = [W' d] M with M = [[S, -S μ], [0, 1]] and
Mᵀ M = E[x̃ x̃ᵀ]^(-1), x̃ = [x; 1]: gradient descent on (W', d) is descent on [W b] preconditioned by the inverse
information of the homogeneous input. Values map by M, gradients and everything linear in them (momentum) by M^(-T);
both maps and their inverses are exact solves.

Rows are (..., out, D) and biases (..., out), where leading dimensions are the groups of a convolution. A bias of None
is a layer without bias, or one whose bias is not trained: then the mean must be zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fisherlayers.layer import Root
from fisherlayers.natural_gradient.products import multiply, solve

__all__ = [
    "Coordinates",
    "change_gradient",
    "change_value",
    "gradient_from_plain",
    "gradient_to_plain",
    "value_from_plain",
    "value_to_plain",
]

Rows = tuple[Tensor, Tensor | None]


class Coordinates(NamedTuple):
    """Root S, (..., D, D) in its own structure, and mean μ, (..., D), of a layer's input."""

    root: Root
    mean: Tensor


def value_to_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return (W, b) of (W', d).

    Args:
        weight: W', (..., out, D).
        bias: d, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        W = W' S and b = d - W μ.
    """
    plain = multiply(coordinates.root, weight)
    return plain, None if bias is None else bias - _times(plain, coordinates.mean)


def value_from_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return (W', d) of (W, b).

    Args:
        weight: W, (..., out, D).
        bias: b, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        W' = W S^(-1) and d = b + W μ.
    """
    return solve(coordinates.root, weight), None if bias is None else bias + _times(weight, coordinates.mean)


def gradient_to_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return the derivatives by (W, b) of those by (W', d).

    Args:
        weight: G', (..., out, D).
        bias: g, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        G = G' S^(-1) + g μᵀ and g.
    """
    plain = solve(coordinates.root, weight)
    return plain if bias is None else plain + _outer(bias, coordinates.mean), bias


def gradient_from_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return the derivatives by (W', d) of those by (W, b).

    Args:
        weight: G, (..., out, D).
        bias: g, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        G' = (G - g μᵀ) S and g.
    """
    centred = weight if bias is None else weight - _outer(bias, coordinates.mean)
    return multiply(coordinates.root, centred), bias


def change_value(weight: Tensor, bias: Tensor | None, old: Coordinates, new: Coordinates) -> Rows:
    """Re-express a value: [W' d] M_old M_new^(-1), so that W and b stay.

    Args:
        weight: W' in the old coordinates, (..., out, D).
        bias: d, (..., out), or None.
        old: Coordinates to leave.
        new: Coordinates to enter.

    Returns:
        (W', d) in the new coordinates.
    """
    plain = multiply(old.root, weight)
    return solve(new.root, plain), None if bias is None else bias + _times(plain, new.mean - old.mean)


def change_gradient(weight: Tensor, bias: Tensor | None, old: Coordinates, new: Coordinates) -> Rows:
    """Re-express a gradient, or a buffer that is linear in gradients: [G' g] M_old^(-T) M_newᵀ.

    Args:
        weight: G' in the old coordinates, (..., out, D).
        bias: g, (..., out), or None.
        old: Coordinates to leave.
        new: Coordinates to enter.

    Returns:
        (G', g) in the new coordinates.
    """
    plain = solve(old.root, weight)  # without g μᵀ of the old mean, which the new mean's replaces
    if bias is not None:
        plain = torch.addcmul(plain, bias.unsqueeze(-1), (old.mean - new.mean).unsqueeze(-2))
    return multiply(new.root, plain), bias


def _times(weight: Tensor, mean: Tensor) -> Tensor:
    return (weight @ mean.unsqueeze(-1)).squeeze(-1)


def _outer(bias: Tensor, mean: Tensor) -> Tensor:
    return bias.unsqueeze(-1) * mean.unsqueeze(-2)
