"""Apply: the Fisher layer z = F^(-1/2) s, and the root that an information asks for."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn

from fisherlayers.information import DenseInformation, DiagonalInformation, FisherInformation, KroneckerInformation
from fisherlayers.inverse_root import (
    LowRank,
    RootError,
    RootMethod,
    inverse_square_root,
    low_rank_inverse_square_root,
    random_basis,
)
from fisherlayers.root import DenseRoot, DiagonalRoot, KroneckerRoot, LowRankRoot, Root

__all__ = ["FisherLayer", "identity_root", "root_of"]


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
        ValueError: If the damping is negative or not finite.
    """
    with torch.no_grad():
        if isinstance(information, DiagonalInformation):
            if not 0 <= damping < math.inf:
                raise ValueError(f"damping must be at least 0 and finite, got {damping}")
            diagonal = information.value()
            gains = (diagonal + damping * diagonal.mean(-1, keepdim=True)).rsqrt()
            if not bool(torch.isfinite(gains).all()):
                advice = f"raise damping (it is {damping})" if bool((diagonal > 0).any()) else "all scores were zero"
                raise RootError(f"the information is zero along a coordinate: {advice}")
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

    Raises:
        ValueError: If an argument is out of its range.

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
        if not 0 <= damping < math.inf:
            raise ValueError(f"damping must be at least 0 and finite, got {damping}")
        if method not in get_args(RootMethod):
            raise ValueError(f"method must be one of {get_args(RootMethod)}, got {method!r}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, or None for a dense root, got {rank}")
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
