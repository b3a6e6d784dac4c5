"""Diagonal Gaussian mixtures: p(x) = sum_k w_k N(x; mu_k, diag(sigma_k^2)), their posteriors, and their fit by EM.

All log-densities of a batch are one matrix product, because the exponent is linear in [x, x^2]:

    log w_k N_k(x) = sum_d x_d mu_kd / sigma_kd^2 - 1/2 sum_d x_d^2 / sigma_kd^2 + constant_k.

x is first centred by the mean of the mixture, without which float32 loses the differences between squares. The same
[x, x^2], times the posteriors, are the moments that EM and Fisher vectors are made of: a second matrix product.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

__all__ = [
    "DiagonalMixture",
    "LogJoint",
    "em_step",
    "fit_mixture",
    "log_prob",
    "log_responsibilities",
    "posteriors",
    "responsibilities",
]

Total = Callable[[Callable[[Tensor], Tensor], Sequence[Tensor]], Tensor]

# Rows a chunk: a chunk of posteriors (rows x K) should stay in the cache; the gain is a factor of 1.3.
_CHUNK = 4096
# A component with less than this share of its fair mass N / K keeps its mean and variances in an M-step.
_STARVED = 1e-3
_SMALL_SAMPLE = 10_000
# Rows a step of k-means: larger ones take twice the time, for mixtures that are as likely after EM.
_MINI_BATCH = 1024


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
        total = float(self.weights.detach().double().sum())
        if abs(total - 1.0) > 1e-3:
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
        center: Mean of the mixture, (D,).
        factors: (K, 2 D).
        constants: (K,).
    """

    center: Tensor
    factors: Tensor
    constants: Tensor

    @classmethod
    def of(cls, mixture: DiagonalMixture) -> LogJoint:
        """Multiply out the exponents of a mixture's components.

        Args:
            mixture: K components over D features.

        Returns:
            The function.
        """
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
        centered = descriptors - self.center
        return torch.cat([centered, centered.square()], dim=-1)

    def __call__(self, powers: Tensor) -> Tensor:
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
    return log_joint(log_joint.powers(descriptors))


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


def posteriors(log_joint: Tensor) -> Tensor:
    """Return posteriors from log w_k N_k(x).

    Args:
        log_joint: (..., K); its memory is used for the result where gradients are off.

    Returns:
        (..., K); rows sum to one.
    """
    # exp(-80) = 2e-35 stands for everything smaller: arithmetic with denormal numbers is many times slower.
    largest = log_joint.detach().amax(dim=-1, keepdim=True)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (log_joint - largest).clamp_min(-80.0).softmax(dim=-1)
    # In place: the traffic between cache and memory is what costs.
    found = log_joint.sub_(largest).clamp_min_(-80.0).exp_()
    return found.mul_(found.sum(dim=-1, keepdim=True).reciprocal_())


def em_step(
    mixture: DiagonalMixture,
    descriptors: Tensor,
    *,
    variance_floor: Tensor | float = 1e-6,
    min_weight: float = 1e-6,
    chunk: int = _CHUNK,
    total: Total | None = None,
) -> tuple[DiagonalMixture, float]:
    """Take one step of expectation maximisation.

    The variance floor is part of the model: the floored M-step is the exact maximum under the constraint, so that EM
    still never lowers the likelihood. A starved component (less than a thousandth of N / K descriptors) keeps its mean
    and variances, which is a partial M-step and cannot lower it either.

    Args:
        mixture: Where to start.
        descriptors: (N, D), finite, in the dtype of the mixture.
        variance_floor: Smallest variance, positive; (D,) or one number.
        min_weight: Smallest weight before the weights are scaled to sum to one; positive.
        chunk: Rows a matrix product; sums over chunks are kept in float64.
        total: Sums a function over chunks: in threads or over processes, say; one after the other if None.

    Returns:
        The next mixture, and the mean log-likelihood of the descriptors under the one *given*.
    """
    joint = LogJoint.of(mixture)

    def statistics(rows: Tensor) -> Tensor:
        # Moments of every component, (K, 1 + 2 D), and in a last row the log-likelihood.
        powers = joint.powers(rows)
        log_joint = joint(powers)
        largest = log_joint.amax(dim=-1)
        shares = posteriors(log_joint)
        moments = torch.cat([shares.sum(dim=0).unsqueeze(-1), shares.mT @ powers], dim=-1).double()
        # log p = log w_k N_k - log gamma_k, for the k of the largest posterior: cheaper than a second log-sum-exp
        log_density = largest - shares.amax(dim=-1).log()
        return torch.nn.functional.pad(moments, (0, 0, 0, 1), value=float(log_density.double().sum()))

    with torch.no_grad():
        sums = (total or _total)(statistics, torch.split(descriptors, chunk))
        following = _maximize(sums[:-1], mixture, joint.center, torch.as_tensor(variance_floor), min_weight)
    log_likelihood = float(sums[-1, 0])
    return following, log_likelihood / len(descriptors)


def _total(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    sums = function(parts[0])
    for part in parts[1:]:
        sums += function(part)
    return sums


def _maximize(
    moments: Tensor, previous: DiagonalMixture, center: Tensor, variance_floor: Tensor, min_weight: float
) -> DiagonalMixture:
    mass, first, second = torch.split(moments, [1, previous.num_features, previous.num_features], dim=-1)
    total = mass.sum()
    weights = (mass[:, 0] / total).clamp_min(min_weight)
    keep = mass < _STARVED * total / len(weights)
    mass = torch.where(keep, 1.0, mass)
    means = first / mass
    variances = torch.maximum(second / mass - means.square(), variance_floor.to(means))
    return DiagonalMixture(
        (weights / weights.sum()).to(previous.weights),
        torch.where(keep, previous.means, (means + center).to(previous.means)),
        torch.where(keep, previous.variances, variances.to(previous.variances)),
    )


def fit_mixture(
    descriptors: Tensor,
    num_components: int,
    *,
    seed: int = 0,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    variance_floor: float = 0.01,
    min_weight: float = 1e-6,
    start: DiagonalMixture | None = None,
    chunk: int = _CHUNK,
    total: Total | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> DiagonalMixture:
    """Fit a diagonal mixture by expectation maximisation from a k-means start.

    Args:
        descriptors: (N, D), N at least K, finite. Half precision is raised to float32.
        num_components: K.
        seed: Of the k-means start; the fit is a function of data and seed.
        max_iterations: Of EM, at least 0; 0 gives the k-means start.
        tolerance: EM stops when the mean log-likelihood gains less than this share of its magnitude.
        variance_floor: Smallest variance, as a share of each feature's variance over all descriptors; in (0, 1]. A
            constant feature takes a thousandth of the mean variance for its own.
        min_weight: Smallest weight of a component, in (0, 1 / K]; keeps F^(-1/2) finite.
        start: Mixture to start EM from instead of k-means.
        chunk: Rows a matrix product.
        total: As for `em_step`.
        progress: Called after each iteration with (iteration, ``max_iterations``, mean log-likelihood before it).

    Returns:
        The mixture, in the dtype and on the device of the descriptors.

    Raises:
        ValueError: If an argument lies outside its range, there are fewer descriptors than components, all are equal,
            or one is not finite.
    """
    if not isinstance(descriptors, Tensor) or not descriptors.is_floating_point() or descriptors.ndim != 2:
        raise ValueError(f"descriptors must be a floating-point tensor of shape (N, D), got {_shape(descriptors)}")
    if not 1 <= num_components <= len(descriptors):
        raise ValueError(
            f"num_components must lie between 1 and the {len(descriptors)} descriptors, got {num_components}: "
            "give more descriptors or ask for fewer components"
        )
    if not 0 < variance_floor <= 1:
        raise ValueError(f"variance_floor must lie in (0, 1], got {variance_floor}")
    if not 0 < min_weight <= 1 / num_components:
        raise ValueError(f"min_weight must lie in (0, 1 / num_components], got {min_weight}")
    if max_iterations < 0:
        raise ValueError(f"max_iterations must be at least 0, got {max_iterations}")
    if start is not None and start.means.shape != (num_components, descriptors.shape[1]):
        expected = (num_components, descriptors.shape[1])
        raise ValueError(f"start must have means of shape {expected}, got {tuple(start.means.shape)}")
    if descriptors.dtype in {torch.float16, torch.bfloat16}:
        descriptors = descriptors.float()
    finite = torch.isfinite(descriptors).all(dim=-1)
    if not bool(finite.all()):
        raise ValueError(f"descriptors must be finite, found NaN or infinity in {int((~finite).sum())} rows")
    variances = descriptors.var(dim=0, correction=0).double()
    if float(variances.max()) <= 0:
        raise ValueError("descriptors must differ from each other, all rows are equal")
    floor = variance_floor * variances.clamp_min(1e-3 * float(variances.mean()))

    if start is not None:
        mixture = start.to(descriptors)
    else:
        mixture = _k_means_start(descriptors, num_components, seed, floor, min_weight, total)
    previous = -math.inf
    for iteration in range(1, max_iterations + 1):
        mixture, log_likelihood = em_step(
            mixture, descriptors, variance_floor=floor, min_weight=min_weight, chunk=chunk, total=total
        )
        if progress is not None:
            progress(iteration, max_iterations, log_likelihood)
        if log_likelihood - previous < tolerance * abs(log_likelihood):
            break
        previous = log_likelihood
    return mixture


def _shape(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _k_means_start(
    descriptors: Tensor, num_components: int, seed: int, variance_floor: Tensor, min_weight: float, total: Total | None
) -> DiagonalMixture:
    # An empty cluster becomes a component at the cluster's centre with the variances of all the data.
    estimator: KMeans | MiniBatchKMeans
    if len(descriptors) <= _SMALL_SAMPLE:
        estimator = KMeans(num_components, n_init=1, max_iter=50, random_state=seed)
    else:
        estimator = MiniBatchKMeans(
            num_components,
            n_init=1,
            batch_size=_MINI_BATCH,
            init_size=max(2 * _MINI_BATCH, 3 * num_components),
            reassignment_ratio=0.0,
            random_state=seed,
        )
    with warnings.catch_warnings():
        # Fewer distinct descriptors than components: the empty clusters are dealt with below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(descriptors.cpu().numpy())
    centers = torch.from_numpy(estimator.cluster_centers_).to(descriptors)
    variances, center = torch.var_mean(descriptors, dim=0, correction=0)
    previous = DiagonalMixture(
        torch.full_like(center[:1], 1 / num_components).expand(num_components),
        centers,
        torch.maximum(variances, variance_floor.to(variances)).expand(num_components, -1),
    )
    offsets = centers - center

    def statistics(rows: Tensor) -> Tensor:
        # Moments of the clusters, (K, 1 + 2 D).
        centered = rows - center
        nearest = torch.addmm(-0.5 * offsets.square().sum(dim=-1), centered, offsets.mT).argmax(dim=-1)
        moments = centered.new_zeros(num_components, 1 + 2 * len(center), dtype=torch.float64)
        rows = torch.cat([torch.ones_like(centered[:, :1]), centered, centered.square()], dim=-1)
        return moments.index_add_(0, nearest, rows.double())

    moments = (total or _total)(statistics, torch.split(descriptors, _CHUNK))
    return _maximize(moments, previous, center, variance_floor, min_weight)
