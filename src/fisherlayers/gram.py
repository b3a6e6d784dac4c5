"""Symmetric products Xᵀ X, of which only one half has to be computed."""

from torch import Tensor
from torch.nn.functional import pad

__all__ = ["gram", "gram_with_ones"]

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
    if not _in_blocks(rows):
        return rows.mT @ rows
    found = rows.new_empty(*rows.shape[:-2], rows.shape[-1], rows.shape[-1])
    _fill(found, rows)
    return found


def gram_with_ones(rows: Tensor) -> Tensor:
    """Return Sᵀ S of S = [X, 1], without a copy of the large part.

    Args:
        rows: X, (..., N, D); no gradient flows through the product.

    Returns:
        (..., D + 1, D + 1), symmetric: Xᵀ X, the sums of X beside it, and N.
    """
    rows = rows.detach()
    if not _in_blocks(rows):
        vectors = pad(rows, (0, 1), value=1.0)
        return vectors.mT @ vectors
    found = rows.new_empty(*rows.shape[:-2], rows.shape[-1] + 1, rows.shape[-1] + 1)
    _fill(found[..., :-1, :-1], rows)
    found[..., -1, :-1] = found[..., :-1, -1] = rows.sum(-2)
    found[..., -1, -1] = rows.shape[-2]
    return found


def _in_blocks(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.shape[-2] >= _ROWS


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
