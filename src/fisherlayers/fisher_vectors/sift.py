"""Dense SIFT at several scales, by matrix products with constant banded matrices.

A SIFT descriptor (Lowe 2004) holds, for each of 4 x 4 spatial bins and 8 orientations, the sum of the gradient
magnitudes around the bin's centre. The magnitude is shared between the two nearest orientations by the angle, and
between bins by the triangle 1 - |u| / b of the distance u to the centre, times a Gaussian window of the patch. Both
factors are separable, so that with O_t the map of magnitudes of orientation t

    D_t = A_y O_t A_xᵀ,        A[(i, k), x] = w_k(x - c_ik) (1 - |x - c_ik| / b),

c_ik the centre of bin k of patch i: the constant A is the same for all images of a size.

The values are VLFeat's (`vl_dsift`, `vl_phow`): the elements are ordered t + 8 (x + 4 y), t counting 45 degrees from
the x-axis towards the y-axis, which points down. VLFeat stores min(512 d, 255) of the descriptor d that has unit length
here with ``root=False``, puts the first bin's centre at pixel 0 unless its bounds say otherwise (ours is
`grid_axis`), and has an approximate arc tangent and square root (differences of about 1e-3 of the length).

Steps of one descriptor: L2-normalise, clamp at 0.2, L2-normalise; RootSIFT (Arandjelović and Zisserman, CVPR 2012) is
then the square root of the L1-normalised descriptor, of unit length again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import pi, sqrt
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.axis_filter import (
    AxisBlock,
    axis_filter,
    chunks_of_images,
    filter_bands,
    filter_first,
    filter_last,
    gaussian_filter_matrix,
)
from fisherlayers.fisher_vectors.constants import constant
from fisherlayers.fisher_vectors.descriptors import (
    NUM_BINS,
    Configurable,
    DescriptorGrid,
    check_grid,
    check_images,
    grid_axis,
    grid_positions,
    luminance,
    safe_sqrt,
)

__all__ = ["DenseSift", "SiftWindow", "dense_sift"]

SiftWindow = Literal["gaussian", "flat"]

_ORIENTATIONS = 8
_NUM_FEATURES = NUM_BINS * NUM_BINS * _ORIENTATIONS
_CLAMP = 0.2
_TINY = 1e-12


def dense_sift(
    images: Tensor,
    *,
    bin_size: int,
    step: int,
    window: SiftWindow = "gaussian",
    window_size: float = 2.0,
    smooth: bool = True,
    root: bool = True,
    contrast_threshold: float = 0.005,
) -> DescriptorGrid:
    """Extract SIFT descriptors of one scale on a dense grid.

    Memory beyond the result is bounded for large images: they are worked off in bands of rows. Gradients flow to the
    images; they are finite everywhere, and zero through elements that are zero.

    Args:
        images: (B, H, W) grey or (B, 3, H, W) RGB (converted by `luminance`), float32 or float64, in [0, 1].
        bin_size: b, pixels between bin centres, at least 1; the centres of a patch span 3 b pixels.
        step: pixels between patches, at least 1.
        window: "gaussian", centred on the patch, or "flat", its mean over each bin (VLFeat's fast mode). Both take the
            same time here.
        window_size: standard deviation of the window in bins, positive; `vl_dsift` has 2, `vl_phow` 1.5.
        smooth: smooth the images beforehand by a Gaussian of variance (b / 6)^2 - 1/4, as `vl_phow` does (nothing to do
            for b <= 3).
        root: RootSIFT instead of SIFT.
        contrast_threshold: descriptors whose mean gradient magnitude, windowed, lies below it are set to zero, in units
            of the images; `vl_phow` has 0.005, `vl_dsift` 0. Flat patches are zero in any case.

    Returns:
        The grid of descriptors (B, rows, cols, 128), of unit length or zero.

    Raises:
        ValueError: If an argument is outside its range.
    """
    check_images(images)
    check_grid(bin_size=bin_size, step=step)
    if window not in get_args(SiftWindow):
        raise ValueError(f"window must be one of {get_args(SiftWindow)}, got {window!r}")
    if not window_size > 0:
        raise ValueError(f"window_size must be positive, in bins, got {window_size}")
    if not contrast_threshold >= 0:
        raise ValueError(f"contrast_threshold must be at least 0, got {contrast_threshold}")
    images = luminance(images)
    batch, height, width = images.shape
    like = (images.dtype, images.device)
    y_blocks, x_blocks = (_bin_matrix(length, bin_size, step, window, window_size, *like) for length in (height, width))
    positions = grid_positions(height, width, (NUM_BINS - 1) * bin_size, step, *like)
    descriptors = images.new_empty(batch, *positions.shape[:2], _NUM_FEATURES)
    if descriptors.numel() == 0:
        return DescriptorGrid(descriptors, positions, float(bin_size))
    threshold = contrast_threshold * ((NUM_BINS - 1) * bin_size + 1) ** 2
    variance = (bin_size / 6) ** 2 - 0.25 if smooth else 0.0
    for chunk in chunks_of_images(images, descriptors):
        # Rows first, so that either axis is the first or the last of the maps and each pass is one product.
        rows = images[chunk].transpose(0, 1).contiguous()
        if variance > 0:
            rows = filter_last(gaussian_filter_matrix(width, sqrt(variance), *like), rows)
            rows = filter_first(gaussian_filter_matrix(height, sqrt(variance), *like), rows)
        bands = filter_bands(y_blocks, x_blocks, partial(_orientation_maps, rows), rows.shape[1], width)
        for samples, histograms in bands:
            target = descriptors[chunk, samples]
            if histograms.requires_grad or torch.compiler.is_compiling():
                target.copy_(_normalize(_in_order(histograms).flatten(start_dim=3), threshold=threshold, root=root))
            else:
                target.view(*target.shape[:3], NUM_BINS, -1).copy_(_in_order(histograms))
                _normalize(target, threshold=threshold, root=root, out=target)
    return DescriptorGrid(descriptors, positions, float(bin_size))


def _orientation_maps(rows: Tensor, low: int, high: int) -> Tensor:
    """Share each gradient's magnitude between the two nearest of 8 orientations, in proportion to the angle.

    Differences are central, and one-sided at the borders of the image.

    Args:
        rows: (H, B, W).
        low: first row wanted.
        high: one past the last row wanted.

    Returns:
        (high - low, B, 8, W).
    """
    top = max(0, low - 1)
    band = rows[top : high + 1]
    dx = _differences(rows[low:high], dim=2)
    dy = _differences(band, dim=0)[low - top : high - top]
    magnitude = safe_sqrt(dx * dx + dy * dy)
    # The angle from the x-axis in units of 45 degrees, folded into the first quadrant: in [0, 2].
    angle = torch.atan(dy.abs() / dx.abs().clamp_min(_TINY)) * (4 / pi)
    along_x = torch.relu(1 - angle) * magnitude
    along_y = torch.relu(angle - 1) * magnitude
    diagonal = magnitude - along_x - along_y
    east, west = _by_sign(along_x, dx)
    south, north = _by_sign(along_y, dy)
    (south_east, north_east), (south_west, north_west) = (_by_sign(part, dy) for part in _by_sign(diagonal, dx))
    return torch.stack([east, south_east, south, south_west, west, north_west, north, north_east], dim=2)


def _differences(values: Tensor, dim: int) -> Tensor:
    # As `torch.gradient`, which cannot be exported for any number of images.
    last = values.shape[dim] - 1
    start, end = (values.narrow(dim, i + 1, 1) - values.narrow(dim, i, 1) for i in (0, last - 1))
    centre = (values.narrow(dim, 2, last - 1) - values.narrow(dim, 0, last - 1)) / 2
    return torch.cat([start, centre, end], dim=dim)


def _by_sign(magnitude: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    # Two tensors: the magnitudes where the direction is positive, and where it is negative.
    # ONNX has no copysign, which is the faster of the two.
    exported = torch.compiler.is_compiling()
    signed = torch.where(direction < 0, -magnitude, magnitude) if exported else torch.copysign(magnitude, direction)
    positive = torch.relu(signed)
    return positive, positive - signed


def _in_order(histograms: Tensor) -> Tensor:
    # (rows, y, B, cols * x, t) to VLFeat's order, (B, rows, cols, y, x * t).
    rows, bins, batch = histograms.shape[:3]
    return histograms.reshape(rows, bins, batch, -1, NUM_BINS * _ORIENTATIONS).permute(2, 0, 3, 1, 4)


def _normalize(histograms: Tensor, *, threshold: float, root: bool, out: Tensor | None = None) -> Tensor:
    mass = histograms.sum(dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(histograms, dim=-1, keepdim=True)
    clamped = torch.minimum(histograms, _CLAMP * length, out=out)
    norm = clamped.sum(dim=-1, keepdim=True) if root else torch.linalg.vector_norm(clamped, dim=-1, keepdim=True)
    gain = torch.where(mass >= threshold, norm.clamp(min=_TINY).reciprocal(), 0.0)
    scaled = torch.mul(clamped, gain, out=out)
    return safe_sqrt(scaled, out=out) if root else scaled


@constant
def _bin_matrix(
    length: int,
    bin_size: int,
    step: int,
    window: SiftWindow,
    window_size: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[AxisBlock, ...]:
    """Return A: the 4 windowed bins of each patch along an axis."""
    first, count = grid_axis(length, (NUM_BINS - 1) * bin_size, step)
    bins = np.arange(NUM_BINS)
    centres = first + step * np.arange(count)[:, None] + bin_size * bins
    reach = np.arange(1 - bin_size, bin_size)
    from_patch = bin_size * (bins[:, None] - (NUM_BINS - 1) / 2) + reach
    weights = np.exp(-0.5 * (from_patch / (bin_size * window_size)) ** 2)
    if window == "flat":
        weights = weights.mean(axis=1, keepdims=True)
    return axis_filter(length, centres, weights * (1 - abs(reach) / bin_size), (dtype, device))


@dataclass(frozen=True)
class DenseSift(Configurable):
    """Dense SIFT at several scales: `dense_sift` for each bin size.

    Attributes:
        bin_sizes: pixels, one scale each; for images of 28 x 28 take (3, 4, 6) and ``step=2``.
        step: pixels between patches.
        window: "gaussian" or "flat".
        window_size: standard deviation of the window in bins.
        smooth: smooth the images to each scale first.
        root: RootSIFT instead of SIFT.
        contrast_threshold: mean gradient magnitude below which a descriptor is zero.
    """

    type_name: ClassVar[str] = "dense_sift"

    bin_sizes: tuple[int, ...] = (4, 6, 8, 10)
    step: int = 4
    window: SiftWindow = "gaussian"
    window_size: float = 2.0
    smooth: bool = True
    root: bool = True
    contrast_threshold: float = 0.005

    @property
    def num_features(self) -> int:
        """128: 4 x 4 bins of 8 orientations."""
        return _NUM_FEATURES

    def __call__(self, images: Tensor) -> list[DescriptorGrid]:
        """Return one grid a bin size for images in [0, 1], (B, H, W) grey or (B, 3, H, W) RGB."""
        check_images(images)
        grey = luminance(images)
        return [
            dense_sift(
                grey,
                bin_size=bin_size,
                step=self.step,
                window=self.window,
                window_size=self.window_size,
                smooth=self.smooth,
                root=self.root,
                contrast_threshold=self.contrast_threshold,
            )
            for bin_size in self.bin_sizes
        ]
