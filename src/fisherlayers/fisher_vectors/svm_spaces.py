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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from fisherlayers.fisher_vectors.parallel import in_threads
from fisherlayers.fisher_vectors.rows import Rows, row_places

__all__ = ["GramSpace", "RowSpace", "WeightSpace", "gram_matrix", "rows_precision"]

Result = TypeVar("Result")

# Blocks in which fewer rows count are gathered before they are multiplied.
_DENSE_SHARE = 0.6
# A block of the rows of which a Gram matrix is made: large, for the product's sake, but no burden on the memory.
_GRAM_BLOCK_BYTES = 64 * 2**20


class WeightSpace(ABC):
    """Where weight vectors live; vectors are float64 tensors (..., P), added and scaled as such.

    Attributes:
        num_rows: n.
        row_space: The weights as they are, on the same rows and in the same precision.
    """

    num_rows: int
    row_space: RowSpace

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
    def gradient(self, vector: Tensor, coefficients: Tensor) -> Tensor:
        """Return v - Xᵀ a.

        Args:
            vector: v, (..., P).
            coefficients: a, (n, P), float64.

        Returns:
            (..., P).
        """

    @abstractmethod
    def in_rows(self, vector: Tensor) -> Tensor:
        """Return a vector as one of ``row_space``.

        Args:
            vector: (..., P).

        Returns:
            (F + 1, P).
        """


class RowSpace(WeightSpace):
    """Weights as they are, over blocks of rows; the last entry of a vector is the bias's weight.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row; 0 for none.
        block_rows: Rows a block; None chooses 16 MiB.
        n_jobs: Threads over blocks; the result does not depend on it.
        precision: Of the products with blocks; that of the rows, at least float32, if None.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        bias: float = 1.0,
        block_rows: int | None = None,
        n_jobs: int | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        self.num_rows = len(rows)
        self.row_space = self
        self._rows = rows
        self._bias = bias
        self._block_rows = block_rows
        self._n_jobs = n_jobs
        self._precision = precision or rows_precision(rows)

    @override
    def zeros(self, num_problems: int) -> Tensor:
        return torch.zeros(self._rows.shape[1] + 1, num_problems, dtype=torch.float64, device=self._rows.device)

    @override
    def scores(self, vector: Tensor) -> Tensor:
        weights = self._narrow(vector)
        # Written in place: results that outlive their block would keep the memory of blocks from being used again.
        result = torch.empty(self.num_rows, vector.shape[1], dtype=torch.float64, device=self._rows.device)

        def write(place: slice) -> None:
            result[place] = self._block_scores(self._rows[place].to(self._precision), weights, vector[-1])

        for _ in self._over_blocks(write):
            pass
        return result

    @override
    def combine(self, coefficients: Tensor) -> Tensor:
        def part(place: slice) -> tuple[Tensor, Tensor]:
            return self._combined(*self._used_rows(place, coefficients[place]))

        return self._sum(part, coefficients)

    @override
    def curve(self, vector: Tensor, curvature: Tensor) -> Tensor:
        weights = self._narrow(vector)

        def part(place: slice) -> tuple[Tensor, Tensor]:
            used, curvatures = self._used_rows(place, curvature[place])
            return self._combined(used, curvatures * self._block_scores(used, weights, vector[-1]))

        return self._sum(part, curvature)

    @override
    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(dim=0)

    @override
    def gradient(self, vector: Tensor, coefficients: Tensor) -> Tensor:
        return vector - self.combine(coefficients)

    @override
    def in_rows(self, vector: Tensor) -> Tensor:
        return vector

    def weights(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors as the weights and intercepts of linear functions.

        Args:
            vector: (F + 1, P).

        Returns:
            Weights (P, F) and intercepts (P,), float64.
        """
        return vector[:-1].T.contiguous(), self._bias * vector[-1]

    def _used_rows(self, place: slice, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        # Drop rows without a coefficient, before they are widened, where that saves more than the copy costs.
        used = coefficients.any(dim=1)
        if int(used.sum()) > _DENSE_SHARE * len(coefficients):
            return self._rows[place].to(self._precision), coefficients
        return self._rows[place].to(self._rows.dtype)[used].to(self._precision), coefficients[used]

    def _narrow(self, vector: Tensor) -> Tensor:
        return vector[:-1].to(self._precision)  # once for all blocks

    def _block_scores(self, block: Tensor, weights: Tensor, intercepts: Tensor) -> Tensor:
        return (block @ weights).double().add_(intercepts, alpha=self._bias)

    def _combined(self, block: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        # (P, B) @ (B, F) in row-major order is twice as fast as (F, B) @ (B, P).
        return coefficients.T.contiguous().to(block.dtype) @ block, self._bias * coefficients.sum(dim=0)

    def _over_blocks(self, function: Callable[[slice], Result]) -> Iterator[Result]:
        return in_threads(function, row_places(self._rows, self._block_rows), n_jobs=self._n_jobs)

    def _sum(self, function: Callable[[slice], tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
        # Added up as (P, F), as the products come: adding transposed ones takes as long as the products themselves.
        total = torch.zeros(like.shape[1], self._rows.shape[1], dtype=torch.float64, device=self._rows.device)
        intercepts = total.new_zeros(1, like.shape[1])
        for weights, bias in self._over_blocks(function):
            total += weights
            intercepts += bias
        return torch.cat([total.T, intercepts])


class GramSpace(WeightSpace):
    """Weights as combinations of n rows: their coefficients a and their scores G a, stacked.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row; 0 for none.
        block_rows: Rows a block of the Gram matrix; None chooses up to 2,048.
        n_jobs: Threads over blocks; the result does not depend on it.
        precision: Of the Gram matrix and its products; that of the rows, at least float32, if None.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        bias: float = 1.0,
        block_rows: int | None = None,
        n_jobs: int | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        self.num_rows = len(rows)
        self.row_space = RowSpace(rows, bias=bias, n_jobs=n_jobs, precision=precision)
        self._gram = gram_matrix(rows, bias=bias, block_rows=block_rows, n_jobs=n_jobs, precision=precision)

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
    def gradient(self, vector: Tensor, coefficients: Tensor) -> Tensor:
        # Rounded in proportion to the difference, not to its terms.
        return self.combine(vector[0] - coefficients)

    @override
    def in_rows(self, vector: Tensor) -> Tensor:
        return self.row_space.combine(vector[0])


def rows_precision(rows: Rows) -> torch.dtype:
    """Return the type in which products with rows are computed: float64 for float64, else float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def gram_matrix(
    rows: Rows,
    *,
    bias: float = 0.0,
    block_rows: int | None = None,
    n_jobs: int | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Return X Xᵀ + bias², computing each pair of blocks once.

    Args:
        rows: (n, F) from `as_rows`.
        bias: The constant appended to every row.
        block_rows: Rows a block; None chooses up to 2,048, fewer where rows are long.
        n_jobs: Threads over pairs of blocks; the result does not depend on it.
        precision: Of the products and the result; that of the rows, at least float32, if None.

    Returns:
        (n, n).
    """
    size = block_rows or min(2048, max(256, _GRAM_BLOCK_BYTES // (4 * rows.shape[1])))
    dtype = precision or rows_precision(rows)
    gram = torch.empty(len(rows), len(rows), dtype=dtype, device=rows.device)
    for place in row_places(rows, size):
        block = rows[place].to(dtype)

        def multiply(other: slice, place: slice = place, block: Tensor = block) -> None:
            products = block @ rows[other].to(dtype).T
            gram[place, other] = products
            gram[other, place] = products.T

        for _ in in_threads(multiply, row_places(rows[: place.stop], size), n_jobs=n_jobs):
            pass
    return gram.add_(bias**2)
