"""Fisher vectors: the scores of a mixture, normalised by the inverse square root of their information.

With posteriors gamma_k(x), the score of one descriptor is the exact gradient of log p(x),

    d log p / d mu_k    = gamma_k (x - mu_k) / sigma_k^2
    d log p / d sigma_k = gamma_k ((x - mu_k)^2 / sigma_k^2 - 1) / sigma_k,

its information is diagonal where components do not overlap, F_mu = w_k / sigma_k^2 and F_sigma = 2 w_k / sigma_k^2, and
the Fisher vector of an image is F^(-1/2) times the mean score of its descriptors: a Fisher layer. Signs and layout are
VLFeat's: [all means; all standard deviations], component by component, 2 K D in all (Perronnin, Sanchez and Mensink,
ECCV 2010; Sanchez et al., IJCV 2013, without the weights' part).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.mixture import DiagonalMixture, LogJoint, posteriors
from fisherlayers.information import DiagonalInformation
from fisherlayers.root import DiagonalRoot

__all__ = [
    "THRESHOLD",
    "Assignment",
    "append_positions",
    "check_assignment",
    "closed_form_information",
    "closed_form_root",
    "empirical_information",
    "entry_names",
    "fisher_vectors",
    "mixture_score",
]

Assignment = Literal["soft", "hard"]

THRESHOLD = 1e-4
"""Posteriors below it count as zero in `fisher_vectors`."""

# Rows a block of posteriors: rows x K floats should stay in the cache.
_BLOCK = 1024
# Entries of single-descriptor scores held at once.
_ENTRIES = 2**24


def append_positions(descriptors: Tensor, positions: Tensor, *, weight: float = 1.0) -> Tensor:
    """Append spatial coordinates as further features, so that the mixture models appearance and place together.

    Args:
        descriptors: (..., N, D).
        positions: (N, 2), or as many leading dimensions as the descriptors; (x, y), commonly in [-0.5, 0.5].
        weight: Factor of the coordinates.

    Returns:
        (..., N, D + 2).

    Raises:
        ValueError: If the rows do not correspond.
    """
    if positions.shape[-1:] != (2,) or positions.ndim < 2 or positions.shape[-2] != descriptors.shape[-2]:
        raise ValueError(
            f"positions must have one row of 2 for each of {descriptors.shape[-2]} descriptors, "
            f"got {tuple(positions.shape)}"
        )
    coordinates = (weight * positions).to(descriptors).expand(*descriptors.shape[:-1], 2)
    return torch.cat([descriptors, coordinates], dim=-1)


def mixture_score(
    mixture: DiagonalMixture,
    descriptors: Tensor,
    *,
    assignment: Assignment = "soft",
    threshold: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the mean over N descriptors of the gradient of log p(x) with respect to means and standard deviations.

    Args:
        mixture: K components over D features.
        descriptors: (..., N, D), N at least 1, in the dtype of the mixture.
        assignment: ``"soft"`` weighs with the posteriors; ``"hard"`` gives weight 1 to the most probable component.
        threshold: Posteriors below it count as zero, without renormalising the others; as for `check_assignment`. The
            exact gradient has 0.
        mask: (..., N), True for the descriptors that count; all if None. The others may hold anything, also NaN.

    Returns:
        (..., 2 K D), [means; standard deviations]; zero where no descriptor counts.

    Raises:
        ValueError: If shapes do not fit, or there is no descriptor.
    """
    if descriptors.ndim < 2 or descriptors.shape[-1] != mixture.num_features or descriptors.shape[-2] == 0:
        raise ValueError(
            f"descriptors must have shape (..., N, {mixture.num_features}) with N at least 1, "
            f"got {tuple(descriptors.shape)}"
        )
    check_assignment(assignment, threshold)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != descriptors.shape[:-1]):
        raise ValueError(
            f"mask must be of bools and shape {tuple(descriptors.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}"
        )
    images = descriptors.flatten(0, -3) if descriptors.ndim > 2 else descriptors.unsqueeze(0)
    counts = None if mask is None else mask.reshape(images.shape[:2])
    joint = LogJoint.of(mixture)
    scores = []
    for part in _blocks_of_images(images):
        counted = None if counts is None else counts[part]
        scores.append(_score(mixture, joint.center, _mean_moments(joint, images[part], counted, assignment, threshold)))
    joined = torch.cat(scores)
    return joined.reshape(*descriptors.shape[:-2], joined.shape[1])


def check_assignment(assignment: Assignment, threshold: float) -> None:
    """Refuse what no descriptor can be assigned by.

    Args:
        assignment: As for `mixture_score`.
        threshold: In [0, 1).

    Raises:
        ValueError: If ``assignment`` is unknown or ``threshold`` outside [0, 1).
    """
    if assignment not in get_args(Assignment):
        raise ValueError(f"assignment must be 'soft' or 'hard', got {assignment!r}")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")


def _blocks_of_images(images: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():
        # An exported graph serves any number of images.
        return [slice(None)]
    at_once = max(1, _BLOCK // images.shape[1])
    return [slice(start, start + at_once) for start in range(0, max(1, len(images)), at_once)]


def _blocks_of_rows(images: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    if torch.compiler.is_dynamo_compiling() or isinstance(images.shape[1], torch.SymInt):
        # A loop over blocks would bind the graph to one number of descriptors.
        return [(images, mask)]
    blocks = torch.split(images, _BLOCK, dim=1)
    counted = [None] * len(blocks) if mask is None else torch.split(mask, _BLOCK, dim=1)
    return list(zip(blocks, counted, strict=True))


def _score(mixture: DiagonalMixture, center: Tensor, moments: Tensor) -> Tensor:
    """Return the mean score from mean moments about the centre, (B, K, 1 + 2 D) -> (B, 2 K D)."""
    mass, first, second = torch.split(moments, [1, mixture.num_features, mixture.num_features], dim=-1)
    means = mixture.means - center
    precisions = mixture.variances.reciprocal()
    cubes = precisions * precisions.sqrt()
    # sum gamma (x - mu) / sigma^2 and sum gamma ((x - mu)^2 - sigma^2) / sigma^3, multiplied out
    to_means = torch.addcmul(first * precisions, mass, -means * precisions)
    to_deviations = torch.addcmul(second * cubes, first, -2 * means * cubes)
    to_deviations = torch.addcmul(to_deviations, mass, (means.square() - mixture.variances) * cubes)
    return torch.cat([to_means.flatten(1), to_deviations.flatten(1)], dim=1)


def _mean_moments(
    joint: LogJoint, images: Tensor, mask: Tensor | None, assignment: Assignment, threshold: float
) -> Tensor:
    """Return the means over N of [gamma, gamma x, gamma x^2] about the centre, (B, N, D) -> (B, K, 1 + 2 D)."""
    components, width = joint.factors.shape
    mass = images.new_zeros(images.shape[0], components)
    moments = images.new_zeros(images.shape[0], components, width)
    if mask is not None:
        images = torch.where(mask.unsqueeze(-1), images, 0.0)
    for rows, counted in _blocks_of_rows(images, mask):
        # The same [x, x^2] enters both products.
        powers = joint.powers(rows)
        shares = joint.at(powers)
        if assignment == "hard":
            winner = shares.argmax(dim=-1, keepdim=True)
            shares = torch.zeros_like(shares).scatter_(-1, winner, 1.0)
        else:
            shares = posteriors(shares)
            if threshold > 0:
                # In place where autograd does not need the posteriors: their memory traffic is what costs.
                shares = torch.nn.functional.threshold(shares, threshold, 0.0, inplace=not shares.requires_grad)
        if counted is not None:
            shares = shares * counted.unsqueeze(-1)
        mass = mass + shares.sum(dim=1)
        moments = torch.baddbmm(moments, shares.mT, powers)
    total = torch.cat([mass.unsqueeze(-1), moments], dim=-1)
    return total / (images.shape[1] if mask is None else mask.sum(dim=1).clamp_min(1)[:, None, None])


def entry_names(mixture: DiagonalMixture) -> list[str]:
    """Name the entries of a Fisher vector, such as ``mean_k3_d7`` and ``deviation_k0_d2``.

    Args:
        mixture: K components over D features.

    Returns:
        2 K D names.
    """
    return [
        f"{moment}_k{component}_d{dimension}"
        for moment in ("mean", "deviation")
        for component in range(mixture.num_components)
        for dimension in range(mixture.num_features)
    ]


def closed_form_information(mixture: DiagonalMixture) -> DiagonalInformation:
    """Return the information of the scores for components that do not overlap: w / sigma^2 and 2 w / sigma^2.

    Overlap only lowers the true information: gamma_k^2 <= gamma_k, so that E[phi^2] <= 1 for every entry of a
    descriptor's Fisher vector phi.

    Args:
        mixture: K components over D features.

    Returns:
        A diagonal of 2 K D entries, in the layout of ``mixture_score``.
    """
    means = (mixture.weights.unsqueeze(-1) / mixture.variances).flatten()
    return DiagonalInformation.from_value(torch.cat([means, 2 * means]).detach())


def closed_form_root(mixture: DiagonalMixture) -> DiagonalRoot:
    """Return F^(-1/2) of the closed form: sigma / sqrt(w) and sigma / sqrt(2 w).

    A Fisher vector is a function of the mixture through its root as well: gradients flow through it.

    Args:
        mixture: K components over D features.

    Returns:
        A root of 2 K D entries.
    """
    means = (mixture.weights.unsqueeze(-1) / mixture.variances).flatten()
    return DiagonalRoot(torch.cat([means, 2 * means]).rsqrt())


def empirical_information(
    mixture: DiagonalMixture, descriptors: Tensor, *, assignment: Assignment = "soft", threshold: float = 0.0
) -> DiagonalInformation:
    """Return the diagonal of E[s s^T] measured over descriptors, exact where components overlap.

    Costs N times 2 K D operations: some ten thousand descriptors are enough. For the information of whole images' mean
    scores, feed ``mixture_score`` of the images to a ``DiagonalInformation``.

    Args:
        mixture: K components over D features.
        descriptors: (N, D).
        assignment: As for ``mixture_score``.
        threshold: As for ``mixture_score``.

    Returns:
        A diagonal of 2 K D entries; ``fisherlayers.layer.root_of`` gives its root.
    """
    information = DiagonalInformation(2 * mixture.means.numel(), device=descriptors.device, dtype=descriptors.dtype)
    for rows in torch.split(descriptors, max(1, _ENTRIES // mixture.means.numel())):
        information.update(mixture_score(mixture, rows.unsqueeze(1), assignment=assignment, threshold=threshold))
    return information


def fisher_vectors(
    mixture: DiagonalMixture,
    descriptors: Tensor | Sequence[Tensor],
    *,
    assignment: Assignment = "soft",
    threshold: float = THRESHOLD,
    root: DiagonalRoot | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Encode images by the normalised mean score of their descriptors: F^(-1/2) s.

    Args:
        mixture: K components over D features.
        descriptors: (..., N, D), or a sequence of (N_i, D) with one entry an image.
        assignment: ``"soft"`` weighs with the posteriors; ``"hard"`` gives weight 1 to the most probable component.
        threshold: Posteriors below it count as zero, without renormalising the others; in [0, 1).
        root: F^(-1/2); the closed form if None.
        mask: (..., N), True for the descriptors that count, where ``descriptors`` is a tensor; all if None.

    Returns:
        (..., 2 K D), or (B, 2 K D) for B images: [means; standard deviations], not yet normalised.

    Raises:
        ValueError: If a sequence is empty, or has a mask.
    """
    if root is None:
        root = closed_form_root(mixture)
    if isinstance(descriptors, Tensor):
        scores = mixture_score(mixture, descriptors, assignment=assignment, threshold=threshold, mask=mask)
    elif mask is not None:
        raise ValueError("mask is for one tensor of descriptors: a sequence needs none")
    elif descriptors:
        ragged = [mixture_score(mixture, rows, assignment=assignment, threshold=threshold) for rows in descriptors]
        scores = torch.stack(ragged)
    else:
        raise ValueError("descriptors must hold at least one image, got an empty sequence")
    return root.multiply(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)
