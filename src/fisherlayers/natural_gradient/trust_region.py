"""How far a natural-gradient step may go, and how the damping follows from how well its model predicted.

A step δ changes the model's output distribution by KL ≈ ½ δᵀ F δ. For a layer with the Kronecker information A ⊗ B and
a step Δ of its homogeneous weight [W b] this is ½ tr(Bᵀ Δ A Δᵀ).
"""

import math

from torch import Tensor

__all__ = ["adapted_damping", "clip_factor", "kronecker_divergence", "reduction_ratio"]


def kronecker_divergence(step: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return ½ tr(B Δ A Δᵀ), the model's KL divergence over a layer's step.

    Args:
        step: Δ, (..., out, D).
        inputs: A = E[x̃ x̃ᵀ], (..., D, D).
        gradients: B = E[g gᵀ] of the derivatives of one sample's log-likelihood by the outputs, (..., out, out).

    Returns:
        The divergence in nats, summed over leading dimensions: a scalar.
    """
    return 0.5 * ((gradients @ step @ inputs) * step).sum()


def clip_factor(divergence: float, limit: float) -> float:
    """Return the factor that brings a step within the trust region.

    The divergence is quadratic in the step, so √(limit / divergence) reaches the limit exactly (KL clipping, Ba, Grosse
    and Martens 2017, section 5).

    Args:
        divergence: Of the full step, at least 0.
        limit: More than 0.

    Returns:
        A factor in [0, 1]; 0 if the divergence is not finite.
    """
    if not math.isfinite(divergence):
        return 0.0
    return 1.0 if divergence <= limit else math.sqrt(limit / divergence)


def reduction_ratio(before: float, after: float, predicted: float) -> float:
    """Return ρ, what a step gained over what its quadratic model promised.

    Args:
        before: Loss on a batch before the step.
        after: Loss on the same batch after it.
        predicted: Model's change of the loss, gᵀ δ + ½ δᵀ (F + λ I) δ, less than 0.

    Returns:
        ρ; near 1 where the model is good, negative where the loss grew.

    Raises:
        ValueError: If the model promises no decrease.
    """
    if not predicted < 0:
        raise ValueError(f"predicted must be negative: a descent step lowers its own model, got {predicted}")
    return (after - before) / predicted


def adapted_damping(
    damping: float, ratio: float, *, factor: float = 1.5, lowest: float = 1e-3, highest: float = 1e3
) -> float:
    """Return the next damping by the Levenberg-Marquardt rule.

    Less where the model was good (ρ > 3/4), more where it was not (ρ < 1/4, or not a number), as it was in between
    (Martens and Grosse 2015, section 6.5).

    Args:
        damping: In use.
        ratio: ρ of the last step.
        factor: Of one change, more than 1.
        lowest: Bound.
        highest: Bound.

    Returns:
        The damping to use from now on, within the bounds.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not factor > 1:
        raise ValueError(f"factor must be more than 1, got {factor}")
    if not 0 < lowest <= highest:
        raise ValueError(f"bounds must satisfy 0 < lowest <= highest, got {lowest} and {highest}")
    if ratio > 0.75:
        damping /= factor
    elif not ratio >= 0.25:
        damping *= factor
    return min(max(damping, lowest), highest)
