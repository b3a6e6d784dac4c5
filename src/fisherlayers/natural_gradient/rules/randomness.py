"""Look ahead without disturbing the random state of the training run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the random state back afterwards, so that what is drawn inside is drawn again next.

    Args:
        device: Where the numbers are drawn, besides the CPU: a CUDA or XPU device. Others have no state that torch can
            fork; there the run goes on with other numbers.

    Yields:
        Nothing.
    """
    devices = [device] if device.type in {"cuda", "xpu"} else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        yield
