"""Pictures of evidence maps: red where an image speaks for a class, blue where it speaks against it."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fisherlayers.report.figures import SOFT, STYLE, svg_bytes

_FOR = np.array([0.78, 0.16, 0.12])
_AGAINST = np.array([0.10, 0.35, 0.70])
_STRONGEST = 0.8


def evidence_overlay(image: ArrayLike, evidence: ArrayLike, *, limit: float | None = None) -> NDArray[np.uint8]:
    """Colour an image, in grey, by the evidence in it.

    Args:
        image: (H, W) grey, (H, W, 1) or (H, W, 3) RGB, bytes or in [0, 1].
        evidence: (H, W).
        limit: magnitude of the evidence that has the full colour, positive; the largest in the map if None.

    Returns:
        (H, W, 3) RGB: red for, blue against, the stronger the more.

    Raises:
        ValueError: the sizes differ, or `limit` is not positive.
    """
    pixels, values = np.asarray(image), np.asarray(evidence, dtype=np.float64)
    if values.ndim != 2 or pixels.shape[:2] != values.shape:
        raise ValueError(f"evidence must have the image's size {pixels.shape[:2]}, got shape {values.shape}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    grey = pixels / (255 if pixels.dtype == np.uint8 else 1)
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    largest = limit if limit is not None else max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    strength = _STRONGEST * np.sqrt(np.minimum(np.abs(values) / largest, 1))[..., None]
    colour = np.where(values[..., None] > 0, _FOR, _AGAINST)
    mixed = (1 - strength) * grey[..., None] + strength * colour
    return np.round(255 * mixed.clip(0, 1)).astype(np.uint8)


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as a PNG file.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def evidence_grid(
    images: Sequence[ArrayLike], evidence: Sequence[ArrayLike], titles: Sequence[str], *, columns: int = 4
) -> bytes:
    """Draw images beside their evidence, each pair under its title.

    Args:
        images: as for `evidence_overlay`.
        evidence: one map an image.
        titles: one an image.
        columns: pairs a row.

    Returns:
        An SVG document.

    Raises:
        ValueError: no image, or not one map and title an image.
    """
    if not len(images) or not len(images) == len(evidence) == len(titles):
        raise ValueError(
            f"expected one map and one title for each of one or more images; got {len(images)} images, "
            f"{len(evidence)} maps and {len(titles)} titles"
        )
    rows = -(-len(images) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns, 1.5 * rows), layout="constrained")
        cells = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
        for axes in cells:
            axes.set_axis_off()
        for index, (image, values, title) in enumerate(zip(images, evidence, titles, strict=True)):
            pixels = np.asarray(image)
            limit = 255 if pixels.dtype == np.uint8 else 1
            left, right = cells[2 * index : 2 * index + 2]
            left.imshow(pixels, cmap="gray", vmin=0, vmax=limit, interpolation="nearest")
            right.imshow(evidence_overlay(pixels, values), interpolation="nearest")
            left.set_title(title, fontsize=7, color=SOFT, pad=3, loc="left", parse_math=False)
        return svg_bytes(figure)
