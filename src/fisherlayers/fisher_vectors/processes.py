"""Several processes that share one fit, such as those of a `torchrun`: what they say to each other.

Every call is a collective one: all processes make it, in the same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, distributed

__all__ = ["Processes"]

Value = TypeVar("Value")


class Processes:
    """The processes of a group, or this one alone.

    Args:
        group: From `torch.distributed`, of a backend that sends CPU tensors (gloo); None for one process.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = 1 if group is None else distributed.get_world_size(group)
        self.rank = 0 if group is None else distributed.get_rank(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and solves."""
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """Send a value of the first process to all.

        Args:
            value: The first process's; that of the others does not count.

        Returns:
            The first process's value.
        """
        if self.size == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=self._first(), group=self._group)
        return values[0]

    def gather(self, value: Value, *, everywhere: bool = True) -> list[Value]:
        """Collect a value of every process.

        Args:
            value: This process's.
            everywhere: Whether every process gets them, or only the first.

        Returns:
            The values by rank; nothing in the other processes if not ``everywhere``.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        if everywhere:
            distributed.all_gather_object(values, value, group=self._group)
            return values
        distributed.gather_object(value, values if self.is_first else None, dst=self._first(), group=self._group)
        return values if self.is_first else []

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes.

        Args:
            tensor: Of one shape everywhere.

        Returns:
            The sum, the same bits everywhere.
        """
        if self.size > 1:
            tensor = tensor.to("cpu", copy=True)
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def _first(self) -> int:
        assert self._group is not None
        return distributed.get_global_rank(self._group, 0)
