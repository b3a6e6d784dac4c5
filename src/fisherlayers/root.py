"""The roots F^(-1/2) that a Fisher layer multiplies by, each in its own structure.

A root is a small module whose tensors are buffers, so it follows ``state_dict``, ``.to`` and ``deepcopy``. All roots
are symmetric and share three verbs: ``multiply`` (x F^(-1/2)), ``solve`` (x F^(1/2), the exact inverse of
``multiply``) and ``dense`` (the matrix itself).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.inverse_root import LowRank

__all__ = [
    "BlockRoot",
    "DenseRoot",
    "DiagonalRoot",
    "KroneckerRoot",
    "LowRankRoot",
    "Root",
    "blocks_of",
    "joined",
]


class Root(nn.Module, ABC):
    """A symmetric positive definite matrix F^(-1/2) that multiplies rows."""

    @abstractmethod
    def multiply(self, rows: Tensor) -> Tensor:
        """Return rows F^(-1/2).

        Args:
            rows: (..., N, D).

        Returns:
            (..., N, D).
        """

    @abstractmethod
    def solve(self, rows: Tensor) -> Tensor:
        """Return rows F^(1/2), the inverse of ``multiply``.

        Args:
            rows: (..., N, D).

        Returns:
            (..., N, D).
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the root as a matrix.

        Returns:
            (..., D, D).
        """

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``multiply(rows)``.

        Args:
            rows: (..., N, D).

        Returns:
            (..., N, D).
        """
        return self.multiply(rows)


class DenseRoot(Root):
    """A root held as a full matrix.

    Args:
        matrix: F^(-1/2), (..., D, D), symmetric.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    @override
    def multiply(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix

    @override
    def solve(self, rows: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, rows, left=False)

    @override
    def dense(self) -> Tensor:
        return self.matrix


class DiagonalRoot(Root):
    """A diagonal root.

    Args:
        gains: The diagonal of F^(-1/2), (..., D), positive.
    """

    gains: Tensor

    def __init__(self, gains: Tensor) -> None:
        super().__init__()
        self.register_buffer("gains", gains)

    @override
    def multiply(self, rows: Tensor) -> Tensor:
        return rows * self.gains.unsqueeze(-2)

    @override
    def solve(self, rows: Tensor) -> Tensor:
        return rows / self.gains.unsqueeze(-2)

    @override
    def dense(self) -> Tensor:
        return torch.diag_embed(self.gains)


class LowRankRoot(Root):
    """A root ``scale I + basis (diag(gains) - scale I) basisᵀ``: r directions one by one, all the others alike.

    Both verbs cost 4 N D r operations instead of the 2 N D² of a dense root.

    Args:
        low_rank: Scale (...), basis (..., D, r) with orthonormal columns and gains (..., r).
    """

    scale: Tensor
    basis: Tensor
    gains: Tensor

    def __init__(self, low_rank: LowRank) -> None:
        super().__init__()
        self.register_buffer("scale", low_rank.scale)
        self.register_buffer("basis", low_rank.basis)
        self.register_buffer("gains", low_rank.gains)

    @override
    def multiply(self, rows: Tensor) -> Tensor:
        return self._combine(rows, self.gains, self.scale)

    @override
    def solve(self, rows: Tensor) -> Tensor:
        return self._combine(rows, self.gains.reciprocal(), self.scale.reciprocal())

    @override
    def dense(self) -> Tensor:
        return self.multiply(torch.eye(self.basis.shape[-2], dtype=self.basis.dtype, device=self.basis.device))

    def _combine(self, rows: Tensor, gains: Tensor, scale: Tensor) -> Tensor:
        excess = (gains - scale.unsqueeze(-1)).unsqueeze(-2)
        return scale[..., None, None] * rows + ((rows @ self.basis) * excess) @ self.basis.mT


class BlockRoot(Root):
    """A block-diagonal root: coordinates far apart are treated as if they were independent.

    For quantities so wide that D² numbers are too many: B blocks of width k take D k, both verbs 2 N D k operations.

    Args:
        matrices: The blocks of F^(-1/2), (B, k, k), each symmetric.
        num_features: D, more than (B - 1) k and at most B k; the last block does not couple its surplus to the rest.

    Raises:
        ValueError: If the blocks do not cover D coordinates in this way.
    """

    matrices: Tensor

    def __init__(self, matrices: Tensor, num_features: int) -> None:
        super().__init__()
        blocks, width = matrices.shape[0], matrices.shape[-1]
        if matrices.ndim != 3 or not (blocks - 1) * width < num_features <= blocks * width:
            raise ValueError(f"matrices must be blocks (B, k, k) of {num_features} coordinates, got {matrices.shape}")
        self.num_features = num_features
        self.register_buffer("matrices", matrices)

    @override
    def multiply(self, rows: Tensor) -> Tensor:
        return joined(blocks_of(rows, *self.matrices.shape[:2]) @ self.matrices, self.num_features)

    @override
    def solve(self, rows: Tensor) -> Tensor:
        parts = blocks_of(rows, *self.matrices.shape[:2])
        return joined(torch.linalg.solve(self.matrices, parts, left=False), self.num_features)

    @override
    def dense(self) -> Tensor:
        whole: Tensor = torch.block_diag(*self.matrices)  # type: ignore[no-untyped-call]
        return whole[: self.num_features, : self.num_features]


def blocks_of(rows: Tensor, blocks: int, width: int) -> Tensor:
    """Cut rows into blocks of coordinates.

    Args:
        rows: (N, D).
        blocks: B.
        width: k; B k is at least D.

    Returns:
        (B, N, k), the last block filled up with zeros.
    """
    surplus = blocks * width - rows.shape[-1]
    return torch.nn.functional.pad(rows, (0, surplus)).reshape(-1, blocks, width).transpose(0, 1)


def joined(parts: Tensor, size: int) -> Tensor:
    """Undo ``blocks_of``.

    Args:
        parts: (B, N, k).
        size: D.

    Returns:
        (N, D).
    """
    return parts.transpose(0, 1).flatten(1)[:, :size]


class KroneckerRoot(Root):
    """The root A^(-1/2) ⊗ B^(-1/2) of a layer's weight; rows are weights of shape (out_features, in_features).

    Args:
        inputs: The root of A, on the input side.
        gradients: The root of B, on the output side.
    """

    def __init__(self, inputs: Root, gradients: Root) -> None:
        super().__init__()
        self.inputs = inputs
        self.gradients = gradients

    @override
    def multiply(self, rows: Tensor) -> Tensor:
        return self.gradients.multiply(self.inputs.multiply(rows).mT).mT

    @override
    def solve(self, rows: Tensor) -> Tensor:
        return self.gradients.solve(self.inputs.solve(rows).mT).mT

    @override
    def dense(self) -> Tensor:
        return torch.kron(self.inputs.dense(), self.gradients.dense())
