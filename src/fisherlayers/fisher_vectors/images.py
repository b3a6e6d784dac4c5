"""Images at the door: arrays or paths in, checked float tensors of one shape a batch out."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fisherlayers.data.images import ImageReadError, read_image, to_uint8
from fisherlayers.fisher_vectors.descriptors import rescale_to_max_pixels

__all__ = ["Batch", "ImageList", "by_position", "warn_empty"]

# Pixels of one batch: enough work a call, and its descriptors still fit the cache's neighbourhood.
_BATCH_PIXELS = 65_536
# Resampled and colour-converted floats may leave [0, 1] by as much.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Batch:
    """Images of one shape that are processed together.

    Attributes:
        indices: Where they stand in the list.
        key: What else they share, such as the fold of a cross-fitted projection.
    """

    indices: tuple[int, ...]
    key: int = 0


Check = tuple[tuple[int, int, int], bytes]


class ImageList:
    """Checked access to a list of images, decoded one batch at a time and never held.

    Args:
        images: Arrays (H, W), (H, W, 1) or (H, W, 3), or paths; one array (n, H, W) or (n, H, W, 3), memory-mapped or
            not, or any sequence that makes an image when it is indexed. Integers lie in 0..255 (bytes) or are uint16,
            floats in [0, 1].
        each: Applies the check to all positions, in order; `map` if None. Threads may serve.

    Attributes:
        shapes: (C, H, W) of every image.
        fingerprint: SHA-256 of all pixels and shapes.

    Raises:
        ValueError: If the list is empty or an image is unreadable, of a wrong shape or has invalid pixels.
        TypeError: If ``images`` is no list of images.
    """

    def __init__(
        self,
        images: Any,
        *,
        each: Callable[[Callable[[int], Check], Sequence[int]], Iterable[Check]] | None = None,
    ) -> None:
        self.images: Any = _as_sequence(images)
        self.max_pixels, self.upsample, self.padding = 100_000, 1, 0
        # Everything is decoded once here, so that a bad image is named before the work begins.
        self.shapes, digest = [], hashlib.sha256()
        for shape, pixels in (each or map)(partial(_check, self.images), range(len(self.images))):
            self.shapes.append(shape)
            digest.update(pixels)
        self.fingerprint = digest.hexdigest()
        self._originals = len(self.shapes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.shapes)

    @property
    def has_color(self) -> bool:
        """Whether any image has three channels."""
        return any(channels == 3 for channels, _, _ in self.shapes)

    @property
    def typical_side(self) -> float:
        """Square root of the median area, in pixels."""
        return float(np.sqrt(np.median([height * width for _, height, width in self.shapes])))

    def prepared(self, *, max_pixels: int, upsample: int, padding: int) -> ImageList:
        """Choose how images are resampled when they are loaded.

        Args:
            max_pixels: Larger images are reduced to this area.
            upsample: Factor of enlargement before that.
            padding: Pixels by which the border is continued.

        Returns:
            The same list with these settings; pixels are not copied.
        """
        images = copy(self)
        images.max_pixels, images.upsample, images.padding = max_pixels, upsample, padding
        return images

    def mirrored(self) -> ImageList:
        """Append every image mirrored left to right.

        Returns:
            A list of twice the length; pixels are not copied.
        """
        images = copy(self)
        images.shapes = self.shapes * 2
        return images

    def part(self, batch: Batch) -> ImageList:
        """Leave out all images but those of a batch, for another process to load.

        Args:
            batch: From `batches`.

        Returns:
            A list of which only this batch can be loaded.
        """
        images = copy(self)
        images.images = {i: self.images[i] for i in {index % self._originals for index in batch.indices}}
        images.shapes = []
        return images

    def batches(self, *, indices: Sequence[int] | None = None, keys: Sequence[int] | None = None) -> list[Batch]:
        """Group images of one key and shape.

        Args:
            indices: Which images; all if None.
            keys: A key for each image of the list; 0 for all if None.

        Returns:
            Batches whose indices together are ``indices``, in an order that depends on nothing else.
        """

        def kind(index: int) -> tuple[int, int, int, int]:
            channels, height, width = self.shapes[index]
            return 0 if keys is None else keys[index], channels, height, width

        chosen = range(len(self)) if indices is None else indices
        batches: list[Batch] = []
        group: list[int] = []
        for index in sorted(chosen, key=kind):
            area = self._area(*self.shapes[index][1:])
            full = (len(group) + 1) * (area**0.5 + 2 * self.padding) ** 2 > _BATCH_PIXELS
            if group and (full or kind(group[0]) != kind(index)):
                batches.append(Batch(tuple(group), kind(group[0])[0]))
                group = []
            group.append(index)
        if group:
            batches.append(Batch(tuple(group), kind(group[0])[0]))
        return batches

    def load(self, batch: Batch) -> Tensor:
        """Decode and prepare one batch.

        Args:
            batch: From `batches`.

        Returns:
            (B, C, H, W) in [0, 1], C = 1 or 3.
        """
        return torch.stack([self._load(index) for index in batch.indices])

    def _area(self, height: int, width: int) -> int:
        """Return the pixels of an image once it is prepared, before padding."""
        return min(height * width * self.upsample**2, self.max_pixels)

    def _load(self, index: int) -> Tensor:
        original = index % self._originals
        pixels = _pixels(self.images[original], original)
        if index >= self._originals:
            pixels = pixels.flip(2)
        if self.upsample > 1:
            pixels = interpolate(pixels[None], scale_factor=self.upsample, mode="bilinear", align_corners=False)[0]
        pixels = rescale_to_max_pixels(pixels, self.max_pixels)
        values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return pad(values, (self.padding,) * 4, mode="replicate") if self.padding else values


def warn_empty(empty: int, total: int) -> None:
    """Warn of images that have zero encodings.

    Args:
        empty: Their number.
        total: Of how many.
    """
    if empty:
        warnings.warn(
            f"{empty} of {total} images are too small for a single descriptor and have zero encodings: use a smaller "
            "bin_sizes or a larger upsample",
            stacklevel=4,
        )


def _as_sequence(images: Any) -> Any:
    if isinstance(images, str | os.PathLike):
        raise TypeError(
            f"images must be a list of images or paths, got the single path {os.fspath(images)!r}: pass [path]"
        )
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        images = images.tolist()  # paths, or images of several sizes
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim not in {3, 4} or (images.ndim == 3 and images.shape[-1] == 3):
            raise ValueError(
                "images must be a list of images or an array (n, H, W) or (n, H, W, 3), "
                f"got shape {tuple(images.shape)}: pass [image] for a single image"
            )
        images = np.asarray(images)
    elif isinstance(images, Iterator) or not hasattr(images, "__getitem__") or not hasattr(images, "__len__"):
        raise TypeError(f"images must be a list of arrays or paths, got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError("images is empty: pass at least one image")
    return by_position(images)


def by_position(images: Any) -> Any:
    """Return a sequence that is indexed by position.

    Args:
        images: Any; a column of a data frame counts by its index.

    Returns:
        The column as a list; everything else as it is.

    Raises:
        TypeError: If it is a whole data frame.
    """
    if hasattr(images, "iloc") and not hasattr(images, "tolist"):
        raise TypeError(f"images must be one column of a data frame, got a {type(images).__name__}: pass frame['path']")
    return images.tolist() if hasattr(images, "iloc") else images


def _check(images: Any, index: int) -> Check:
    pixels = _pixels(images[index], index)
    channels, height, width = pixels.shape
    described = f"{pixels.dtype} {channels} {height} {width} ".encode()
    return (channels, height, width), hashlib.sha256(described + pixels.numpy().tobytes()).digest()


def _pixels(image: Any, index: int) -> Tensor:
    # (C, H, W), bytes or floats in [0, 1].
    if isinstance(image, str | os.PathLike):
        try:
            image = read_image(image)
        except ImageReadError as error:
            raise ValueError(f"images[{index}]: {error}") from error
    try:
        # As from a file: palettes, other colour spaces and the orientation are brought to grey or RGB.
        array = to_uint8(ImageOps.exif_transpose(image)) if isinstance(image, Image.Image) else np.asarray(image)
    except Exception as error:  # whatever stands in the list
        raise ValueError(f"images[{index}] is no image but a {type(image).__name__}: {error}") from error
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in {1, 3}:
        raise ValueError(f"images[{index}] must have shape (H, W), (H, W, 1) or (H, W, 3), got {np.shape(image)}")
    if array.size == 0:
        raise ValueError(f"images[{index}] has no pixels: shape {array.shape}")
    array = np.moveaxis(array, 2, 0)
    if array.dtype == np.uint8:
        return torch.tensor(np.ascontiguousarray(array))
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return torch.tensor(array / np.float32(65_535))
    if array.dtype == np.bool_:
        return torch.tensor(array.astype(np.float32))
    if np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"images[{index}] has integer pixels in {array.min()}..{array.max()}, expected 0..255")
        return torch.tensor(array.astype(np.uint8))
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"images[{index}] has pixels of type {array.dtype}, expected bytes or floats in [0, 1]")
    if not np.isfinite(array).all():
        raise ValueError(f"images[{index}] has NaN or infinite pixels")
    if array.min() < -_ROUNDING or array.max() > 1 + _ROUNDING:
        raise ValueError(
            f"images[{index}] has float pixels in {array.min():g}..{array.max():g}, expected [0, 1]: "
            "divide by the largest possible value, or pass bytes"
        )
    return torch.tensor(array.astype(np.float32)).clamp(0, 1)
