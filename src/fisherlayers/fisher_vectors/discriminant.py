"""Linear discriminant analysis for the projection W: directions in which classes lie apart, relative to their spread.

With the means m_c of C classes of shares p_c, their mean m, B = sum_c p_c (m_c - m)(m_c - m)ᵀ between the classes and
the covariance S of images about their class's mean, the rows are the leading solutions of (Fisher 1936, Rao 1948)

    B w = lambda S w,        W S Wᵀ = I,        W B Wᵀ diagonal and falling.

B has rank C - 1: there are no more rows. Encodings have far more dimensions than there are images, so that the plain S
is singular and W would put all training images of a class on one point. S is therefore shrunk towards a multiple of the
identity by as much as Ledoit and Wolf (2004) estimate to be best: S' = (1 - d) S + d tr(S) / r I, r the dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

__all__ = ["class_moments", "discriminant_rows", "shrunk_covariance"]

# Relative to the largest: smaller eigenvalues of S' are rounding errors.
_NEGLIGIBLE = 1e-10


def shrunk_covariance(residuals: Tensor) -> tuple[Tensor, float]:
    """Estimate a covariance by shrinkage towards a multiple of the identity (Ledoit and Wolf, JMVA 2004).

    Args:
        residuals: Rows whose expectation is zero, (n, r).

    Returns:
        (1 - d) S + d tr(S) / r I with S = residualsᵀ residuals / n, (r, r); and d, in [0, 1].
    """
    shrunk, share = ledoit_wolf(residuals.cpu().numpy(), assume_centered=True)
    return torch.as_tensor(shrunk).to(residuals), float(share)


def class_moments(rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what discriminant analysis knows of the classes.

    Args:
        rows: (n, r).
        labels: Class indices, (n,).
        classes: C.

    Returns:
        Shares p_c of the classes, (C,); m_c - m, (C, r), zero for classes without a row; and rows minus their class's
        mean, (n, r).
    """
    counts = torch.bincount(labels, minlength=classes).to(rows)
    means = torch.zeros(classes, rows.shape[1], dtype=rows.dtype, device=rows.device).index_add(0, labels, rows)
    means = means / counts.clamp_min(1)[:, None]
    deviations = torch.where(counts[:, None] > 0, means - rows.mean(dim=0), 0.0)
    return counts / len(rows), deviations, rows - means[labels]


def discriminant_rows(rows: Tensor, labels: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """Learn W from each of several sets of the same images.

    The solutions of one set are unique up to signs. Those of several sets are rotated until the class means that they
    project agree best, and then all of them by one rotation to the directions of the largest mean lambda, so that their
    mean has a meaning, and leaving out the last rows too. A rotation of W keeps W S Wᵀ = I.

    Args:
        rows: (n, r), in float64 for results near rounding.
        labels: Class indices 0 .. C - 1, (n,).
        seen: Which images each W is learned from, bools (n,).

    Returns:
        (F, min(C - 1, r), r), the most discriminative rows first.
    """
    classes = int(labels.max()) + 1
    size = min(classes - 1, rows.shape[1])
    solutions: list[Tensor] = []
    projected: list[Tensor] = []
    weights = torch.bincount(labels, minlength=classes).to(rows).div(len(labels)).sqrt()[:, None]
    for members in seen:
        shares, deviations, residuals = class_moments(rows[members], labels[members], classes)
        whitener = _inverse_root(shrunk_covariance(residuals)[0])
        _, _, right = torch.linalg.svd(shares.sqrt()[:, None] * deviations @ whitener, full_matrices=False)
        solution = right[:size] @ whitener
        means = deviations @ solution.T
        if projected:
            # Orthogonal Procrustes.
            left, _, turned = torch.linalg.svd((weights * means).T @ (weights * projected[0]))
            solution, means = (left @ turned).T @ solution, means @ (left @ turned)
        solutions.append(solution)
        projected.append(means)
    _, _, turned = torch.linalg.svd(weights * torch.stack(projected).mean(dim=0), full_matrices=False)
    return turned[:size] @ torch.stack(solutions)


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    if values[-1] <= 0:
        # No class has two different images: what is left is the classes' means.
        return torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return vectors * values.clamp_min(_NEGLIGIBLE * values[-1]).rsqrt() @ vectors.T
