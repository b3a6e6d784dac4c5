"""Local colour statistics: means and standard deviations of R, G and B in the 4 x 4 cells of a patch.

The descriptor of Clinchant et al. (ImageCLEF 2007), which the Fisher-vector literature pairs with SIFT. It stands on
the grid of `dense_sift` of the same bin size and step: a cell is the square of b x b pixels around a bin's centre, with
pixels that an even b cuts in half counting half, and the border continued outwards. Moments of cells are box filters,
so that with the constant banded matrix A of an axis the means of a channel I are A_y I A_xᵀ, and likewise those of I².

The elements are ordered t + 6 (x + 4 y), t counting mean R, G, B, then standard deviation R, G, B, as SIFT's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.axis_filter import AxisBlock, axis_filter, chunks_of_images, filter_bands
from fisherlayers.fisher_vectors.constants import constant
from fisherlayers.fisher_vectors.descriptors import (
    NUM_BINS,
    Configurable,
    DescriptorGrid,
    check_grid,
    check_images,
    grid_axis,
    grid_positions,
    safe_sqrt,
)

__all__ = ["LocalColorStatistics", "local_color_statistics"]

_STATISTICS = 6
_NUM_FEATURES = NUM_BINS * NUM_BINS * _STATISTICS
_ROUNDING = 32


def local_color_statistics(images: Tensor, *, bin_size: int, step: int) -> DescriptorGrid:
    """Extract colour statistics of one scale on the grid of `dense_sift`.

    Memory beyond the result is bounded for large images: they are worked off in bands of rows. Gradients flow to the
    images; they are finite everywhere, and zero through standard deviations that are zero.

    Args:
        images: (B, 3, H, W) RGB, or (B, H, W) or (B, 1, H, W) grey, which counts as R = G = B; float32 or float64,
            in [0, 1].
        bin_size: b, side of a cell in pixels, at least 1.
        step: pixels between patches, at least 1.

    Returns:
        The grid of descriptors (B, rows, cols, 96), in units of the images; the standard deviations of a cell of one
        colour are exactly 0.
    """
    check_images(images)
    check_grid(bin_size=bin_size, step=step)
    height, width = images.shape[-2:]
    images = (images if images.ndim == 4 else images[:, None]).expand(-1, 3, -1, -1)
    like = (images.dtype, images.device)
    y_blocks, x_blocks = (_cell_matrix(length, bin_size, step, *like) for length in (height, width))
    positions = grid_positions(height, width, (NUM_BINS - 1) * bin_size, step, *like)
    descriptors = images.new_zeros(images.shape[0], *positions.shape[:2], _NUM_FEATURES)
    if descriptors.numel() == 0:
        return DescriptorGrid(descriptors, positions, float(bin_size))

    for chunk in chunks_of_images(images, descriptors):
        # Rows first, so that either axis is the first or the last of the maps and each pass is one product.
        rows = images[chunk].permute(2, 0, 1, 3)
        # Deviations from the image's mean colour: squares of them lose fewer digits in E[d^2] - E[d]^2.
        pivot = rows.mean(dim=(0, 3), keepdim=True)
        bands = filter_bands(y_blocks, x_blocks, partial(_power_maps, rows, pivot), rows.shape[1], width)
        for samples, moments in bands:
            mean, second_moment = moments.tensor_split(2, dim=-1)
            statistics = torch.cat([mean + pivot.mT, _standard_deviation(mean, second_moment)], dim=-1)
            descriptors[chunk, samples].copy_(_in_order(statistics).flatten(start_dim=3))
    return DescriptorGrid(descriptors, positions, float(bin_size))


def _power_maps(rows: Tensor, pivot: Tensor, low: int, high: int) -> Tensor:
    # Deviations of R, G and B and their squares: (high - low, B, 6, W).
    deviations = rows[low:high] - pivot
    return torch.cat([deviations, deviations.square()], dim=2)


def _standard_deviation(mean: Tensor, second_moment: Tensor) -> Tensor:
    # A variance within the rounding error of its two terms is zero.
    variance = second_moment - mean.square()
    return safe_sqrt(variance * (variance > _ROUNDING * torch.finfo(mean.dtype).eps * second_moment))


def _in_order(statistics: Tensor) -> Tensor:
    # (rows, y, B, cols * x, t) to (B, rows, cols, y, x * t).
    rows, bins, batch = statistics.shape[:3]
    return statistics.reshape(rows, bins, batch, -1, NUM_BINS * _STATISTICS).permute(2, 0, 3, 1, 4)


@constant
def _cell_matrix(
    length: int, bin_size: int, step: int, dtype: torch.dtype, device: torch.device
) -> tuple[AxisBlock, ...]:
    """Return A: the means of the 4 cells of each patch along an axis."""
    first, count = grid_axis(length, (NUM_BINS - 1) * bin_size, step)
    centres = first + step * np.arange(count)[:, None] + bin_size * np.arange(NUM_BINS)
    reach = np.arange(-(bin_size // 2), bin_size // 2 + 1)
    share = np.minimum(1.0, (bin_size + 1) / 2 - abs(reach))
    return axis_filter(length, centres, share[None] / bin_size, (dtype, device))


@dataclass(frozen=True)
class LocalColorStatistics(Configurable):
    """Colour statistics at several scales: `local_color_statistics` for each bin size.

    Attributes:
        bin_sizes: pixels, one scale each.
        step: pixels between patches.
    """

    type_name: ClassVar[str] = "local_color_statistics"

    bin_sizes: tuple[int, ...] = (4, 6, 8, 10)
    step: int = 4

    @property
    def num_features(self) -> int:
        """96: 4 x 4 cells of mean and standard deviation of R, G and B."""
        return _NUM_FEATURES

    def __call__(self, images: Tensor) -> list[DescriptorGrid]:
        """Return one grid a bin size for images in [0, 1], (B, 3, H, W) RGB or (B, H, W) grey."""
        return [local_color_statistics(images, bin_size=bin_size, step=self.step) for bin_size in self.bin_sizes]
