"""The two spaces in which a linear SVM can be solved: the weights themselves, and the Gram matrix of the rows.

A weight vector that is a combination of rows, w = Xᵀ a, is known by its coefficients a, and all inner products follow
from G = X Xᵀ. So one solver serves both spaces; only its products differ:

=============  ====================  =====================================  =====================
space          a vector is           X v                                    cost of Xᵀ diag(d) X v
=============  ====================  =====================================  =====================
`RowSpace`     v, (F + 1, P)         a product with every block of rows     4 n F P, n F read
`GramSpace`    a and G a, (2, n, P)  its second half: nothing to compute    2 n² P, n² read
=============  ====================  =====================================  =====================

P problems are solved side by side, so every product is a matrix product. The bias is a constant appended to each row.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

__all__ = ["GramSpace", "RowSpace", "WeightSpace", "as_rows", "row_blocks"]

# A block of rows is used twice in a row (X v, then Xᵀ u): it should stay in the cache in between.
_BLOCK_BYTES = 16 * 2**20
# Blocks in which fewer rows count are gathered before they are multiplied.
_DENSE_SHARE = 0.6


def as_rows(rows: Tensor | np.ndarray) -> Tensor:
    """Wrap rows as a tensor without copying them, be they in memory or a memory-mapped file.

    Args:
        rows: (n, F), of float16, bfloat16, float32 or float64.

    Returns:
        A tensor on the same memory. It must only be read.

    Raises:
        TypeError: If the type is not one of those.
        ValueError: If the shape does not fit or there is nothing in it.
    """
    if isinstance(rows, np.ndarray):
        if rows.dtype not in {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}:
            raise TypeError(f"rows must be of float16, float32 or float64, got {rows.dtype}: convert them first")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            rows = torch.from_numpy(rows)
    if not rows.dtype.is_floating_point:
        raise TypeError(f"rows must be of float16, bfloat16, float32 or float64, got {rows.dtype}: convert them first")
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"rows must have shape (n, F) and not be empty, got {tuple(rows.shape)}")
    return rows


def row_blocks(rows: Tensor, block_rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Cut rows into blocks that fit the cache, in a type that matrix products like.

    Args:
        rows: (n, F).
        block_rows: Rows a block; None chooses 16 MiB.

    Yields:
        The rows' positions, and the block: float64 if ``rows`` is, else float32.
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    size = block_rows or max(16, _BLOCK_BYTES // (rows.shape[1] * dtype.itemsize))
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        yield slice(start, stop), rows[start:stop].to(dtype)


class WeightSpace(ABC):
    """Where weight vectors live; vectors are float64 tensors (..., P), added and scaled as such.

    Attributes:
        num_rows: n.
    """

    num_rows: int

    @abstractmethod
    def zeros(self, num_problems: int) -> Tensor:
        """Return P zero vectors.

        Args:
            num_problems: P.

        Returns:
            (..., P).
        """

    @abstractmethod
    def scores(self, vector: Tensor) -> Tensor:
        """Return X v, the bias included.

        Args:
            vector: (..., P).

        Returns:
            (n, P), float64.
        """

    @abstractmethod
    def combine(self, coefficients: Tensor) -> Tensor:
        """Return the vector Xᵀ a.

        Args:
            coefficients: a, (n, P), float64.

        Returns:
            (..., P).
        """

    @abstractmethod
    def curve(self, vector: Tensor, curvature: Tensor) -> Tensor:
        """Return Xᵀ diag(d) X v.

        Args:
            vector: (..., P).
            curvature: d, (n, P), float64.

        Returns:
            (..., P).
        """

    @abstractmethod
    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Return inner products of weights.

        Args:
            left: (..., P).
            right: (..., P).

        Returns:
            (P,).
        """

    @abstractmethod
    def weights(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors as the weights and intercepts of linear functions.

        Args:
            vector: (..., P).

        Returns:
            Weights (P, F) and intercepts (P,), float64.
        """


class RowSpace(WeightSpace):
    """Weights as they are, over blocks of rows; the last entry of a vector is the bias's weight.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row; 0 for none.
        block_rows: Rows a block; None chooses 16 MiB.
    """

    def __init__(self, rows: Tensor, *, bias: float = 1.0, block_rows: int | None = None) -> None:
        self.num_rows = len(rows)
        self._rows = rows
        self._bias = bias
        self._block_rows = block_rows

    @override
    def zeros(self, num_problems: int) -> Tensor:
        return torch.zeros(self._rows.shape[1] + 1, num_problems, dtype=torch.float64, device=self._rows.device)

    @override
    def scores(self, vector: Tensor) -> Tensor:
        scores = torch.empty(self.num_rows, vector.shape[1], dtype=torch.float64, device=vector.device)
        for place, block in row_blocks(self._rows, self._block_rows):
            scores[place] = self._block_scores(block, vector)
        return scores

    @override
    def combine(self, coefficients: Tensor) -> Tensor:
        total = self.zeros(coefficients.shape[1])
        for place, block in row_blocks(self._rows, self._block_rows):
            self._add(total, *_used_rows(block, coefficients[place]))
        return total

    @override
    def curve(self, vector: Tensor, curvature: Tensor) -> Tensor:
        total = self.zeros(curvature.shape[1])
        for place, block in row_blocks(self._rows, self._block_rows):
            used, curvatures = _used_rows(block, curvature[place])
            self._add(total, used, curvatures * self._block_scores(used, vector))
        return total

    @override
    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(dim=0)

    @override
    def weights(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        return vector[:-1].T.contiguous(), self._bias * vector[-1]

    def _block_scores(self, block: Tensor, vector: Tensor) -> Tensor:
        return (block @ vector[:-1].to(block.dtype)).double().add_(vector[-1], alpha=self._bias)

    def _add(self, total: Tensor, block: Tensor, coefficients: Tensor) -> None:
        # (P, B) @ (B, F) in row-major order is twice as fast as (F, B) @ (B, P).
        total[:-1] += (coefficients.T.contiguous().to(block.dtype) @ block).T
        total[-1] += self._bias * coefficients.sum(dim=0)


class GramSpace(WeightSpace):
    """Weights as combinations of n rows: their coefficients a and their scores G a, stacked.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row; 0 for none.
        block_rows: Rows a block of the Gram matrix; None chooses 2,048.
    """

    def __init__(self, rows: Tensor, *, bias: float = 1.0, block_rows: int | None = None) -> None:
        self.num_rows = len(rows)
        self._rows = rows
        self._bias = bias
        self._gram = gram_matrix(rows, bias=bias, block_rows=block_rows)

    @override
    def zeros(self, num_problems: int) -> Tensor:
        return torch.zeros(2, self.num_rows, num_problems, dtype=torch.float64, device=self._gram.device)

    @override
    def scores(self, vector: Tensor) -> Tensor:
        return vector[1].clone()

    @override
    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.stack([coefficients, (self._gram @ coefficients.to(self._gram.dtype)).double()])

    @override
    def curve(self, vector: Tensor, curvature: Tensor) -> Tensor:
        return self.combine(curvature * vector[1])

    @override
    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return (left[0] * right[1]).sum(dim=0)

    @override
    def weights(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        in_rows = RowSpace(self._rows, bias=self._bias)
        return in_rows.weights(in_rows.combine(vector[0]))


def gram_matrix(rows: Tensor, *, bias: float = 0.0, block_rows: int | None = None) -> Tensor:
    """Return X Xᵀ + bias², computing each pair of blocks once.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row.
        block_rows: Rows a block; None chooses 2,048.

    Returns:
        (n, n), float64 if ``rows`` is, else float32.
    """
    size = block_rows or 2048
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    gram = torch.empty(len(rows), len(rows), dtype=dtype, device=rows.device)
    for place, block in row_blocks(rows, size):
        for other, other_block in row_blocks(rows[: place.stop], size):
            products = block @ other_block.T
            gram[place, other] = products
            gram[other, place] = products.T
    return gram.add_(bias**2)


def _used_rows(block: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    # Drop rows without a coefficient where that saves more than the copy costs.
    used = coefficients.any(dim=1)
    if int(used.sum()) > _DENSE_SHARE * len(block):
        return block, coefficients
    return block[used], coefficients[used]
