"""Filters along one axis as constant banded matrices, applied by matrix products.

Sampling a filtered signal is a product with a constant matrix A whose row holds the filter's taps around the sample,
taps beyond either end added to the border pixel (replicate padding). A separable filter of an image is A_y I A_xᵀ.
The rows of A are cut into blocks of neighbouring samples, each with the band of columns that it reads, so that cost
and memory grow linearly with the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, exp
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisherlayers.fisher_vectors.constants import constant

__all__ = [
    "AxisBlock",
    "axis_filter",
    "chunks_of_images",
    "filter_bands",
    "filter_first",
    "filter_last",
    "gaussian_filter_matrix",
]

_BLOCK_PIXELS = 64
_VALUES_PER_PIXEL = 8


class AxisBlock(NamedTuple):
    """A block of rows of a banded matrix.

    Attributes:
        samples: the samples that the block computes, first and one past the last.
        pixels: the pixels that it reads, first and one past the last.
        matrix: (K * samples, pixels), K kernels a sample, samples major.
    """

    samples: tuple[int, int]
    pixels: tuple[int, int]
    matrix: Tensor


def axis_filter(
    length: int, centres: NDArray[np.int64], taps: NDArray[np.float64], like: tuple[torch.dtype, torch.device]
) -> tuple[AxisBlock, ...]:
    """Build the blocks of a banded matrix that filters and samples an axis.

    Args:
        length: pixels of the axis.
        centres: (samples, K), the pixel at which each of the K kernels of each sample stands; rows ascending.
        taps: (K, 2 r + 1), the kernels.
        like: dtype and device of the matrices.

    Returns:
        Blocks of the samples, in order.
    """
    samples, kernels = centres.shape
    if samples == 0:
        return ()
    reach = np.arange(taps.shape[1]) - taps.shape[1] // 2
    pixels = np.clip(centres[:, :, None] + reach, 0, length - 1)
    advance = (centres[-1, 0] - centres[0, 0]) / max(1, samples - 1)
    size = max(1, int(_BLOCK_PIXELS // max(1, advance)))
    blocks = []
    for start in range(0, samples, size):
        read = pixels[start : start + size]
        low, high = int(read.min()), int(read.max()) + 1
        matrix = np.zeros((len(read), kernels, high - low))
        rows, columns, _ = np.indices(read.shape)
        np.add.at(matrix, (rows, columns, read - low), taps)
        # Cached matrices must also serve autograd when the first call came under inference mode.
        with torch.inference_mode(mode=False):
            rows_of_block = torch.from_numpy(matrix.reshape(-1, high - low)).to(dtype=like[0], device=like[1])
        blocks.append(AxisBlock((start, start + len(read)), (low, high), rows_of_block))
    return tuple(blocks)


@constant
def gaussian_filter_matrix(
    length: int, deviation: float, dtype: torch.dtype, device: torch.device
) -> tuple[AxisBlock, ...]:
    """Return the matrix of Gaussian smoothing, cut off at 4 standard deviations, one sample a pixel."""
    radius = ceil(4 * deviation)
    taps = np.array([exp(-0.5 * (offset / deviation) ** 2) for offset in range(-radius, radius + 1)])
    return axis_filter(length, np.arange(length)[:, None], taps[None] / taps.sum(), (dtype, device))


def filter_last(blocks: Sequence[AxisBlock], signal: Tensor) -> Tensor:
    """Filter the last axis.

    Args:
        blocks: the matrix.
        signal: (..., length).

    Returns:
        (..., K * samples).
    """
    rows = signal.reshape(-1, signal.shape[-1])
    pieces = [(rows[:, slice(*block.pixels)], block.matrix.mT) for block in blocks]
    return _products(pieces, dim=1).reshape(*signal.shape[:-1], -1)


def filter_first(blocks: Sequence[AxisBlock], signal: Tensor) -> Tensor:
    """Filter the first axis.

    Args:
        blocks: the matrix.
        signal: (length, ...).

    Returns:
        (K * samples, ...).
    """
    columns = signal.flatten(start_dim=1)
    pieces = [(block.matrix, columns[slice(*block.pixels)]) for block in blocks]
    return _products(pieces, dim=0).reshape(-1, *signal.shape[1:])


def _products(pieces: Sequence[tuple[Tensor, Tensor]], dim: int) -> Tensor:
    # The concatenated products; written in place where autograd does not forbid it.
    recorded = torch.compiler.is_compiling() or any(factor.requires_grad for piece in pieces for factor in piece)
    if len(pieces) == 1 or recorded:
        return torch.cat([left @ right for left, right in pieces], dim=dim)
    sizes = [(len(left), right.shape[1])[dim] for left, right in pieces]
    shape = [len(pieces[0][0]), pieces[0][1].shape[1]]
    shape[dim] = sum(sizes)
    result = pieces[0][0].new_empty(shape)
    for (left, right), out in zip(pieces, result.split_with_sizes(sizes, dim=dim), strict=True):
        torch.mm(left, right, out=out)
    return result


def chunks_of_images(images: Tensor, descriptors: Tensor) -> Iterator[slice]:
    """Cut a batch of images into chunks that fit the cache together with their descriptors.

    Args:
        images: (B, ..., H, W).
        descriptors: (B, rows, cols, D), the result.

    Yields:
        Slices of the batch, at least one image each.
    """
    if torch.compiler.is_compiling():
        # An exported graph serves any number of images.
        yield slice(None)
        return
    rows, cols, features = descriptors.shape[1:]
    pixels = images.shape[-2] * images.shape[-1] + rows * cols * features // _VALUES_PER_PIXEL
    at_once = max(1, _working_pixels(images.device) // pixels)
    for start in range(0, len(images), at_once):
        yield slice(start, start + at_once)


def filter_bands(
    y_blocks: Sequence[AxisBlock],
    x_blocks: Sequence[AxisBlock],
    make_maps: Callable[[int, int], Tensor],
    batch: int,
    width: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Filter maps along both axes, A_y O A_xᵀ, in bands of rows that fit the cache.

    Args:
        y_blocks: A_y.
        x_blocks: A_x.
        make_maps: rows low to high of the T maps that are filtered: (low, high) -> (high - low, B, T, W).
        batch: B.
        width: W.

    Yields:
        The samples along y of one block as a slice, and the block of the result, (samples, K, B, K * samples, T).
    """
    whole = y_blocks[-1].pixels[1]
    max_rows = whole if torch.compiler.is_compiling() else _working_pixels(x_blocks[0].matrix.device) // (batch * width)
    start = 0
    for stop in range(1, len(y_blocks) + 1):
        low = y_blocks[start].pixels[0]
        if stop < len(y_blocks) and y_blocks[stop].pixels[1] - low <= max_rows:
            continue
        # T goes last here, where the array is small: the large result is then almost in the descriptors' order.
        filtered = filter_last(x_blocks, make_maps(low, y_blocks[stop - 1].pixels[1])).mT.contiguous()
        for block in y_blocks[start:stop]:
            first, last = block.samples
            rows = filtered[block.pixels[0] - low : block.pixels[1] - low]
            product = block.matrix @ rows.flatten(start_dim=1)
            yield slice(first, last), product.reshape(last - first, -1, *filtered.shape[1:])
        start = stop


def _working_pixels(device: torch.device) -> int:
    # Pixels worked off at a time. On a CPU, their maps (_VALUES_PER_PIXEL in float32) fill 2 MB: the cache of a core.
    return 2**16 if device.type == "cpu" else 2**23
