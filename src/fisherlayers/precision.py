"""What needs its digits: autocast does not round it, and a device without float64 leaves it to the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision", "has_float64", "widened"]

_NOTHING: AbstractContextManager[None] = nullcontext()
_WITHOUT_FLOAT64 = frozenset({"mps"})


def full_precision(where: Tensor | str) -> AbstractContextManager[Any]:
    """Return a context in which autocast on a device does not round.

    Args:
        where: A tensor of the device, or its type.

    Returns:
        Nothing is done where there is no autocast: an exported graph has no trace of it.
    """
    kind = where if isinstance(where, str) else where.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64.

    Args:
        device: Any device.

    Returns:
        False for Apple's MPS.
    """
    return device.type not in _WITHOUT_FLOAT64


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float64.

    Args:
        tensor: Of any floating type.

    Returns:
        On the same device, or on the CPU if that device has no float64.
    """
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()
