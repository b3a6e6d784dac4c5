"""Normalisations of encodings: signed power, L2, and L2 per mixture component.

An *improved* Fisher vector is ``l2_normalize(signed_power(encoding))``, in this order (Perronnin, Sanchez and Mensink,
ECCV 2010). Intra-normalisation evens out bursty components (Arandjelovic and Zisserman, CVPR 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["intra_normalize", "l2_normalize", "signed_power"]


def signed_power(values: Tensor, alpha: float = 0.5, *, gradient_floor: float = 1e-6) -> Tensor:
    """Return sign(v) |v|^alpha, element by element.

    The derivative alpha |v|^(alpha - 1) is infinite at zero, where single entries would outweigh all others in
    training: for 0 < |v| < ``gradient_floor`` the derivative at the floor is taken instead (500 for the square root and
    the default), and zero at v = 0. The values are exact everywhere.

    Args:
        values: Any shape.
        alpha: Exponent, in [0, 1]; 0.5 is the signed square root, 1 changes nothing.
        gradient_floor: Magnitude below which the derivative grows no further; positive.

    Returns:
        The same shape.

    Raises:
        ValueError: If ``alpha`` lies outside [0, 1], or ``gradient_floor`` is not positive.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1] (0.5 = signed square root), got {alpha}")
    if not gradient_floor > 0:
        raise ValueError(f"gradient_floor must be positive, got {gradient_floor}")
    if values.requires_grad:
        magnitudes = values.abs()
        small = magnitudes < gradient_floor
        # The second term is zero, and carries the derivative.
        slope = alpha * gradient_floor ** (alpha - 1)
        bounded = magnitudes.detach().pow(alpha) + slope * (magnitudes - magnitudes.detach())
        return values.sign() * torch.where(small, bounded, torch.where(small, 1.0, magnitudes).pow(alpha))
    if torch.compiler.is_compiling():
        return values.sign() * values.abs().pow(alpha)
    return values.sign() if alpha == 0 else values.abs().pow_(alpha).copysign_(values)


def l2_normalize(values: Tensor, *, floor: float = 1e-12) -> Tensor:
    """Divide by the L2 norm along the last axis.

    Args:
        values: (..., D).
        floor: The divisor is never smaller, so that a zero vector stays zero; positive. It counts as at least the
            smallest normal number of the precision in which norms are computed: float32 for half precision.

    Returns:
        (..., D), of unit norm wherever the norm exceeds ``floor``.

    Raises:
        ValueError: If ``floor`` is not positive.
    """
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    wide = values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / norms.clamp_min(max(floor, torch.finfo(wide.dtype).tiny))).to(values.dtype)


def intra_normalize(encodings: Tensor, num_components: int, *, floor: float = 1e-12) -> Tensor:
    """Divide each component's part of a Fisher vector, means and standard deviations together, by its L2 norm.

    Args:
        encodings: (..., 2 K D) in the layout of ``fisher_vectors``.
        num_components: K.
        floor: As for `l2_normalize`: components that no descriptor reached stay zero; positive.

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
