"""Several processes that share one fit, such as those of a `torchrun`: what they say to each other.

Every call is a collective one: all processes make it, in the same order. One that cannot go on, because of an error,
says so in the place of its next call, so that no other waits for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

__all__ = ["Processes"]

Value = TypeVar("Value")

# Different values that a message lists.
_LISTED = 4


class Processes:
    """The processes of a group, or this one alone.

    Args:
        group: From `torch.distributed`, of a backend that sends CPU tensors (gloo); None for one process.

    Raises:
        ValueError: If this process is not in the group.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        if group is not None and distributed.get_rank(group) < 0:
            raise ValueError(
                f"the process of rank {distributed.get_rank()} is not in process_group: let only the processes make "
                "this call whose ranks torch.distributed.new_group was given"
            )
        self._group = group
        self._in_step = True
        self.size = 1 if group is None else distributed.get_world_size(group)
        self.rank = 0 if group is None else distributed.get_rank(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and solves."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """End what the processes do together in all of them if it ends with an error in one.

        The others raise that error at their next call of this class, or at the end of this context. An interrupt is
        not passed on: it has to end its process at once, and may have come in the middle of a call.

        Yields:
            Nothing.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
            with self._exchange():
                pass
        except Exception as error:
            shared = self._failure(error) if self._in_step else None
            if shared is not None and repr(shared) != repr(_portable(error)):
                raise shared from error
            raise

    def check_same(self, call: Mapping[str, str]) -> None:
        """Refuse what differs between the processes.

        Args:
            call: Name -> description of what this process was given; the same names everywhere.

        Raises:
            ValueError: In all processes, with what differs.
        """
        calls = self.gather(call)
        differences = []
        for name in call:
            ranks: dict[str, list[str]] = {}
            for rank, other in enumerate(calls):
                ranks.setdefault(other[name], []).append(str(self._global(rank)))
            if len(ranks) > 1:
                found = [f"{value} on rank {', '.join(where)}" for value, where in ranks.items()]
                differences.append(f"{name} ({'; '.join(found[:_LISTED] + ['...'] * (len(found) > _LISTED))})")
        if differences:
            raise ValueError(
                f"the processes of process_group must make the same call, but they differ in {', '.join(differences)}: "
                "give every process all images, all labels and the same settings; the work is dealt out by the call "
                "itself"
            )

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
        with self._exchange():
            distributed.broadcast_object_list(values, src=self._global(0), group=self._group)
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
        with self._exchange():
            if everywhere:
                distributed.all_gather_object(values, value, group=self._group)
                return values
            place = values if self.is_first else None
            distributed.gather_object(value, place, dst=self._global(0), group=self._group)
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
            with self._exchange():
                distributed.all_reduce(tensor, group=self._group)
        return tensor

    def _global(self, rank: int) -> int:
        assert self._group is not None
        return distributed.get_global_rank(self._group, rank)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        if (error := self._failure()) is not None:
            raise error
        # What is cut off in the middle cannot be followed by another exchange.
        self._in_step = False
        yield
        self._in_step = True

    def _failure(self, own: Exception | None = None) -> Exception | None:
        # The error of the first process that has one; None if all go on. With `own` this one has.
        self._in_step = False
        failed = torch.tensor([own is not None], dtype=torch.int32)
        errors: list[Exception | None] = [None] * self.size
        try:
            distributed.all_reduce(failed, op=distributed.ReduceOp.MAX, group=self._group)
            if not failed.item():
                self._in_step = True
                return None
            distributed.all_gather_object(errors, None if own is None else _portable(own), group=self._group)
        except RuntimeError:
            if own is None:
                raise
            return None  # The others have gone: this error is to be seen, not that of the lost connection.
        rank, error = next((rank, error) for rank, error in enumerate(errors) if error is not None)
        error.add_note(f"raised in the process of rank {self._global(rank)}")
        return error


def _portable(error: Exception) -> Exception:
    """Return an error that other processes can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
