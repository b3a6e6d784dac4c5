"""Diagonal Gaussian mixtures: p(x) = sum_k w_k N(x; mu_k, diag(sigma_k^2)) and their posteriors.

All log-densities of a batch are one matrix product, because the exponent is linear in [x, x^2]:

    log w_k N_k(x) = sum_d x_d mu_kd / sigma_kd^2 - 1/2 sum_d x_d^2 / sigma_kd^2 + constant_k.

x is first centred by the mean of the mixture, without which float32 loses the differences between squares. The same
[x, x^2], times the posteriors, are the moments that EM and Fisher vectors are made of: a second matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisherlayers.precision import widened

__all__ = [
    "DiagonalMixture",
    "LogJoint",
    "log_prob",
    "log_responsibilities",
    "posteriors",
    "responsibilities",
]


@dataclass(frozen=True, eq=False)
class DiagonalMixture:
    """A Gaussian mixture with diagonal covariances.

    Attributes:
        weights: (K,), positive, summing to one.
        means: (K, D).
        variances: (K, D), positive.

    Raises:
        TypeError: If an entry is no tensor, or they differ in floating type or device.
        ValueError: If shapes do not fit, an entry is not finite, weights or variances are not positive, or the weights
            do not sum to one.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {_describe(tensor)}")
            if (tensor.dtype, tensor.device) != (self.means.dtype, self.means.device):
                raise TypeError(f"{name} must have dtype and device of means, got {_describe(tensor)}")
        if self.means.ndim != 2 or self.means.numel() == 0:
            raise ValueError(f"means must have shape (K, D), both at least 1, got {tuple(self.means.shape)}")
        for name, shape in (("weights", self.means.shape[:1]), ("variances", self.means.shape)):
            if tensors[name].shape != shape:
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensors[name].shape)}")
        if torch.compiler.is_compiling():
            return  # values are not known yet
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must be finite, found NaN or infinity")
            if name != "means" and not bool((tensor > 0).all()):
                raise ValueError(f"{name} must be positive, got a smallest entry of {float(tensor.min()):.3g}")
        total = float(widened(self.weights.detach()).sum())
        if abs(total - 1.0) > max(1e-3, torch.finfo(self.weights.dtype).eps):
            raise ValueError(f"weights must sum to one, got {total:.6g}")

    @property
    def num_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def num_features(self) -> int:
        """D."""
        return self.means.shape[1]

    def to(self, *args: Any, **kwargs: Any) -> DiagonalMixture:
        """Return the mixture on another device or in another dtype.

        Args:
            *args: As for `torch.Tensor.to`.
            **kwargs: As for `torch.Tensor.to`.

        Returns:
            A new mixture.
        """
        return DiagonalMixture(*(getattr(self, field.name).to(*args, **kwargs) for field in fields(self)))


def _describe(value: object) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__


class LogJoint(NamedTuple):
    """log w_k N_k(x) as a linear function of [x, x^2] about the centre.

    Attributes:
        center: (D,).
        factors: (K, 2 D).
        constants: (K,).
    """

    center: Tensor
    factors: Tensor
    constants: Tensor

    @classmethod
    def of(cls, mixture: DiagonalMixture, center: Tensor | None = None) -> LogJoint:
        """Multiply out the exponents of a mixture's components.

        Args:
            mixture: K components over D features.
            center: (D,), near the mixture's mean; the mean if None.

        Returns:
            The function.
        """
        if center is None:
            center = mixture.weights @ mixture.means
        means = mixture.means - center
        precisions = mixture.variances.reciprocal()
        constants = mixture.weights.log() - 0.5 * (
            (means.square() * precisions - precisions.log()).sum(-1) + mixture.num_features * math.log(2 * math.pi)
        )
        return cls(center, torch.cat([means * precisions, -0.5 * precisions], dim=-1), constants)

    def powers(self, descriptors: Tensor) -> Tensor:
        """Return [x, x^2] about the centre.

        Args:
            descriptors: (..., D).

        Returns:
            (..., 2 D).
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            centered = descriptors - self.center
            return torch.cat([centered, centered.square()], dim=-1)
        powers = descriptors.new_empty(*descriptors.shape[:-1], 2 * descriptors.shape[-1])
        centered, squares = powers.chunk(2, dim=-1)
        torch.sub(descriptors, self.center, out=centered)
        torch.mul(centered, centered, out=squares)
        return powers

    def at(self, powers: Tensor) -> Tensor:
        """Return log w_k N_k(x).

        Args:
            powers: From `powers`, (..., 2 D).

        Returns:
            (..., K).
        """
        return torch.nn.functional.linear(powers, self.factors, self.constants)


def _log_joint(mixture: DiagonalMixture, descriptors: Tensor) -> Tensor:
    """Return log w_k N_k(x), (..., D) -> (..., K).

    Raises:
        ValueError: If the number of features differs.
    """
    if descriptors.ndim == 0 or descriptors.shape[-1] != mixture.num_features:
        raise ValueError(
            f"descriptors must have {mixture.num_features} features, as the mixture; got {tuple(descriptors.shape)}"
        )
    log_joint = LogJoint.of(mixture)
    return log_joint.at(log_joint.powers(descriptors))


def log_prob(mixture: DiagonalMixture, descriptors: Tensor) -> Tensor:
    """Return log p(x).

    Args:
        mixture: K components over D features.
        descriptors: (..., D), in the dtype of the mixture.

    Returns:
        (...).
    """
    return _log_joint(mixture, descriptors).logsumexp(dim=-1)


def log_responsibilities(mixture: DiagonalMixture, descriptors: Tensor) -> Tensor:
    """Return log gamma_k(x) = log w_k N_k(x) - log p(x), the log-posterior of every component.

    Args:
        mixture: K components over D features.
        descriptors: (..., D), in the dtype of the mixture.

    Returns:
        (..., K); the exponentials sum to one.
    """
    return _log_joint(mixture, descriptors).log_softmax(dim=-1)


def responsibilities(mixture: DiagonalMixture, descriptors: Tensor) -> Tensor:
    """Return gamma_k(x) = w_k N_k(x) / p(x), the posterior of every component.

    Args:
        mixture: K components over D features.
        descriptors: (..., D), in the dtype of the mixture.

    Returns:
        (..., K); rows sum to one.
    """
    return posteriors(_log_joint(mixture, descriptors))


def posteriors(log_joint: Tensor, largest: Tensor | None = None) -> Tensor:
    """Return posteriors from log w_k N_k(x).

    Args:
        log_joint: (..., K); written to where gradients are off.
        largest: The largest of each row, (...), where it is known already.

    Returns:
        (..., K); rows sum to one.
    """
    # exp(-80) = 2e-35 stands for everything smaller: arithmetic with denormal numbers is many times slower.
    floor = (log_joint.detach().amax(dim=-1) if largest is None else largest).unsqueeze(-1) - 80.0
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.maximum(log_joint, floor).softmax(dim=-1)
    # In place, and the rest by softmax, which keeps a row in the cache: memory traffic is what costs.
    return torch.maximum(log_joint, floor, out=log_joint).softmax(dim=-1)
