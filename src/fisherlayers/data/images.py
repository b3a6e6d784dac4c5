"""Reading one image file: whatever it holds becomes 8-bit grey or RGB, or an error that names the file."""

import os
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels: TypeAlias = NDArray[np.uint8]

IMAGE_SUFFIXES: Final = frozenset((
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
))

MAX_PIXELS: Final = 89_478_485
"""Larger images are refused. It is the size from which Pillow suspects a decompression bomb (256 MiB of RGB)."""


class ImageReadError(ValueError):
    """An image file that cannot be used. The message names the file and the cause."""


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """Read an image file as 8-bit grey or RGB.

    The EXIF orientation is applied, palettes are looked up, transparency is laid over white, 16-bit and
    floating-point grey is scaled to 0..255, CMYK and other colour spaces become RGB. The first frame counts.

    Args:
        path: the file; its content decides the format, not its name.

    Returns:
        (height, width) for grey files, (height, width, 3) for all others.

    Raises:
        ImageReadError: the file is missing, not an image, truncated, larger than `MAX_PIXELS`, or holds NaN.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageReadError(
                    f"it has {width} x {height} pixels; at most {MAX_PIXELS:,} are read: scale it down"
                )
            return to_uint8(ImageOps.exif_transpose(image))
    except Exception as error:  # the decoders raise nearly every kind: OSError, SyntaxError, struct.error, ...
        raise ImageReadError(f"cannot read image {path}: {_cause(path, error)}") from error


def to_uint8(image: Image.Image) -> Pixels:
    """Return the pixels of a Pillow image of any mode as (height, width) grey or (height, width, 3) RGB."""
    if image.mode.startswith(("I", "F")):
        return _scale_to_uint8(np.asarray(image))
    grey = image.mode in {"1", "L", "LA", "La"}
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("L" if grey else "RGB"))


def to_grey(pixels: Pixels) -> Pixels:
    """Return (height, width) luma, ITU-R BT.601, of grey or RGB pixels."""
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def _scale_to_uint8(values: NDArray[np.generic]) -> Pixels:
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ImageReadError("it holds pixels that are NaN or infinite")
    low, high = float(numbers.min()), float(numbers.max())
    if np.issubdtype(values.dtype, np.floating):
        full = 1.0 if high <= 1 else 255.0
    else:
        full = 255.0 if high <= 255 and values.dtype.itemsize > 2 else 65535.0
    if low < 0 or high > full:
        raise ImageReadError(f"its pixels lie in {low:g}..{high:g}; expected 0..1 or 0..255, or 16-bit integers")
    return np.rint(numbers * (255.0 / full)).astype(np.uint8)


def _cause(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "it is a folder"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if path.stat().st_size == 0 else "its content is not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
