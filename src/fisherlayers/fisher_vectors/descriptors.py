"""Local descriptors on a dense grid: what every extractor takes, returns and shares.

An extractor turns a batch of equal-sized images into one `DescriptorGrid` a scale. A patch of bin size b has 4 x 4 bins
whose centres lie b pixels apart, all inside the image; patches stand `step` pixels apart, and what the step leaves over
is halved between the two borders. An image smaller than the patch gives a grid without rows or without columns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import floor, sqrt
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fisherlayers.fisher_vectors.constants import constant

__all__ = [
    "NUM_BINS",
    "Configurable",
    "DescriptorExtractor",
    "DescriptorGrid",
    "check_grid",
    "check_images",
    "grid_axis",
    "grid_positions",
    "luminance",
    "rescale_to_max_pixels",
    "safe_sqrt",
]

NUM_BINS = 4
"""Bins of a patch along each axis."""


class DescriptorGrid(NamedTuple):
    """Descriptors of one scale on a regular grid.

    Attributes:
        descriptors: (B, rows, cols, D); rows or cols is 0 where the images are smaller than one patch.
        positions: (rows, cols, 2), the patch centres (x, y) in [-0.5, 0.5] of the image's width and height.
        scale: the bin size in pixels, a quarter of the patch's side.
    """

    descriptors: Tensor
    positions: Tensor
    scale: float


@runtime_checkable
class DescriptorExtractor(Protocol):
    """What turns images into descriptors, and can be written to JSON and read back."""

    @property
    def num_features(self) -> int:
        """D, the length of a descriptor."""
        ...

    def __call__(self, images: Tensor) -> list[DescriptorGrid]:
        """Return one grid a scale for images in [0, 1], (B, H, W) grey or (B, 3, H, W) RGB."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, with the extractor's name under "type"."""
        ...

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the extractor that `to_config` described."""
        ...


@dataclass(frozen=True)
class Configurable:
    """A frozen dataclass of plain settings that goes to JSON and back.

    Attributes:
        type_name: the name of the class in configurations.
    """

    type_name: ClassVar[str]

    def to_config(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, the class's name under "type"."""
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"type": self.type_name, **settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the object that `to_config` described.

        Args:
            config: what `to_config` returned, perhaps through JSON; settings left out take their defaults.

        Returns:
            An equal object.

        Raises:
            ValueError: If the type or the name of a setting is not this class's.
        """
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
        kind = settings.pop("type", cls.type_name)
        if kind != cls.type_name:
            raise ValueError(f"config is of type {kind!r}, expected {cls.type_name!r}: use extractor_from_config")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"config of {cls.type_name!r} has unknown settings {unknown}, expected some of {known}")
        return cls(**settings)


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of equal-sized images.

    Args:
        images: (B, H, W) grey, or (B, 1, H, W) or (B, 3, H, W), float, values around [0, 1].

    Raises:
        TypeError: If the images are no tensor of float32 or float64.
        ValueError: If the shape is another, an image has no pixel, or a pixel is NaN or infinite.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}: use torch.from_numpy")
    if images.dtype not in {torch.float32, torch.float64}:
        raise TypeError(
            f"images must be float32 or float64 with values in [0, 1], got {images.dtype}: "
            "convert, and divide 8-bit images by 255"
        )
    if images.ndim not in {3, 4} or (images.ndim == 4 and images.shape[1] not in {1, 3}):
        raise ValueError(
            f"images must be (B, H, W) grey, (B, 1, H, W) grey or (B, 3, H, W) RGB, got shape {tuple(images.shape)}"
        )
    if 0 in images.shape[-2:]:
        raise ValueError(f"images must have at least one pixel, got shape {tuple(images.shape)}")
    if torch.compiler.is_compiling():
        return  # values are not known yet
    if images.numel() > 0 and not bool(torch.isfinite(torch.stack(torch.aminmax(images.detach()))).all()):
        raise ValueError("images contain NaN or infinite pixels: repair or drop those images first")


def check_grid(**sizes: int) -> None:
    """Refuse sizes of a grid that are no whole number of at least one pixel.

    Args:
        sizes: pixels, under the names of the caller's arguments.

    Raises:
        ValueError: If one is not an integer or below 1.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of pixels, at least 1, got {size!r}")


def luminance(images: Tensor) -> Tensor:
    """Convert images to grey: Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as VLFeat's users have it).

    Args:
        images: (B, H, W), (B, 1, H, W) or (B, 3, H, W).

    Returns:
        (B, H, W).
    """
    if images.ndim == 3:
        return images
    if images.shape[1] == 1:
        return images[:, 0]
    red, green, blue = images.unbind(dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def rescale_to_max_pixels(images: Tensor, max_pixels: int = 100_000) -> Tensor:
    """Shrink images to at most `max_pixels` pixels, the aspect ratio kept; smaller images are returned as they are.

    Bilinear interpolation with an antialiasing filter: values stay within the range of the input.

    Args:
        images: (..., H, W), float.
        max_pixels: at least 1. The default is the size at which Sánchez and Perronnin (CVPR 2011) work.

    Returns:
        (..., h, w) with h * w <= max_pixels.

    Raises:
        ValueError: If `max_pixels` is below 1.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}")
    height, width = images.shape[-2:]
    if height * width <= max_pixels:
        return images
    factor = sqrt(max_pixels / (height * width))
    # One side of an extreme panorama is kept at one pixel: the other then gives way.
    rows = min(max(1, floor(height * factor)), max_pixels)
    cols = min(max(1, floor(width * factor)), max_pixels // rows)
    rows = min(rows, max_pixels // cols)
    planes = images.reshape(1, -1, height, width)
    return interpolate(planes, size=(rows, cols), mode="bilinear", antialias=True).reshape(
        *images.shape[:-2], rows, cols
    )


def grid_axis(length: int, span: int, step: int) -> tuple[int, int]:
    """Place patches along one axis, the remainder halved between both ends.

    Args:
        length: pixels of the axis.
        span: pixels from a patch's first to its last sample: 3 * bin_size for bins, side - 1 for raw patches.
        step: pixels between patches.

    Returns:
        The first sample of the first patch, and the number of patches (0 if none fits).
    """
    slack = length - 1 - span
    if slack < 0:
        return 0, 0
    return slack % step // 2, slack // step + 1


@constant
def grid_positions(height: int, width: int, span: int, step: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the patch centres (x, y) of a grid, (rows, cols, 2), in [-0.5, 0.5] of the image's width and height.

    The centre of the image is (0, 0), and a pixel covers 1 / W x 1 / H.
    """
    with torch.inference_mode(mode=False):
        axes = []
        for length in (width, height):
            first, count = grid_axis(length, span, step)
            centres = first + span / 2 + step * torch.arange(count, dtype=torch.float64)
            axes.append(((centres + 0.5) / length - 0.5).to(device, dtype))
        x, y = torch.meshgrid(*axes, indexing="xy")
        return torch.stack([x, y], dim=-1)


def safe_sqrt(values: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the square root of values >= 0, with gradient 0 instead of infinity at 0; `out` as in `torch.sqrt`."""
    if not values.requires_grad:
        return torch.sqrt(values, out=out)
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)
