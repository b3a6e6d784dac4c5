"""Evidence maps: where in an image the score of a class comes from, pixel by pixel, adding up to the score.

A score is w·v + b, v the concatenated encodings. Entry j of an encoding is v_j = N_j(u), N the signed square root and
the L2 norm, and u_j = 1/N sum_p phi_j(x_p) is a mean over the descriptors x_p: additive. The term w_j v_j is
therefore shared out between the descriptors in proportion to their part in u_j,

    e_p = 1/N sum_j w_j v_j phi_j(x_p) / u_j,        sum_p e_p = w·v       exactly.

It is the normalisation's secant through zero that is used, not its derivative: that of a normalised vector is blind
to the vector's length, and its attributions would add up to nothing.

Where u_j is close to zero, large parts of both signs cancel, and shares of them are noise blown up. Fisher vectors
say how close is close: if descriptors were drawn from the mixture, phi_j would have a variance of at most 1 (F^(-1/2)
is there for that), and u_j a standard error of at most 1/sqrt(N). With eps that bound times a factor, only the part
u_j^2 / (u_j^2 + eps^2) of a term is shared out in proportion, the rest between the descriptors of the entry's component
by their posteriors: the sum is still exact.

A descriptor's evidence is spread over the pixels of its patch, that of a higher layer's descriptor over the windows
that it stacks and the descriptors in them. All of these are averages, whose adjoint keeps sums; padding and
resampling too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fisherlayers.fisher_vectors.descriptors import NUM_BINS, DescriptorGrid, grid_axis
from fisherlayers.fisher_vectors.encoding import THRESHOLD, fisher_vectors
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, LogJoint, responsibilities
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.stage import FisherStage, join
from fisherlayers.fisher_vectors.streams import Streams

__all__ = ["descriptor_evidence", "evidence_maps"]


def descriptor_evidence(
    mixture: DiagonalMixture, descriptors: Tensor, terms: Tensor, *, stabilizer: float = 1.0
) -> Tensor:
    """Share the terms of a score out between the descriptors that they come from.

    Args:
        mixture: K components over D features.
        descriptors: (B, N, D), N at least 1.
        terms: w_j v_j for each entry of an image's Fisher vector, (B, 2 K D).
        stabilizer: Standard errors 1 / sqrt(N) of a pooled entry below which a term is shared out by posteriors rather
            than by contributions; at least 0. With 0 all is shared out by contributions.

    Returns:
        (B, N), whose sum over N is that of the terms.
    """
    count = descriptors.shape[1]
    pooled = fisher_vectors(mixture, descriptors)
    error = stabilizer**2 / count
    scale = (pooled.square() + error).clamp_min(torch.finfo(pooled.dtype).tiny)
    slopes = terms * pooled / scale
    rest = (terms - slopes * pooled).reshape(len(terms), 2, *mixture.means.shape).sum(dim=(1, 3))

    posteriors = torch.nn.functional.threshold(responsibilities(mixture, descriptors), THRESHOLD, 0.0)
    mass = posteriors.sum(dim=1)
    by_posterior = torch.where(mass > 0, rest / mass.clamp_min(THRESHOLD), 0.0)
    # sum_j slope_j phi_j(x) / gamma_k is a quadratic function of x for each component; about the centre, as the pooled
    # entries are, since far from it its terms cancel.
    center = LogJoint.of(mixture).center
    descriptors, means = descriptors - center, mixture.means - center
    to_means, to_deviations = slopes.reshape(len(terms), 2, *mixture.means.shape).unbind(dim=1)
    roots = mixture.weights.rsqrt().unsqueeze(-1)
    linear = to_means * roots / mixture.variances.sqrt()
    square = to_deviations * roots / sqrt(2) / mixture.variances
    constant = square * (means.square() - mixture.variances) - linear * means
    linear = linear - 2 * square * means
    parts = descriptors.square() @ square.mT + descriptors @ linear.mT + constant.sum(dim=-1).unsqueeze(1)
    return (posteriors * (parts / count + by_posterior.unsqueeze(1))).sum(dim=-1)


def evidence_maps(network: FisherNetwork, rows: Tensor, images: Tensor, *, stabilizer: float = 1.0) -> Tensor:
    """Map where linear functions of the encoding come from.

    Args:
        network: Fitted with ``global_pooling="mean"``, in the dtype of the images; float64 for sums that are exact.
        rows: w of each image, (B, features).
        images: (B, C, H, W), prepared as the settings say.
        stabilizer: As for `descriptor_evidence`.

    Returns:
        (B, H, W), whose sum over pixels is the inner product of w and the encoding.
    """
    network.check_mean_pooling("an evidence map")
    settings, streams = network.settings, Streams(network, images)
    terms = rows * network.encode_streams(streams)
    sizes = [network.stage(stream).num_outputs for stream in network.streams]
    parts = list(torch.split(terms, sizes, dim=1))
    levels = [streams.descriptors(level) for level in range(len(network.stages))]
    evidence: list[Tensor] = []
    for level in reversed(range(len(levels))):
        own = _stage_evidence(network.stages[level], levels[level], parts[level], stabilizer)
        if evidence:
            below = _to_layer_below(evidence, levels[level], settings)
            own = [here + above for here, above in zip(own, below, strict=True)]
        evidence = own
    maps = _facing(evidence, levels[0], images, settings, _to_pixels)
    if network.patches is not None:
        grids = streams.descriptors(network.streams[-1])
        found = _stage_evidence(network.patches, grids, parts[-1], stabilizer)
        border = settings.padding
        inner = images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
        maps = maps + pad(_facing(found, grids, inner, settings, _patches_to_pixels), (border,) * 4)
    if network.color is not None:
        grids = streams.descriptors("colour")
        found = _stage_evidence(network.color, grids, parts[len(levels)], stabilizer)
        maps = maps + _facing(found, grids, images, settings, _to_pixels)
    return maps


def _facing(
    evidence: Sequence[Tensor],
    grids: Sequence[DescriptorGrid],
    images: Tensor,
    settings: NetworkSettings,
    to_pixels: Callable[[Sequence[Tensor], Sequence[DescriptorGrid], Tensor, NetworkSettings], Tensor],
) -> Tensor:
    # The later half of the grids lies on mirror images, whose maps are turned back.
    if not settings.mirror:
        return to_pixels(evidence, grids, images, settings)
    half = len(grids) // 2
    own, mirrored = (
        to_pixels(evidence[part], grids[part], images, settings) for part in (slice(half), slice(half, None))
    )
    return own + mirrored.flip(-1)


def _stage_evidence(
    stage: FisherStage, grids: Sequence[DescriptorGrid], terms: Tensor, stabilizer: float
) -> list[Tensor]:
    # (B, rows, columns) for each grid.
    descriptors = join(stage.prepare(grids))
    if descriptors.shape[1] == 0:
        return [grid.descriptors.new_zeros(grid.descriptors.shape[:3]) for grid in grids]
    flat = descriptor_evidence(stage.mixture, descriptors, terms, stabilizer=stabilizer)
    shapes = [grid.descriptors.shape[:3] for grid in grids]
    parts = torch.split(flat, [shape[1] * shape[2] for shape in shapes], dim=1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _to_layer_below(
    evidence: Sequence[Tensor], below: Sequence[DescriptorGrid], settings: NetworkSettings
) -> list[Tensor]:
    # Evidence of stacked windows goes to the positions in them: the adjoint of their mean.
    places = [torch.zeros_like(grid.descriptors[..., :1]).requires_grad_() for grid in below]
    with torch.enable_grad():
        pooling = settings.pooling
        stacks = [pooling.stacks(place, size) for place in places for size in pooling.windows]
        means = [stacked.mean(dim=-1) for stacked in stacks if stacked.shape[1] and stacked.shape[2]]
    if not means:
        return [torch.zeros_like(place[..., 0]) for place in places]
    spread = torch.autograd.grad(means, places, grad_outputs=list(evidence), allow_unused=True)
    return [
        torch.zeros_like(place[..., 0]) if part is None else part[..., 0]
        for place, part in zip(places, spread, strict=True)
    ]


def _to_pixels(
    evidence: Sequence[Tensor], grids: Sequence[DescriptorGrid], images: Tensor, settings: NetworkSettings
) -> Tensor:
    # Evidence of descriptors goes to the pixels of their patches, as much as the bins take of each: (B, H, W).
    maps = images.new_zeros(len(images), *images.shape[-2:])
    for part, grid in zip(evidence, grids, strict=True):
        bin_size = int(grid.scale)
        reach = np.arange(1 - bin_size, NUM_BINS * bin_size)
        shares = np.minimum(1.0, np.minimum(reach + bin_size, NUM_BINS * bin_size - reach) / bin_size)
        maps = maps + _spread(part, maps, reach, shares, (NUM_BINS - 1) * bin_size, settings.step)
    return maps


def _patches_to_pixels(
    evidence: Sequence[Tensor], grids: Sequence[DescriptorGrid], images: Tensor, settings: NetworkSettings
) -> Tensor:
    (part,) = evidence
    maps = images.new_zeros(len(images), *images.shape[-2:])
    reach = np.arange(settings.patch_side)
    return _spread(part, maps, reach, np.ones(len(reach)), settings.patch_side - 1, settings.patch_step)


def _spread(
    evidence: Tensor, maps: Tensor, reach: NDArray[np.int64], shares: NDArray[np.float64], span: int, step: int
) -> Tensor:
    if not (evidence.shape[1] and evidence.shape[2]):
        return torch.zeros_like(maps)
    y, x = (_footprints(length, reach, shares, span, step).to(maps) for length in maps.shape[1:])
    return y.mT @ evidence @ x


def _footprints(length: int, reach: NDArray[np.int64], shares: NDArray[np.float64], span: int, step: int) -> Tensor:
    # How much of each pixel a patch takes, (patches, pixels), rows of sum 1; beyond the image it is the border's.
    first, count = grid_axis(length, span, step)
    pixels = np.clip(first + step * np.arange(count)[:, None] + reach, 0, length - 1)
    matrix = np.zeros((count, length))
    np.add.at(matrix, (np.arange(count)[:, None], pixels), shares / shares.sum())
    return torch.from_numpy(matrix)
