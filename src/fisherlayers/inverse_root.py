"""Invert: the inverse square root (F + damping * mean eigenvalue * I)^(-1/2), as pure functions of matrices.

One contract for every method: a symmetric positive semi-definite matrix (..., D, D) comes in, a symmetric root S with
S (F + λ I) S = I goes out, in the dtype that came in. The work is done in float64, because a float32 eigendecomposition
returns negative eigenvalues from condition numbers around 1e8 on; and every dense result passes one residual check.

=================  =================================================  =====================================
method             idea                                               use
=================  =================================================  =====================================
eigh               eigendecomposition                                 the reference, and the default
denman-beavers     product form with determinant scaling, one         Cholesky only; the iteration of SNGD
                   inverse a step (Higham 2008, eq. 6.29)             (Liu et al., arXiv 2412.07441)
newton-schulz      coupled iteration of matrix products alone         accelerators that only like products
nystrom            leading directions, one value for all the others   wide layers: D r memory, D² r time
=================  =================================================  =====================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fisherlayers.precision import widened

__all__ = [
    "LowRank",
    "RootError",
    "RootMethod",
    "inverse_square_root",
    "low_rank_from_sketch",
    "low_rank_inverse_square_root",
    "root_residual",
]

RootMethod = Literal["eigh", "denman-beavers", "newton-schulz"]

_RESIDUAL_LIMIT = 1e-5
_MAX_STEPS = 100


class RootError(ArithmeticError):
    """A root that does not satisfy S F S = I: the matrix is singular, or too ill-conditioned for the method."""


class LowRank(NamedTuple):
    """A root of the form ``scale * I + basis (diag(gains) - scale * I) basisᵀ``.

    ``basis`` (..., D, r) has orthonormal columns, ``gains`` (..., r) and ``scale`` (...) are positive.
    """

    scale: Tensor
    basis: Tensor
    gains: Tensor


def inverse_square_root(matrix: Tensor, *, damping: float = 0.0, method: RootMethod = "eigh") -> Tensor:
    """Return S with S (F + damping * tr(F) / D * I) S = I.

    Args:
        matrix: F, symmetric positive semi-definite, (..., D, D).
        damping: Relative to the mean eigenvalue tr(F) / D; at least 0.
        method: ``"eigh"``, ``"denman-beavers"`` or ``"newton-schulz"``.

    Returns:
        The symmetric root, (..., D, D), in the dtype of ``matrix``.

    Raises:
        RootError: If the result fails the residual check; a larger ``damping`` helps.
        ValueError: If the matrix is empty, not square, not finite, not symmetric or not positive semi-definite, the
            damping negative or not finite, or the method unknown.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}")
    damped = _damped(matrix, damping)
    root = _METHODS[method](damped)
    root = (root + root.mT) / 2
    residual = root_residual(damped, root)
    if not bool((residual < _RESIDUAL_LIMIT).all()):
        raise RootError(
            f"method {method!r} left a residual of {float(residual.max()):.1e} (limit {_RESIDUAL_LIMIT:.0e}): "
            f"the matrix is singular or too ill-conditioned; raise damping (it is {damping})"
        )
    return root.to(matrix)


def root_residual(matrix: Tensor, root: Tensor) -> Tensor:
    """Return the root mean square of the entries' rows of S F S - I.

    Args:
        matrix: F, (..., D, D), damped already.
        root: S, (..., D, D).

    Returns:
        ``norm(S F S - I) / sqrt(D)`` in the Frobenius norm, (...).
    """
    size = matrix.shape[-1]
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.matrix_norm(root @ matrix @ root - identity) / size**0.5


def low_rank_inverse_square_root(
    matrix: Tensor, *, rank: int, damping: float, basis: Tensor | None = None, seed: int = 0
) -> LowRank:
    """Return a root that treats ``rank`` leading directions one by one and all the others alike.

    Nyström approximation of F (Frangella, Tropp and Udell 2023) from the sketch F Ω, where Ω is the basis of an
    earlier call (then every call is a further step of a subspace iteration) or random. The neglected directions get
    their mean eigenvalue τ = (tr F - Σ λ_i) / (D - r): taking it for zero would amplify them by damping^(-1/2).
    Exact for matrices of that rank and Ω in general position. Where all eigenvalues but ``rank`` are equal and not
    zero, the exact root is the limit of calls with the basis of the last one.

    Args:
        matrix: F, symmetric positive semi-definite, (..., D, D).
        rank: r, in [1, D].
        damping: Relative to the mean eigenvalue tr(F) / D; at least 0.
        basis: Ω with orthonormal columns, (..., D, r); random if None.
        seed: Of the random basis.

    Returns:
        Scale, basis and gains in the dtype of ``matrix``, the gains in ascending order.

    Raises:
        ValueError: If the matrix is empty, not square, not finite or not symmetric, is negative along a direction of
            the sketch, or an argument is out of its range; ``RootError`` if it is singular and ``damping`` 0.
    """
    values = _checked(matrix, damping)
    size = values.shape[-1]
    if not 1 <= rank <= size:
        raise ValueError(f"rank must lie in [1, {size}], got {rank}")
    trace = torch.diagonal(values, dim1=-2, dim2=-1).sum(-1)
    omega = random_basis(size, rank, seed=seed).to(values.device) if basis is None else basis.to(values)
    if omega.shape[-2:] != (size, rank):
        raise ValueError(f"basis must have shape (..., {size}, {rank}), got {tuple(omega.shape)}")
    precision = 8 * torch.finfo(matrix.dtype).eps
    try:
        low_rank = low_rank_from_sketch(values @ omega, omega, trace, damping=damping, precision=precision)
    except ValueError:
        raise ValueError(_not_positive(matrix)) from None
    return LowRank(*(tensor.to(matrix) for tensor in low_rank))


def low_rank_from_sketch(
    sketch: Tensor, basis: Tensor, trace: Tensor, *, damping: float, precision: float | Tensor
) -> LowRank:
    """Return the root of ``low_rank_inverse_square_root`` from F Ω alone, for whoever can multiply by F cheaply.

    Args:
        sketch: F Ω, (..., D, r), float64.
        basis: Ω with orthonormal columns, (..., D, r), float64.
        trace: tr F, (...), float64.
        damping: Relative to the mean eigenvalue tr(F) / D; at least 0.
        precision: Error of the sketch over the trace, one number or (...): what rounding left of it.

    Returns:
        Scale, basis and gains in float64, the gains in ascending order.

    Raises:
        RootError: If the matrix is singular and ``damping`` 0.
        ValueError: If F is negative along a direction of the sketch.
    """
    size, rank = sketch.shape[-2:]
    rounding = (torch.finfo(torch.float64).eps * trace).clamp_min(torch.finfo(torch.float64).tiny)
    shift = (precision * trace).clamp_min(rounding)
    sketch = sketch + shift[..., None, None] * basis
    core = basis.mT @ sketch
    factor, failure = torch.linalg.cholesky_ex((core + core.mT) / 2)
    if bool(failure.any()):
        raise ValueError("F must be positive semi-definite: it is negative along a direction of the sketch")
    half = torch.linalg.solve_triangular(factor, sketch.mT, upper=False).mT  # F ≈ half halfᵀ
    orthogonal, triangular = torch.linalg.qr(half)
    rotation, singular, _ = torch.linalg.svd(triangular)
    leading = (singular.square() - shift[..., None]).clamp_min(0.0)
    tail = (trace - leading.sum(-1)).clamp_min(0.0) / max(size - rank, 1)
    damp = damping * trace / size
    gains = (leading + damp[..., None]).rsqrt()
    scale = (tail + damp).rsqrt() if rank < size else gains.amin(-1)
    smallest = torch.minimum(tail, leading[..., -1]) if rank < size else leading[..., -1]
    if not bool((smallest + damp > 4 * size * rounding).all()):
        raise RootError(f"the matrix is singular: raise damping (it is {damping})")
    return LowRank(scale, orthogonal @ rotation, gains)


def random_basis(size: int, rank: int, *, seed: int = 0) -> Tensor:
    """Return orthonormal columns in general position.

    Args:
        size: D.
        rank: r, at most D.
        seed: Of the draw; the caller's random state is left alone.

    Returns:
        (D, r), float64, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64, device="cpu"))[0]


def _eigh(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp_min(0.0).rsqrt().unsqueeze(-2)) @ vectors.mT


def _denman_beavers(matrix: Tensor) -> Tensor:
    # M -> I and Y -> F^(-1/2), from M = F and Y = I. Scaling by det(M)^(-1/2D) saves the first halvings of the
    # spectrum; near convergence it would only add rounding.
    size = matrix.shape[-1]
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    product, root = matrix, identity.expand_as(matrix)
    best = torch.full(matrix.shape[:-2], torch.inf, dtype=matrix.dtype, device=matrix.device)
    for _ in range(_MAX_STEPS):
        distance = torch.linalg.matrix_norm(product - identity) / size**0.5
        if bool((distance < 1e-13).all() | ((distance < 1e-2) & (distance >= best)).all()):
            break
        best = torch.minimum(best, distance)
        factor, failure = torch.linalg.cholesky_ex((product + product.mT) / 2)
        if bool(failure.any()):
            break
        inverse = torch.cholesky_inverse(factor)
        log_det = 2 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        scale = torch.where(distance > 1e-2, (-log_det / (2 * size)).exp(), torch.ones_like(log_det))[..., None, None]
        root = scale * root @ (identity + inverse / scale**2) / 2
        product = (identity + (scale**2 * product + inverse / scale**2) / 2) / 2
    return root


def _newton_schulz(matrix: Tensor) -> Tensor:
    # Y -> (F/c)^(1/2) and Z -> (F/c)^(-1/2); c = norm_F(F) puts the spectrum of F/c into (0, 1].
    size = matrix.shape[-1]
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    norm = torch.linalg.matrix_norm(matrix)[..., None, None]
    square, root = matrix / norm, identity.expand_as(matrix)
    best = torch.full(matrix.shape[:-2], torch.inf, dtype=matrix.dtype, device=matrix.device)
    for _ in range(_MAX_STEPS):
        product = root @ square
        distance = torch.linalg.matrix_norm(product - identity) / size**0.5
        if bool((distance < 1e-13).all() | ((distance < 1e-2) & (distance >= best)).all()):
            break
        best = torch.minimum(best, distance)
        step = (3 * identity - product) / 2
        square, root = square @ step, step @ root
    return root / norm.sqrt()


_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "eigh": _eigh,
    "denman-beavers": _denman_beavers,
    "newton-schulz": _newton_schulz,
}


def _damped(matrix: Tensor, damping: float) -> Tensor:
    values = _checked(matrix, damping)
    size = values.shape[-1]
    trace = torch.diagonal(values, dim1=-2, dim2=-1).sum(-1)
    tolerance = 4 * size * torch.finfo(matrix.dtype).eps * trace.abs()
    identity = torch.eye(size, dtype=values.dtype, device=values.device)
    # F + tolerance I has a Cholesky factor unless F has an eigenvalue below -tolerance.
    _, failure = torch.linalg.cholesky_ex(values + tolerance[..., None, None] * identity)
    if bool(failure.any()):
        if bool((values == 0).flatten(-2).all(-1).any()):
            raise ValueError("matrix must not be zero: damping is relative to its mean eigenvalue, which is 0")
        raise ValueError(_not_positive(matrix))
    return values + (damping * trace / size)[..., None, None] * identity


def _checked(matrix: Tensor, damping: float) -> Tensor:
    # The matrix in float64, after the checks that every method shares.
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must be square, (..., D, D), got shape {tuple(matrix.shape)}")
    if matrix.numel() == 0:
        raise ValueError(f"matrix must not be empty, got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise ValueError(f"matrix must be of a real floating type, got {matrix.dtype}")
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping must be at least 0 and finite, got {damping}")
    values = widened(matrix)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("matrix must be finite: found NaN or infinity")
    asymmetry = (values - values.mT).abs().amax((-2, -1))
    scale = values.abs().amax((-2, -1))
    if bool((asymmetry > 100 * torch.finfo(matrix.dtype).eps * scale).any()):
        raise ValueError(f"matrix must be symmetric, got entries that differ by {float(asymmetry.max()):.1e}")
    return (values + values.mT) / 2


def _not_positive(matrix: Tensor) -> str:
    smallest = float(torch.linalg.eigvalsh(widened(matrix)).min())
    return f"matrix must be positive semi-definite, got an eigenvalue of {smallest:.3g}"
