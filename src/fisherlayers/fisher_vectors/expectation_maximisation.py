"""The fit of a diagonal mixture: k-means to start from, then expectation maximisation (EM).

The moments of every component are one matrix product of posteriors and [x, x^2]; they are sums over descriptors, so
that chunks, threads and processes may each make a part of them.

Many descriptors are gone through in blocks, and the mixture follows after every block: the sums of all blocks, of which
one is new (incremental EM: Neal and Hinton, "A view of the EM algorithm that justifies incremental, sparse, and other
variants", 1998). A pass costs what a step of EM costs, and is worth nearly two.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fisherlayers.fisher_vectors.mixture import DiagonalMixture, LogJoint, posteriors
from fisherlayers.fisher_vectors.sums import Total, in_turn, parts_of

__all__ = ["em_step", "fit_mixture"]

# Rows a chunk: a chunk of posteriors (rows x K) should stay in the cache, and a block has some for every thread.
_CHUNK = 1024
# Blocks of an incremental pass: the fewest rows, and how many at most: more gain little, and each keeps its sums.
_BLOCK = 4096
_MOST_BLOCKS = 12
# The share of the descriptors whose sums are known before the first pass moves the mixture.
_FIRST_SHARE = 0.25
# A component with less than this share of its fair mass N / K keeps its mean and variances in an M-step.
_STARVED = 1e-3
_SMALL_SAMPLE = 10_000
# Rows a step of k-means, the fewest steps, and rows in all for every component: more take more time, for mixtures that
# are as likely after EM.
_MINI_BATCH = 1024
_LEAST_STEPS = 50
_ROWS_A_COMPONENT = 400


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
    still never lowers the likelihood, as long as no weight has to be raised to ``min_weight``. A starved component
    (less than a thousandth of N / K descriptors) keeps its mean and variances, which is a partial M-step and cannot
    lower it either.

    Args:
        mixture: Where to start.
        descriptors: (N, D), finite, in the dtype of the mixture.
        variance_floor: Smallest variance, positive; (D,) or one number.
        min_weight: Smallest weight before the weights are scaled to sum to one; positive.
        chunk: Rows a matrix product, about; sums over chunks are kept in float64.
        total: Sums a function over chunks: in threads or over processes, say; one after the other if None.

    Returns:
        The next mixture, and the mean log-likelihood of the descriptors under the one *given*.
    """
    with torch.no_grad():
        joint = LogJoint.of(mixture)
        sums = (total or in_turn)(_statistics(joint), parts_of(descriptors, chunk))
        following = _maximize(sums[:-1], mixture, joint.center, _Bounds(torch.as_tensor(variance_floor), min_weight))
    log_likelihood = float(sums[-1, 0])
    return following, log_likelihood / len(descriptors)


def _statistics(joint: LogJoint) -> Callable[[Tensor], Tensor]:
    # Rows -> moments of every component about the centre, (K, 1 + 2 D), and in a last row the log-likelihood.
    def statistics(rows: Tensor) -> Tensor:
        powers = joint.powers(rows)
        log_joint = joint.at(powers)
        largest = log_joint.amax(dim=-1)
        shares = posteriors(log_joint, largest)
        moments = torch.cat([shares.sum(dim=0).unsqueeze(-1), shares.mT @ powers], dim=-1).double()
        # log p = log w_k N_k - log gamma_k, for the k of the largest posterior: cheaper than a second log-sum-exp
        log_density = largest - shares.amax(dim=-1).log()
        return torch.nn.functional.pad(moments, (0, 0, 0, 1), value=float(log_density.double().sum()))

    return statistics


class _Bounds(NamedTuple):
    variance_floor: Tensor
    min_weight: float


def _maximize(moments: Tensor, previous: DiagonalMixture, center: Tensor, bounds: _Bounds) -> DiagonalMixture:
    mass, first, second = torch.split(moments, [1, previous.num_features, previous.num_features], dim=-1)
    total = mass.sum()
    weights = (mass[:, 0] / total).clamp_min(bounds.min_weight)
    keep = mass < _STARVED * total / len(weights)
    mass = torch.where(keep, 1.0, mass)
    means = first / mass
    variances = torch.maximum(second / mass - means.square(), bounds.variance_floor.to(means))
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
    blocks: int | None = None,
    chunk: int = _CHUNK,
    total: Total | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> DiagonalMixture:
    """Fit a diagonal mixture by expectation maximisation from a k-means start.

    Args:
        descriptors: (N, D), N at least K, finite. Half precision is raised to float32.
        num_components: K.
        seed: Of the k-means start; the fit is a function of data and seed.
        max_iterations: Of EM, passes over the descriptors, at least 0; 0 gives the k-means start.
        tolerance: EM stops when the mean log-likelihood gains less than this share of its magnitude.
        variance_floor: Smallest variance, as a share of each feature's variance over all descriptors; in (0, 1]. A
            constant feature takes a thousandth of the mean variance for its own.
        min_weight: Smallest weight of a component, in (0, 1 / K]; keeps F^(-1/2) finite.
        start: Mixture to start EM from instead of k-means.
        blocks: Parts of the descriptors (every b-th row), after each of which the mixture follows; 1 is EM as in
            `em_step`. If None one for every 4,096 descriptors, at most 12.
        chunk: Rows a matrix product, about.
        total: As for `em_step`.
        progress: Called after each iteration with (iteration, ``max_iterations``, mean log-likelihood of descriptors
            under the mixtures that they met in it).

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
    if blocks is not None and not 1 <= blocks <= len(descriptors):
        raise ValueError(f"blocks must lie between 1 and the {len(descriptors)} descriptors, got {blocks}")
    if start is not None and start.means.shape != (num_components, descriptors.shape[1]):
        expected = (num_components, descriptors.shape[1])
        raise ValueError(f"start must have means of shape {expected}, got {tuple(start.means.shape)}")
    descriptors = descriptors.detach()
    if descriptors.dtype in {torch.float16, torch.bfloat16}:
        descriptors = descriptors.float()
    center, variances = _mean_and_variances(descriptors)
    if not bool(torch.isfinite(variances).all()):
        infinite = ~torch.isfinite(descriptors).all(dim=-1)
        if bool(infinite.any()):
            raise ValueError(f"descriptors must be finite, found NaN or infinity in {int(infinite.sum())} rows")
    if bool((descriptors == descriptors[0]).all()):
        raise ValueError("descriptors must differ from each other, all rows are equal")
    bounds = _Bounds(variance_floor * variances.clamp_min(1e-3 * float(variances.mean())), min_weight)

    if start is not None:
        mixture = start.to(descriptors)
    else:
        # About the mean: k-means measures distances in the dtype of the rows.
        offsets = (descriptors - center).cpu().numpy()
        centers = torch.from_numpy(_k_means(offsets, num_components, seed)).to(descriptors) + center
        mixture = _clusters(descriptors, centers, center, variances, bounds, total or in_turn)
    if blocks is None:
        blocks = min(max(len(descriptors) // _BLOCK, 1), _MOST_BLOCKS)
    previous = -math.inf
    passes = _Passes(descriptors, center, blocks, chunk, bounds, total or in_turn)
    for iteration in range(1, max_iterations + 1):
        mixture, log_likelihood = passes(mixture)
        if progress is not None:
            progress(iteration, max_iterations, log_likelihood)
        if log_likelihood - previous < tolerance * abs(log_likelihood):
            break
        previous = log_likelihood
    return mixture


class _Passes:
    """Passes of incremental EM: the sums of every block are kept, and those of one at a time are made anew."""

    def __init__(
        self, descriptors: Tensor, center: Tensor, blocks: int, chunk: int, bounds: _Bounds, total: Total
    ) -> None:
        # Every b-th row: neighbours come from one image.
        self._blocks = [parts_of(descriptors[first::blocks], chunk) for first in range(blocks)]
        self._rows, self._center, self._bounds, self._total = len(descriptors), center, bounds, total
        self._all = descriptors.new_zeros((), dtype=torch.float64)
        self._sums, self._known = [self._all] * blocks, 0

    def __call__(self, mixture: DiagonalMixture) -> tuple[DiagonalMixture, float]:
        with torch.no_grad():
            for place, parts in enumerate(self._blocks):
                found = self._total(_statistics(LogJoint.of(mixture, self._center)), parts)
                self._all = self._all + (found - self._sums[place])
                self._sums[place] = found
                self._known = max(self._known, place + 1)
                if self._known >= _FIRST_SHARE * len(self._blocks):
                    mixture = _maximize(self._all[:-1], mixture, self._center, self._bounds)
        return mixture, float(self._all[-1, 0]) / self._rows


def _shape(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _mean_and_variances(rows: Tensor) -> tuple[Tensor, Tensor]:
    # The mean in the dtype of the rows, and the variances in float64: a fifth of the time of `torch.var_mean`.
    center = rows.mean(dim=0)

    def powers(part: Tensor) -> Tensor:
        offsets = part - center
        return torch.stack([offsets.sum(dim=0), offsets.square_().sum(dim=0)]).double()

    first, second = in_turn(powers, parts_of(rows, _CHUNK)) / len(rows)
    return center, (second - first.square()).clamp_min(0)


def _clusters(
    descriptors: Tensor, centers: Tensor, center: Tensor, variances: Tensor, bounds: _Bounds, total: Total
) -> DiagonalMixture:
    # The mixture of clusters' moments. An empty cluster becomes a component at its centre with the variances of all.
    components = len(centers)
    previous = DiagonalMixture(
        centers.new_full((components,), 1 / components),
        centers,
        torch.maximum(variances, bounds.variance_floor).to(centers).expand(components, -1),
    )
    offsets = centers - center

    def statistics(rows: Tensor) -> Tensor:
        # Moments of the clusters, (K, 1 + 2 D).
        centered = rows - center
        nearest = torch.addmm(-0.5 * offsets.square().sum(dim=-1), centered, offsets.mT).argmax(dim=-1)
        moments = centered.new_zeros(components, 1 + 2 * len(center), dtype=torch.float64)
        rows = torch.cat([torch.ones_like(centered[:, :1]), centered, centered.square()], dim=-1)
        return moments.index_add_(0, nearest, rows.double())

    return _maximize(total(statistics, parts_of(descriptors, _BLOCK)), previous, center, bounds)


def _k_means(rows: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        # Fewer distinct descriptors than components: empty clusters are dealt with by the caller.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(rows) <= _SMALL_SAMPLE:
            return KMeans(num_clusters, n_init=1, max_iter=50, random_state=seed).fit(rows).cluster_centers_
        rng = np.random.default_rng(seed)
        # The first batch is what k-means++ chooses from. `fit` would draw each batch by a sum over all rows, and
        # assign all of them at the end.
        first = rng.permutation(len(rows))[: max(2 * _MINI_BATCH, 3 * num_clusters)]
        estimator = MiniBatchKMeans(
            num_clusters,
            n_init=1,
            init_size=len(first),
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed,
        ).partial_fit(rows[first])
        for _ in range(max(_LEAST_STEPS, _ROWS_A_COMPONENT * num_clusters // _MINI_BATCH)):
            estimator.partial_fit(rows[rng.integers(len(rows), size=_MINI_BATCH)])
    return estimator.cluster_centers_
