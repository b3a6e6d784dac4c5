"""The symmetric product Xᵀ X, of which only one half has to be computed."""

from torch import Tensor

__all__ = ["gram"]

# Narrower blocks and fewer rows gain nothing: see benchmarks/README.md, "step_time".
_WIDTH = 200
_ROWS = 128
_ALIGNMENT = 16


def gram(rows: Tensor) -> Tensor:
    """Return Xᵀ X.

    On a CPU the products of many rows are cut into blocks, of which those below the diagonal are copies: two thirds of
    the time. An accelerator prefers one large product.

    Args:
        rows: X, (..., N, D); no gradient flows through the product.

    Returns:
        (..., D, D), symmetric.
    """
    rows = rows.detach()
    if rows.device.type != "cpu" or rows.shape[-2] < _ROWS:
        return rows.mT @ rows
    found = rows.new_empty(*rows.shape[:-2], rows.shape[-1], rows.shape[-1])
    _fill(found, rows)
    return found


def _fill(found: Tensor, rows: Tensor) -> None:
    width = rows.shape[-1]
    if width <= _WIDTH:
        found.copy_(rows.mT @ rows)
        return
    half = width // 2 // _ALIGNMENT * _ALIGNMENT
    first, second = rows[..., :half], rows[..., half:]
    _fill(found[..., :half, :half], first)
    _fill(found[..., half:, half:], second)
    cross = found[..., :half, half:].copy_(first.mT @ second)
    found[..., half:, :half] = cross.mT
