"""How far a step may go, and how the damping follows from how well its model predicted.

A step δ changes the model's output distribution by KL ≈ ½ δᵀ F δ. For a layer with the Kronecker information A ⊗ B and
a step Δ of its homogeneous weight [W b] this is ½ tr(Bᵀ Δ A Δᵀ).

B needs derivatives of one sample's log-likelihood, which a training loop need not give: its loss may be a mean, a sum,
or scaled. The trust region that ``reconstruct`` keeps is therefore measured where the scale is known, in the layer's
N outputs o = W x + b of D inputs: a step may change them by E|Δo|² ≤ ρ² N/D E|x|². In the coordinates of a Fisher
layer, with V = S C S the covariance of the whitened input S (x - μ), Δo = T (ΔW' S (x - μ) + Δd) has

    E|Δo|² = tr(Y V Yᵀ) + |T Δd|²,   Y = T ΔW',

which is a product of the step with a root, whatever the optimizer that made the step.
"""

import math

import torch
from torch import Tensor

from fisherlayers.inverse_root import LowRank
from fisherlayers.natural_gradient.products import multiply
from fisherlayers.precision import widened
from fisherlayers.root import DenseRoot, LowRankRoot, Root

__all__ = ["adapted_damping", "change_power", "clip_factor", "kronecker_divergence", "reduction_ratio", "whitened"]


def whitened(root: Root, covariance: Tensor) -> Root:
    """Return V = S C S, the covariance of the whitened input, in the structure of the root.

    Args:
        root: S, low-rank or dense.
        covariance: C, (..., D, D).

    Returns:
        V itself as something that multiplies; for a low-rank S exact along its basis, the mean elsewhere.
    """
    values = widened(covariance)
    if not isinstance(root, LowRankRoot):
        matrix = widened(root.dense())
        return DenseRoot((matrix @ values @ matrix).to(root.dense()))
    basis, gains, scale = widened(root.basis), widened(root.gains), widened(root.scale)
    leading = ((values @ basis) * basis).sum(-2)
    rest = values.diagonal(dim1=-2, dim2=-1).sum(-1) - leading.sum(-1)
    tail = scale.square() * rest.clamp_min(0) / max(1, basis.shape[-2] - basis.shape[-1])
    spread = LowRank(tail, basis, gains.square() * leading)
    return LowRankRoot(LowRank(*(tensor.to(root.scale) for tensor in spread)))


def change_power(weight: Tensor, bias: Tensor | None, spread: Root) -> Tensor:
    """Return E|Δo|² of a step Δo = Y S (x - μ) + y.

    Args:
        weight: Y, T times the step of W', (..., out, D).
        bias: y, T times the step of d, (..., out); None is zero.
        spread: V, as ``whitened`` returns it.

    Returns:
        Summed over outputs and groups: a scalar.
    """
    power = (multiply(spread, weight) * weight).sum()
    return power if bias is None else power + torch.sum(bias.square())


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
