"""Raw patches on a dense grid, normalised for brightness and contrast: descriptors for tiny images.

After Coates, Lee and Ng (AISTATS 2011): the pixels of a small patch, minus their mean, divided by sqrt(variance + c).
Whitening is the next step and belongs to the PCA, which learns it from many patches (setting ``patch_whitening``). A
patch has side x side cells; a cell of size s is the mean of s x s pixels, so that patches of several sizes have one
length. Patches lie inside the image as far as their outermost pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fisherlayers.fisher_vectors.descriptors import (
    NUM_BINS,
    Configurable,
    DescriptorGrid,
    check_grid,
    check_images,
    grid_axis,
    grid_positions,
    luminance,
)

__all__ = ["RawPatches", "raw_patches"]

_CONTRAST = 10 / 255**2


def raw_patches(
    images: Tensor, *, side: int, cell_size: int = 1, step: int = 1, color: bool = False, contrast: float = _CONTRAST
) -> DescriptorGrid:
    """Extract normalised patches of one scale on a dense grid.

    The elements of a patch are ordered c + C (x + side y), c counting its C = 1 or 3 channels, which are normalised
    together. Flat patches are zero. Gradients flow to the images and are finite everywhere.

    Args:
        images: (B, H, W) grey or (B, 3, H, W) RGB, float32 or float64, in [0, 1].
        side: cells along each axis of a patch, at least 1.
        cell_size: pixels along each axis of a cell, at least 1.
        step: pixels between patches, at least 1.
        color: keep R, G and B (grey counts as R = G = B) instead of the luminance.
        contrast: c, the variance that is added before the division, positive, in squared units of the images; patches
            of less contrast stay small. The default is that of Coates et al. (10 in units of 8-bit pixels).

    Returns:
        The grid of descriptors (B, rows, cols, side^2) or, in colour, (B, rows, cols, 3 side^2).

    Raises:
        ValueError: If an argument is outside its range.
    """
    check_images(images)
    check_grid(side=side, cell_size=cell_size, step=step)
    if not contrast > 0:
        raise ValueError(f"contrast must be positive (it is added to each patch's variance), got {contrast}")
    height, width = images.shape[-2:]
    planes = images if images.ndim == 4 else images[:, None]
    channels = planes.expand(-1, 3, -1, -1) if color else luminance(planes)[:, None]
    span = side * cell_size - 1
    positions = grid_positions(height, width, span, step, images.dtype, images.device)
    rows, cols = positions.shape[:2]
    scale = side * cell_size / NUM_BINS
    if rows * cols == 0:
        empty = images.new_zeros(len(images), rows, cols, channels.shape[1] * side**2)
        return DescriptorGrid(empty, positions, scale)

    cells = avg_pool2d(channels, cell_size, stride=1) if cell_size > 1 else channels
    reach = (side - 1) * cell_size + 1
    for axis, length in ((2, height), (3, width)):
        first, _ = grid_axis(length, span, step)
        cells = cells.narrow(axis, first, cells.shape[axis] - first).unfold(axis, reach, step)[..., ::cell_size]
    patches = cells.permute(0, 2, 3, 4, 5, 1).flatten(start_dim=3)
    variance, mean = torch.var_mean(patches, dim=-1, correction=0, keepdim=True)
    return DescriptorGrid((patches - mean) * (variance + contrast).rsqrt(), positions, scale)


@dataclass(frozen=True)
class RawPatches(Configurable):
    """Normalised patches at several scales: `raw_patches` for each cell size.

    Attributes:
        side: cells along each axis of a patch.
        cell_sizes: pixels along each axis of a cell, one scale each.
        step: pixels between patches.
        color: keep R, G and B instead of the luminance.
        contrast: variance that is added before the division.
    """

    type_name: ClassVar[str] = "raw_patches"

    side: int = 6
    cell_sizes: tuple[int, ...] = (1,)
    step: int = 1
    color: bool = False
    contrast: float = _CONTRAST

    @property
    def num_features(self) -> int:
        """side^2, three times as many in colour."""
        return self.side**2 * (3 if self.color else 1)

    def __call__(self, images: Tensor) -> list[DescriptorGrid]:
        """Return one grid a cell size for images in [0, 1], (B, H, W) grey or (B, 3, H, W) RGB."""
        return [
            raw_patches(
                images,
                side=self.side,
                cell_size=cell_size,
                step=self.step,
                color=self.color,
                contrast=self.contrast,
            )
            for cell_size in self.cell_sizes
        ]
