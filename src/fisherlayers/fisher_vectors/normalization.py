"""Normalisations of encodings: signed power, L2, and L2 per mixture component.

An *improved* Fisher vector is ``l2_normalize(signed_power(encoding))``, in this order (Perronnin, Sanchez and Mensink,
ECCV 2010). Intra-normalisation evens out bursty components (Arandjelovic and Zisserman, CVPR 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["intra_normalize", "l2_normalize", "signed_power"]


def signed_power(values: Tensor, alpha: float = 0.5) -> Tensor:
    """Return sign(v) |v|^alpha, element by element; zero has the derivative zero.

    Args:
        values: Any shape.
        alpha: Exponent, in [0, 1]; 0.5 is the signed square root, 1 changes nothing.

    Returns:
        The same shape.

    Raises:
        ValueError: If ``alpha`` lies outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1] (0.5 = signed square root), got {alpha}")
    if values.requires_grad:
        # Zeros are replaced before the power, whose derivative is infinite there.
        return values.sign() * torch.where(values == 0, 1.0, values.abs()).pow(alpha)
    return values.sign() if alpha == 0 else values.abs().pow_(alpha).copysign_(values)


def l2_normalize(values: Tensor, *, floor: float = 1e-12) -> Tensor:
    """Divide by the L2 norm along the last axis.

    Args:
        values: (..., D).
        floor: The divisor is never smaller, so that a zero vector stays zero; positive.

    Returns:
        (..., D), of unit norm wherever the norm exceeds ``floor``.

    Raises:
        ValueError: If ``floor`` is not positive.
    """
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    return values / torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_min(floor)


def intra_normalize(encodings: Tensor, num_components: int, *, floor: float = 1e-12) -> Tensor:
    """Divide each component's part of a Fisher vector, means and standard deviations together, by its L2 norm.

    Args:
        encodings: (..., 2 K D) in the layout of ``fisher_vectors``.
        num_components: K.
        floor: The divisor is never smaller: components that no descriptor reached stay zero; positive.

    Returns:
        (..., 2 K D).

    Raises:
        ValueError: If the last axis is no multiple of 2 K, or ``floor`` is not positive.
    """
    if num_components < 1 or encodings.shape[-1] % (2 * num_components):
        raise ValueError(
            f"encodings must have 2 * num_components * D columns; got {encodings.shape[-1]} columns and "
            f"num_components {num_components}"
        )
    blocks = encodings.reshape(*encodings.shape[:-1], 2, num_components, -1).transpose(-3, -2)  # (..., K, 2, D)
    normalized = l2_normalize(blocks.flatten(-2), floor=floor)
    return normalized.reshape(blocks.shape).transpose(-3, -2).flatten(-3)
