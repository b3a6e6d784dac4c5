"""Images as other networks take them: resampled, with one or three channels, standardised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fisherlayers.fisher_vectors.setting_values import as_whole_number

__all__ = ["check_pixels", "check_size", "resampled", "standardised", "with_channels"]


def check_pixels(channels: int, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
    """Refuse what no network takes.

    Args:
        channels: As for `module_outputs`.
        mean: As for `module_outputs`.
        std: As for `module_outputs`.

    Raises:
        ValueError: If ``channels`` is neither 1 nor 3, ``mean`` or ``std`` neither one finite number nor one a channel,
            or a standard deviation is not positive.
    """
    if channels not in {1, 3}:
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    for name, value in (("mean", mean), ("std", std)):
        try:
            numbers = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.array(np.nan)
        if numbers.shape not in {(), (1,), (channels,)} or not np.isfinite(numbers).all():
            raise ValueError(f"{name} must be one number, or one for each of {channels} channels, got {value!r}")
    if not (numbers > 0).all():
        raise ValueError(f"std must be positive, got {std}")


def check_size(name: str, size: Any) -> None:
    """Refuse a size to which no image can be resampled.

    Args:
        name: Of the argument.
        size: (H, W), or None.

    Raises:
        ValueError: If it is neither.
    """
    if size is None:
        return
    try:
        height, width = size
        fits = as_whole_number(name, height) >= 1 and as_whole_number(name, width) >= 1
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name} must be (H, W) in pixels, each 1 or more, got {size!r}")


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) with the channels that a network takes: `channels` of `module_outputs`."""
    return pixels.expand(-1, 3, -1, -1) if channels == 3 else pixels.mean(dim=1, keepdim=True)


def resampled(pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return images (B, C, h, w) resampled to (B, C, *size); None leaves them."""
    if size is None or tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return interpolate(pixels, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)


def standardised(pixels: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Return (x - mean) / std of pixels (B, C, H, W), channel by channel."""
    shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    return (pixels - shift) / scale
