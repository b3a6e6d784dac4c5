"""Look ahead without disturbing the random state of the training run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the random state back afterwards, so that what is drawn inside is drawn again next.

    Args:
        device: Where the numbers are drawn, besides the CPU.

    Yields:
        Nothing.
    """
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type):
            yield
