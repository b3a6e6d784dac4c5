"""The semi-local Fisher layer (Simonyan, Vedaldi and Zisserman, NIPS 2013).

Descriptors on a grid are encoded over small overlapping windows, projected to h dimensions, stacked with their
neighbours and normalised: a new grid of descriptors, one level above the old.

With hard assignment a window's Fisher vector is the mean of the vectors phi(x_p) of its descriptors, so that

    W FV(window) = 1/|window| sum_p c(x_p),        c(x) = W phi(x)
                 = W_u (x - mu_k) / (sigma_k sqrt(pi_k)) + W_v (((x - mu_k) / sigma_k)^2 - 1) / sqrt(2 pi_k),

k the most probable component of x. Each descriptor is projected once, at a cost of 2 D h, and a window is a box
filter. Nothing may normalise the window's Fisher vector before W: it would not commute with the mean.

Soft assignment, and windows that are normalised before W, are there for comparison: they take the whole Fisher vector
of every descriptor, 2 K D numbers instead of 2 D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.encoding import Assignment, fisher_vectors
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, log_responsibilities
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power

__all__ = ["SemiLocalPooling", "box_mean", "project_descriptors", "stack_neighbours"]

_FEATURES_AT_ONCE = 8


def project_descriptors(mixture: DiagonalMixture, descriptors: Tensor, projection: Tensor) -> Tensor:
    """Project the hard-assignment Fisher vector of every single descriptor: c(x) = W phi(x).

    Args:
        mixture: K components over D dimensions.
        descriptors: (..., D).
        projection: W, (h, 2 K D), its columns in the layout of `fisher_vectors`.

    Returns:
        (..., h).

    Raises:
        ValueError: If the sizes of mixture, descriptors and projection do not fit.
    """
    components, features = mixture.means.shape
    if descriptors.shape[-1] != features or projection.shape[-1] != 2 * components * features:
        raise ValueError(
            f"descriptors must have {features} features and projection 2 * {components} * {features} columns, as the "
            f"mixture; got descriptors {tuple(descriptors.shape)} and projection {tuple(projection.shape)}"
        )
    outputs = projection.shape[0]
    # Rows [u; v] of one component side by side: (K, 2, D, h), scaled by 1/sqrt(pi) and 1/sqrt(2 pi).
    blocks = projection.reshape(outputs, 2, components, features).permute(2, 1, 3, 0)
    scale = torch.stack([mixture.weights, 2 * mixture.weights], dim=1).rsqrt()
    blocks = blocks * scale[:, :, None, None]
    constants = -blocks[:, 1].sum(dim=1)
    deviations = mixture.variances.sqrt()

    rows = descriptors.reshape(-1, features)
    winner = log_responsibilities(mixture, rows).argmax(dim=-1)
    if torch.compiler.is_compiling():
        result = _project_by_gather(blocks, constants, (rows - mixture.means[winner]) / deviations[winner], winner)
        return result.reshape(*descriptors.shape[:-1], outputs)
    order = winner.argsort(stable=True)
    owner = winner[order]
    standard = (rows[order] - mixture.means[owner]) / deviations[owner]
    powers, products = torch.cat([standard, standard.square()], dim=1), blocks.flatten(1, 2)
    ends = torch.bincount(winner, minlength=components).cumsum(0).tolist()
    projected = [rows.new_empty(0, outputs)]
    for k, (start, end) in enumerate(pairwise([0, *ends])):
        if end > start:
            projected.append(torch.addmm(constants[k], powers[start:end], products[k]))
    result = torch.cat(projected)[order.argsort()]
    return result.reshape(*descriptors.shape[:-1], outputs)


def _project_by_gather(blocks: Tensor, constants: Tensor, standard: Tensor, winner: Tensor) -> Tensor:
    # A graph of fixed shapes cannot sort by component: every row takes its own W, some features at a time.
    result = constants[winner]
    for start in range(0, standard.shape[1], _FEATURES_AT_ONCE):
        part = standard[:, start : start + _FEATURES_AT_ONCE]
        own = blocks[:, :, start : start + _FEATURES_AT_ONCE].flatten(1, 2)[winner]  # (N, 2 * features, h)
        result = result + (torch.cat([part, part.square()], dim=1).unsqueeze(-1) * own).sum(dim=1)
    return result


def box_mean(values: Tensor, size: int, stride: int = 1) -> Tensor:
    """Mean over every square window that lies wholly on the grid.

    Args:
        values: (B, rows, columns, h).
        size: Side of the window, in grid positions.
        stride: Step between windows, in grid positions.

    Returns:
        (B, rows', columns', h) with rows' = (rows - size) // stride + 1; none where the window is larger than the grid.

    Raises:
        ValueError: If ``size`` or ``stride`` is below 1, or ``values`` is not 4-dimensional.
    """
    if size < 1 or stride < 1:
        raise ValueError(f"size and stride must be at least 1 grid position, got {size} and {stride}")
    if values.ndim != 4:
        raise ValueError(f"values must have shape (B, rows, columns, h), got {tuple(values.shape)}")
    batch, rows, columns, features = values.shape
    if batch == 0 or min(rows, columns) < size:
        return values.new_empty(
            batch, max(0, (rows - size) // stride + 1), max(0, (columns - size) // stride + 1), features
        )
    # The box is separable: size + size additions a position instead of size * size.
    maps = values.permute(0, 3, 1, 2)
    maps = avg_pool2d(avg_pool2d(maps, (size, 1), (stride, 1)), (1, size), (1, stride))
    return maps.permute(0, 2, 3, 1)


def stack_neighbours(values: Tensor, offset: int = 1) -> Tensor:
    """Concatenate the vectors at the corners of every 2 x 2 square of positions.

    Args:
        values: (B, rows, columns, h).
        offset: Side of the square, in positions of this grid.

    Returns:
        (B, rows - offset, columns - offset, 4 h): top left, top right, bottom left, bottom right.

    Raises:
        ValueError: If ``offset`` is below 1.
    """
    if offset < 1:
        raise ValueError(f"offset must be at least 1 position, got {offset}")
    rows, columns = values.shape[1] - offset, values.shape[2] - offset
    if min(rows, columns) <= 0:
        return values.new_empty(values.shape[0], max(0, rows), max(0, columns), 4 * values.shape[3])
    top, bottom = values[:, :rows], values[:, offset:]
    corners = [top[:, :, :columns], top[:, :, offset:], bottom[:, :, :columns], bottom[:, :, offset:]]
    return torch.cat(corners, dim=-1)


@dataclass(frozen=True)
class SemiLocalPooling:
    """Settings of the layer; called, it maps grids of descriptors to grids of stacked, normalised windows.

    Attributes:
        windows: Sides q of the windows, in grid positions; each gives a grid of its own.
        stride: Step delta between windows, in grid positions.
        stack_offset: Distance of the 2 x 2 stack's corners as a fraction of the window: 0 takes adjacent windows
            (the paper's), 1 disjoint ones (as SIFT's cells).
        stacking: Whether windows are stacked at all.
        unit_length: Whether stacks are L2-normalised.
        assignment: Of descriptors to components: ``"hard"`` (the paper's) or ``"soft"``.
        window_power: Whether a window's Fisher vector takes the signed square root and unit length before W.
    """

    windows: tuple[int, ...] = (5,)
    stride: int = 1
    stack_offset: float = 0.0
    stacking: bool = True
    unit_length: bool = True
    assignment: Assignment = "hard"
    window_power: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning.

        Raises:
            ValueError: If a window or the stride is below 1, there is no window, or the offset is negative.
        """
        if not self.windows or min(self.windows) < 1:
            raise ValueError(f"windows must name at least one side of 1 or more grid positions, got {self.windows}")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 grid position, got {self.stride}")
        if self.stack_offset < 0:
            raise ValueError(
                f"stack_offset must be 0 (adjacent windows) or a positive fraction, got {self.stack_offset}"
            )

    def __call__(
        self, grids: Sequence[DescriptorGrid], mixture: DiagonalMixture, projection: Tensor
    ) -> list[DescriptorGrid]:
        """Pool, project, stack and L2-normalise.

        Args:
            grids: The layer's input, one grid a scale, descriptors (B, rows, columns, D).
            mixture: K components over D dimensions.
            projection: W, (h, 2 K D).

        Returns:
            One grid for each pair of input grid and window that fits it, descriptors (B, rows', columns', 4 h) at the
            centres of the stacks.
        """
        pooled = []
        for grid, values in zip(grids, self._values(grids, mixture, projection), strict=True):
            for size in self.windows:
                stacked = self.stacks(values, size, projection if self.window_power else None)
                if stacked.shape[1] and stacked.shape[2]:
                    centres = self.stacks(grid.positions[None], size)
                    positions = torch.unflatten(centres, -1, (-1, 2)).mean(dim=-2)[0]
                    descriptors = l2_normalize(stacked) if self.unit_length else stacked
                    pooled.append(DescriptorGrid(descriptors, positions, grid.scale))
        return pooled

    def stacks(self, values: Tensor, size: int, projection: Tensor | None = None) -> Tensor:
        """Pool values over windows of one side, and stack neighbouring windows.

        Args:
            values: (B, rows, columns, h).
            size: Side of the window, in grid positions.
            projection: W for windows that are normalised and projected in between, (h', h); None for neither.

        Returns:
            (B, rows', columns', 4 h), or 4 h'; without stacking h or h'.
        """
        means = box_mean(values, size, self.stride)
        if projection is not None:
            means = l2_normalize(signed_power(means)) @ projection.T
        if not self.stacking:
            return means
        return stack_neighbours(means, max(1, round(self.stack_offset * size / self.stride)))

    def _values(self, grids: Sequence[DescriptorGrid], mixture: DiagonalMixture, projection: Tensor) -> list[Tensor]:
        # What windows are means of: descriptors' Fisher vectors, projected already where that commutes.
        if self.assignment == "hard" and not self.window_power:
            return _projected(grids, mixture, projection)
        values = []
        for grid in grids:
            images = []
            for image in grid.descriptors:
                single = fisher_vectors(mixture, image.unsqueeze(-2), assignment=self.assignment)
                images.append(single if self.window_power else single @ projection.T)
            values.append(torch.stack(images))
        return values


def _projected(grids: Sequence[DescriptorGrid], mixture: DiagonalMixture, projection: Tensor) -> list[Tensor]:
    # The descriptors of all scales at once: K small products for all of them, not for each.
    if not grids:
        return []
    # Images stay the first axis: an exported graph serves any number of them.
    sizes = [tuple(grid.descriptors.shape[1:3]) for grid in grids]
    rows = torch.cat([grid.descriptors.flatten(1, 2) for grid in grids], dim=1)
    parts = torch.split(project_descriptors(mixture, rows, projection), [math.prod(size) for size in sizes], dim=1)
    return [torch.unflatten(part, 1, size) for part, size in zip(parts, sizes, strict=True)]
