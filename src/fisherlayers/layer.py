"""Apply: the Fisher layer z = F^(-1/2) s, and the roots that it multiplies by.

A root is a small module whose tensors are buffers, so it follows ``state_dict``, ``.to`` and ``deepcopy``. All roots
are symmetric and share three verbs: ``multiply`` (x F^(-1/2)), ``solve`` (x F^(1/2), the exact inverse of
``multiply``) and ``dense`` (the matrix itself).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.information import (
    DenseInformation,
    DiagonalInformation,
    FisherInformation,
    KroneckerInformation,
)
from fisherlayers.inverse_root import (
    LowRank,
    RootError,
    RootMethod,
    inverse_square_root,
    low_rank_inverse_square_root,
    random_basis,
)

__all__ = [
    "BlockRoot",
    "DenseRoot",
    "DiagonalRoot",
    "FisherLayer",
    "KroneckerRoot",
    "LowRankRoot",
    "Root",
    "identity_root",
    "root_of",
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


def root_of(
    information: FisherInformation,
    *,
    damping: float,
    method: RootMethod = "eigh",
    rank: int | None = None,
    previous: Root | None = None,
) -> Root:
    """Return the root of (F + damping * mean eigenvalue * I)^(-1/2), in the structure of the information.

    Args:
        information: What has been accumulated.
        damping: Relative to the mean eigenvalue of F (of each factor if Kronecker); at least 0.
        method: How a dense matrix is inverted.
        rank: Number of directions of a low-rank root; None for a dense one.
        previous: The last root; a low-rank one starts from its basis.

    Returns:
        A new root; the information and ``previous`` are left alone.

    Raises:
        RootError: If the information is singular and the damping 0.
        TypeError: If the kind of information is unknown.
        ValueError: If the damping is negative.
    """
    with torch.no_grad():
        if isinstance(information, DiagonalInformation):
            if not damping >= 0:
                raise ValueError(f"damping must be at least 0, got {damping}")
            diagonal = information.value()
            gains = (diagonal + damping * diagonal.mean(-1, keepdim=True)).rsqrt()
            if not bool(torch.isfinite(gains).all()):
                raise RootError(f"the information is zero along a coordinate: raise damping (it is {damping})")
            return DiagonalRoot(gains)
        if isinstance(information, KroneckerInformation):
            last = previous if isinstance(previous, KroneckerRoot) else None
            return KroneckerRoot(
                root_of(information.inputs, damping=damping, method=method, rank=rank,
                        previous=last.inputs if last else None),
                root_of(information.gradients, damping=damping, method=method, rank=rank,
                        previous=last.gradients if last else None),
            )  # fmt: skip
        if isinstance(information, DenseInformation):
            if rank is None or rank >= information.num_features:
                return DenseRoot(inverse_square_root(information.value(), damping=damping, method=method))
            basis = previous.basis if isinstance(previous, LowRankRoot) else None
            return LowRankRoot(
                low_rank_inverse_square_root(information.value(), rank=rank, damping=damping, basis=basis)
            )
    raise TypeError(f"information must be dense, diagonal or Kronecker, got {type(information).__name__}")


def identity_root(information: FisherInformation, *, rank: int | None = None) -> Root:
    """Return the root with which a Fisher layer starts: that of F = I, in the structure of the information.

    Args:
        information: Gives size, device and dtype.
        rank: Of a low-rank root; None for a dense one.

    Returns:
        A root that changes nothing.

    Raises:
        TypeError: If the kind of information is unknown.
    """
    if isinstance(information, KroneckerInformation):
        return KroneckerRoot(
            identity_root(information.inputs, rank=rank), identity_root(information.gradients, rank=rank)
        )
    if not isinstance(information, DenseInformation | DiagonalInformation):
        raise TypeError(f"information must be dense, diagonal or Kronecker, got {type(information).__name__}")
    ones = torch.ones_like(
        information.second_moment[..., 0, :] if information.order == 2 else information.second_moment
    )
    if isinstance(information, DiagonalInformation):
        return DiagonalRoot(ones)
    if rank is None or rank >= information.num_features:
        return DenseRoot(torch.diag_embed(ones))
    basis = random_basis(information.num_features, rank).to(ones).repeat(*information.batch_shape, 1, 1)
    return LowRankRoot(LowRank(ones[..., 0].clone(), basis, ones[..., :rank].clone()))


class FisherLayer(nn.Module):
    """Normalise scores by the inverse square root of their information: z = F^(-1/2) s.

    The layer starts as the identity; ``update`` feeds its information and ``refresh`` recomputes the root from it.
    No gradient flows through the information (with it, the layer would be a batch normalisation).

    Args:
        information: F; dense, diagonal or Kronecker.
        damping: Relative to the mean eigenvalue of F, at least 0.
        method: How a dense matrix is inverted.
        rank: Number of directions of a low-rank root; None for a dense one.

    Example:
        >>> import torch
        >>> from fisherlayers import DenseInformation, FisherLayer
        >>> scores = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1.0, 0.1])
        >>> layer = FisherLayer(DenseInformation(3), damping=0.0)
        >>> layer.update(scores)
        >>> layer.refresh()
        >>> z = layer(scores)
        >>> torch.allclose(z.T @ z / 4096, torch.eye(3), atol=1e-4)
        True
    """

    root: Root

    def __init__(
        self,
        information: FisherInformation,
        *,
        damping: float = 1e-3,
        method: RootMethod = "eigh",
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.information = information
        self.damping = damping
        self.method: RootMethod = method
        self.rank = rank
        self.root = identity_root(information, rank=rank)

    def update(self, scores: Tensor, *, new_step: bool = True) -> None:
        """Feed the information.

        Args:
            scores: (..., N, D).
            new_step: False continues the step of the previous call.
        """
        self.information.update(scores, new_step=new_step)

    def refresh(self) -> None:
        """Recompute the root from the information."""
        self.root = root_of(
            self.information, damping=self.damping, method=self.method, rank=self.rank, previous=self.root
        )

    def forward(self, scores: Tensor) -> Tensor:
        """Return z = F^(-1/2) s.

        Args:
            scores: (..., N, D).

        Returns:
            (..., N, D); the scores themselves before the first refresh.
        """
        return self.root.multiply(scores)

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """Return s = F^(1/2) z, the exact inverse of the layer.

        Args:
            normalized: z, (..., N, D).

        Returns:
            (..., N, D).
        """
        return self.root.solve(normalized)
