"""Rows from the coordinates of one root to those of another, without the plain rows in between.

For low-rank roots the two products are composed: one pass over the rows. Multiples of the identity need no product.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fisherlayers.natural_gradient.products import fusible, multiple_of_identity, multiply, solve
from fisherlayers.root import Root

__all__ = ["exchange_gradient", "exchange_value"]


def exchange_value(rows: Tensor, old: Root, new: Root, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows S_old S_new^(-1) and rows S_old · vector.

    Args:
        rows: (..., N, D).
        old: S_old.
        new: S_new.
        vector: (..., D).

    Returns:
        (..., N, D) and (..., N).
    """
    ratio = _ratio(old, new, rows)
    if ratio is not None:
        return rows * (ratio.old / ratio.new), (rows @ vector) * ratio.old
    if not (fusible(old, rows) and fusible(new, rows)):
        plain = multiply(old, rows)
        return solve(new, plain), (plain @ vector.unsqueeze(-1)).squeeze(-1)
    left, right, scale = _composed(old.basis, old.gains, old.scale, new.basis, 1 / new.gains, 1 / new.scale)
    products = rows @ torch.cat([left, old.multiply(vector.unsqueeze(0)).mT], 1)
    return (products[:, :-1] @ right).add_(rows, alpha=scale), products[:, -1].clone()


def exchange_gradient(rows: Tensor, old: Root, new: Root, column: Tensor | None, vector: Tensor) -> Tensor:
    """Return (rows S_old^(-1) + column vectorᵀ) S_new.

    Args:
        rows: (..., N, D).
        old: S_old.
        new: S_new.
        column: (..., N), or None for zeros.
        vector: (..., D).

    Returns:
        (..., N, D).
    """
    ratio = _ratio(old, new, rows)
    if ratio is not None:
        factor = ratio.new / ratio.old
        return rows * factor if column is None else torch.addr(rows, column, vector, beta=factor, alpha=ratio.new)
    if not (fusible(old, rows) and fusible(new, rows)):
        plain = solve(old, rows)
        if column is not None:
            plain = torch.addcmul(plain, column.unsqueeze(-1), vector.unsqueeze(-2))
        return multiply(new, plain)
    left, right, scale = _composed(old.basis, 1 / old.gains, 1 / old.scale, new.basis, new.gains, new.scale)
    products = rows @ left
    if column is not None:
        products = torch.cat([products, column.unsqueeze(1)], 1)
        right = torch.cat([right, new.multiply(vector.unsqueeze(0))])
    return (products @ right).add_(rows, alpha=scale)


class _Ratio(NamedTuple):
    """Both roots of an exchange, as multiples of the identity."""

    old: float
    new: float


def _ratio(old: Root, new: Root, rows: Tensor) -> _Ratio | None:
    if rows.ndim != 2 or rows.device.type != "cpu":
        return None
    before, after = multiple_of_identity(old), multiple_of_identity(new)
    return None if before is None or after is None else _Ratio(before, after)


def _composed(
    first: Tensor, gains: Tensor, scale: Tensor, second: Tensor, more_gains: Tensor, more_scale: Tensor
) -> tuple[Tensor, Tensor, float]:
    # left right + scale I, the product of U diag(gains - scale) Uᵀ + scale I and the same of the second basis.
    one, other = (gains - scale).unsqueeze(1), (more_gains - more_scale).unsqueeze(1)
    ending = other * second.mT
    right = torch.cat([one * (more_scale * first.mT + (first.mT @ second) @ ending), scale * ending])
    return torch.cat([first, second], 1), right, (scale * more_scale).item()
