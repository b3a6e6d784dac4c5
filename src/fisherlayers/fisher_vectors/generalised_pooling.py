"""Generalised max pooling: an image's Fisher vector to which every descriptor is equally similar.

The mean of descriptors' Fisher vectors phi_i is ruled by what occurs often. Murray and Perronnin (CVPR 2014) ask for
the vector u whose product with every phi_i is 1, in the sense of ridge regression, as the maximum is for one-hot codes:

    u = sum_i alpha_i phi_i,        alpha = (K + lambda I)^-1 1,        K_ij = phi_i·phi_j.

Large lambda gives the mean, up to a factor. The matrix Phi of N rows phi_i has N x 2 K D entries, and K N x N: neither
is formed. Conjugate gradients need Phiᵀ v and Phi u only, and since phi_ik is gamma_ik times a linear function of
[1, x, x^2], both are one product of an N x K and an N x 2 D matrix, as in the mean. An iteration costs 8 N K D
operations, about as much as pooling by the mean does; they are some ten to forty at a damping of 1.
"""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.encoding import THRESHOLD, Assignment, check_assignment
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, LogJoint, posteriors

__all__ = ["generalised_max_pooling"]

# Rows a block: rows x K floats should stay in the cache.
_BLOCK = 1024


def generalised_max_pooling(
    mixture: DiagonalMixture,
    descriptors: Tensor,
    *,
    damping: float = 1.0,
    assignment: Assignment = "soft",
    threshold: float = THRESHOLD,
    tolerance: float = 1e-5,
    iterations: int = 200,
) -> Tensor:
    """Encode images by generalised max pooling of their descriptors' Fisher vectors, with the closed form's root.

    Args:
        mixture: K components over D features.
        descriptors: (..., N, D), N at least 1, in the dtype of the mixture.
        damping: lambda relative to 2 K D, which is what the closed form expects of |phi_i|^2, and so of the mean
            eigenvalue of the Gram matrix; positive and finite.
        assignment: As for `fisher_vectors`.
        threshold: As for `fisher_vectors`.
        tolerance: Of conjugate gradients: |1 - (K + lambda I) alpha| relative to |1|; positive.
        iterations: At most; at least 1.

    Returns:
        (..., 2 K D), in the layout of `fisher_vectors`, not yet normalised; each image by itself.

    Raises:
        ValueError: If shapes do not fit or an argument lies outside its range.
    """
    if descriptors.ndim < 2 or descriptors.shape[-1] != mixture.num_features or descriptors.shape[-2] == 0:
        raise ValueError(
            f"descriptors must have shape (..., N, {mixture.num_features}) with N at least 1, "
            f"got {tuple(descriptors.shape)}"
        )
    check_assignment(assignment, threshold)
    if not 0 < damping < inf:
        raise ValueError(f"damping must be positive and finite, got {damping}")
    if not tolerance > 0 or iterations < 1:
        raise ValueError(f"tolerance must be positive and iterations at least 1, got {tolerance} and {iterations}")
    ridge = damping * 2 * mixture.means.numel()
    joint = LogJoint.of(mixture)
    images = descriptors.reshape(-1, *descriptors.shape[-2:])
    pooled = [
        _pooled(_FisherVectors(mixture, joint, image, assignment, threshold), ridge, tolerance, iterations)
        for image in images
    ]
    width = 2 * mixture.means.numel()
    rows = torch.stack(pooled).reshape(-1, width) if pooled else descriptors.new_empty(0, width)
    return rows.reshape(*descriptors.shape[:-2], width)


class _FisherVectors:
    """Phi of one image, known by its products: u is (2, K, D), v is (N,)."""

    def __init__(
        self,
        mixture: DiagonalMixture,
        joint: LogJoint,
        descriptors: Tensor,
        assignment: Assignment,
        threshold: float,
    ) -> None:
        means, variances = mixture.means - joint.center, mixture.variances
        roots = mixture.weights.rsqrt().unsqueeze(-1)
        # phi of the means is gamma (x linear + offset), that of the deviations gamma (x^2 square + x cross + rest).
        self._linear = roots / variances.sqrt()
        self._offset = -means * self._linear
        self._square = roots / sqrt(2) / variances
        self._cross = -2 * means * self._square
        self._rest = (means.square() - variances) * self._square
        self._blocks: list[tuple[Tensor, Tensor]] = []
        for rows in torch.split(descriptors, _BLOCK):
            powers = joint.powers(rows)
            shares = joint.at(powers)
            if assignment == "hard":
                shares = torch.zeros_like(shares).scatter_(-1, shares.argmax(dim=-1, keepdim=True), 1.0)
            else:
                shares = torch.nn.functional.threshold(posteriors(shares), threshold, 0.0)
            self._blocks.append((powers, shares))
        self.ones = torch.ones(len(descriptors), dtype=descriptors.dtype, device=descriptors.device)

    def combine(self, weights: Tensor) -> Tensor:
        """Return Phiᵀ v."""
        mass = torch.zeros_like(self._linear[:, 0])
        moments = self._linear.new_zeros(len(mass), 2 * self._linear.shape[1])
        for (powers, shares), part in zip(self._blocks, torch.split(weights, _BLOCK), strict=True):
            weighted = (shares * part.unsqueeze(-1)).T
            mass = mass + weighted.sum(dim=1)
            moments = torch.addmm(moments, weighted, powers)
        first, second = moments.chunk(2, dim=1)
        mass = mass.unsqueeze(-1)
        to_means = first * self._linear + mass * self._offset
        to_deviations = second * self._square + first * self._cross + mass * self._rest
        return torch.stack([to_means, to_deviations])

    def products(self, vector: Tensor) -> Tensor:
        """Return Phi u."""
        to_means, to_deviations = vector
        factors = torch.cat(
            [to_means * self._linear + to_deviations * self._cross, to_deviations * self._square], dim=1
        )
        constants = (to_means * self._offset + to_deviations * self._rest).sum(dim=1)
        return torch.cat([(torch.addmm(constants, powers, factors.T) * g).sum(dim=1) for powers, g in self._blocks])


def _pooled(vectors: _FisherVectors, ridge: float, tolerance: float, iterations: int) -> Tensor:
    # Hestenes and Stiefel (1952). What the steps add to alpha adds its combination to u: no product is left at the end.
    residual = direction = vectors.ones
    norm = residual @ residual
    enough = tolerance**2 * norm
    pooled = torch.zeros((), dtype=norm.dtype, device=norm.device)
    for _ in range(iterations):
        combined = vectors.combine(direction)
        image = vectors.products(combined) + ridge * direction
        step = norm / (direction @ image)
        pooled = pooled + step * combined
        residual = residual - step * image
        former, norm = norm, residual @ residual
        if bool(norm <= enough):
            break
        direction = residual + norm / former * direction
    return pooled
