"""The change of variables behind reconstruction, as pure functions of rows.

A layer computes W x + b. In the coordinates of a Fisher layer with root S and input mean μ it keeps (W', d) instead:

    W = W' S,    b = d - W μ        so that      W x + b = W' S (x - μ) + d.

With S S = C^(-1), C = Cov(x), this is the homogeneous layer [W b] = [W' d] M with M = [[S, -S μ], [0, 1]] and
Mᵀ M = E[x̃ x̃ᵀ]^(-1), x̃ = [x; 1]: gradient descent on (W', d) is descent on [W b] preconditioned by the inverse
information of the homogeneous input. Values map by M, gradients and everything linear in them (momentum) by M^(-T);
both maps and their inverses are exact solves.

A second root T may stand on the output side: [W b] = T [W' d] M, that is W = T W' S and b = T d - W μ. Descent on
(W', d) is then descent on [W b] preconditioned by T T on the left as well.

Rows are (..., out, D) and biases (..., out), where leading dimensions are the groups of a convolution. A bias of None
is a layer without bias, or one whose bias is not trained: then the mean must be zero.
"""

from typing import NamedTuple

from torch import Tensor

from fisherlayers.natural_gradient.exchange import exchange_gradient, exchange_value
from fisherlayers.natural_gradient.products import multiply, solve
from fisherlayers.root import Root

__all__ = [
    "Coordinates",
    "change_gradient",
    "change_value",
    "exchanged_gradient",
    "exchanged_value",
    "gradient_from_plain",
    "gradient_to_plain",
    "mixed",
    "mixed_bias",
    "unmixed",
    "unmixed_bias",
    "value_from_plain",
    "value_to_plain",
]

Rows = tuple[Tensor, Tensor | None]


class Coordinates(NamedTuple):
    """Root S, (..., D, D) in its own structure, and mean μ, (..., D), of a layer's input; root T, (..., out, out)."""

    root: Root
    mean: Tensor
    output: Root | None = None


def value_to_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return (W, b) of (W', d).

    Args:
        weight: W', (..., out, D).
        bias: d, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        W = T W' S and b = T d - W μ.
    """
    plain = mixed(coordinates.output, multiply(coordinates.root, weight))
    if bias is None:
        return plain, None
    return plain, mixed_bias(coordinates.output, bias) - _times(plain, coordinates.mean)


def value_from_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return (W', d) of (W, b).

    Args:
        weight: W, (..., out, D).
        bias: b, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        W' = T^(-1) W S^(-1) and d = T^(-1) (b + W μ).
    """
    moved = unmixed(coordinates.output, solve(coordinates.root, weight))
    if bias is None:
        return moved, None
    return moved, unmixed_bias(coordinates.output, bias + _times(weight, coordinates.mean))


def gradient_to_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return the derivatives by (W, b) of those by (W', d).

    Args:
        weight: G', (..., out, D).
        bias: g, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        G = T^(-1) G' S^(-1) + T^(-1) g μᵀ and T^(-1) g.
    """
    plain = unmixed(coordinates.output, solve(coordinates.root, weight))
    if bias is None:
        return plain, None
    bias = unmixed_bias(coordinates.output, bias)
    return plain + _outer(bias, coordinates.mean), bias


def gradient_from_plain(weight: Tensor, bias: Tensor | None, coordinates: Coordinates) -> Rows:
    """Return the derivatives by (W', d) of those by (W, b).

    Args:
        weight: G, (..., out, D).
        bias: g, (..., out), or None.
        coordinates: Root and mean.

    Returns:
        G' = T (G - g μᵀ) S and T g.
    """
    centred = weight if bias is None else weight - _outer(bias, coordinates.mean)
    moved = mixed(coordinates.output, multiply(coordinates.root, centred))
    return moved, None if bias is None else mixed_bias(coordinates.output, bias)


def change_value(weight: Tensor, bias: Tensor | None, old: Coordinates, new: Coordinates) -> Rows:
    """Re-express a value: T_new^(-1) T_old [W' d] M_old M_new^(-1), so that W and b stay.

    Args:
        weight: W' in the old coordinates, (..., out, D).
        bias: d, (..., out), or None.
        old: Coordinates to leave.
        new: Coordinates to enter.

    Returns:
        (W', d) in the new coordinates.
    """
    moved, shift = exchange_value(weight, old.root, new.root, new.mean - old.mean)
    moved = unmixed(new.output, mixed(old.output, moved))
    return moved, None if bias is None else exchanged_value(bias + shift, old.output, new.output)


def change_gradient(weight: Tensor, bias: Tensor | None, old: Coordinates, new: Coordinates) -> Rows:
    """Re-express a gradient, or a buffer that is linear in gradients: T_new T_old^(-1) [G' g] M_old^(-T) M_newᵀ.

    Args:
        weight: G' in the old coordinates, (..., out, D).
        bias: g, (..., out), or None.
        old: Coordinates to leave.
        new: Coordinates to enter.

    Returns:
        (G', g) in the new coordinates.
    """
    moved = exchange_gradient(weight, old.root, new.root, bias, old.mean - new.mean)
    moved = mixed(new.output, unmixed(old.output, moved))
    return moved, None if bias is None else exchanged_gradient(bias, old.output, new.output)


def mixed(output: Root | None, rows: Tensor) -> Tensor:
    """Return T rows.

    Args:
        output: T; None is the identity.
        rows: (..., out, D).

    Returns:
        (..., out, D).
    """
    return rows if output is None else multiply(output, rows.mT).mT


def unmixed(output: Root | None, rows: Tensor) -> Tensor:
    """Return T^(-1) rows.

    Args:
        output: T; None is the identity.
        rows: (..., out, D).

    Returns:
        (..., out, D).
    """
    return rows if output is None else solve(output, rows.mT).mT


def mixed_bias(output: Root | None, bias: Tensor) -> Tensor:
    """Return T d.

    Args:
        output: T; None is the identity.
        bias: (..., out).

    Returns:
        (..., out).
    """
    return mixed(output, bias.unsqueeze(-1)).squeeze(-1)


def unmixed_bias(output: Root | None, bias: Tensor) -> Tensor:
    """Return T^(-1) b.

    Args:
        output: T; None is the identity.
        bias: (..., out).

    Returns:
        (..., out).
    """
    return unmixed(output, bias.unsqueeze(-1)).squeeze(-1)


def exchanged_value(bias: Tensor, old: Root | None, new: Root | None) -> Tensor:
    """Return T_new^(-1) T_old d: a bias in new coordinates, but for what the mean takes from it.

    Args:
        bias: d, (..., out).
        old: T of the coordinates to leave; None is the identity.
        new: T of the coordinates to enter.

    Returns:
        (..., out).
    """
    return unmixed_bias(new, mixed_bias(old, bias))


def exchanged_gradient(bias: Tensor, old: Root | None, new: Root | None) -> Tensor:
    """Return T_new T_old^(-1) g: a gradient by d in new coordinates.

    Args:
        bias: g, (..., out).
        old: T of the coordinates to leave; None is the identity.
        new: T of the coordinates to enter.

    Returns:
        (..., out).
    """
    return mixed_bias(new, unmixed_bias(old, bias))


def _times(weight: Tensor, mean: Tensor) -> Tensor:
    return (weight @ mean.unsqueeze(-1)).squeeze(-1)


def _outer(bias: Tensor, mean: Tensor) -> Tensor:
    return bias.unsqueeze(-1) * mean.unsqueeze(-2)
