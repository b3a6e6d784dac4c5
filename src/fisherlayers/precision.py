"""The arithmetic of the modules is that of their parameters, also under the caller's autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision"]

_NOTHING: AbstractContextManager[None] = nullcontext()


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast on a tensor's device does not round.

    Args:
        tensor: Of the device.

    Returns:
        Nothing is done where there is no autocast: an exported graph has no trace of it.
    """
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING
