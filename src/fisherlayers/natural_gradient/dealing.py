"""Every new root is computed by one of the processes that train together, dealt out by cost, and broadcast."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.distributed import by_dtype, by_group
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.root import LowRankRoot, Root

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["deal", "refreshed_together"]


def refreshed_together(fishers: Sequence[FisherWeight]) -> list[Coordinates | None]:
    """Return the coordinates that the information asks for; processes that train together share the work.

    Args:
        fishers: Local Fisher layers with statistics, in the same order in every process.

    Returns:
        For each of them new coordinates, or None if its input never varied.
    """
    found: dict[FisherWeight, Coordinates | None] = {}
    for group, members in by_group(fishers):
        if group is None:
            found |= {fisher: fisher.refreshed() for fisher in members}
        else:
            found |= _refreshed_by(members, group)
    return [found[fisher] for fisher in fishers]


@torch.no_grad()
def _refreshed_by(fishers: Sequence[FisherWeight], group: ProcessGroup) -> dict[FisherWeight, Coordinates | None]:
    owners = deal([_cost(fisher.root) for fisher in fishers], group.size())
    found: dict[FisherWeight, Coordinates | None] = {}
    for process in range(group.size()):
        mine = [fisher for fisher, owner in zip(fishers, owners, strict=True) if owner == process]
        if not mine:
            continue
        blanks = [_blank(fisher) for fisher in mine]
        flags = fishers[0].mean.new_zeros(len(mine))  # whether there are new coordinates
        if group.rank() == process:
            for index, fisher in enumerate(mine):
                new = fisher.refreshed()
                if new is not None:
                    flags[index] = 1.0
                    for blank, value in zip(_tensors(blanks[index]), _tensors(new), strict=True):
                        blank.copy_(value)
        for tensors in by_dtype([flags, *(tensor for blank in blanks for tensor in _tensors(blank))]):
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(flat, group=group, group_src=process)
            for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))
        found |= {
            fisher: blank if bool(flag) else None for fisher, blank, flag in zip(mine, blanks, flags, strict=True)
        }
    return found


def deal(costs: Sequence[float], processes: int) -> list[int]:
    """Deal tasks out to processes: the dearest first, each to the process that has least to do.

    Args:
        costs: Of each task.
        processes: At least 1.

    Returns:
        The process of each task. None has more than twice the least possible maximum to do (Graham 1969: 4/3).
    """
    loads, owners = [0.0] * processes, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def _tensors(coordinates: Coordinates) -> list[Tensor]:
    output = [] if coordinates.output is None else [*coordinates.output.buffers()]
    return [*coordinates.root.buffers(), coordinates.mean, *output]


def _blank(fisher: FisherWeight) -> Coordinates:
    return Coordinates(copy.deepcopy(fisher.root), fisher.mean.clone(), copy.deepcopy(fisher.output))


def _cost(root: Root) -> float:
    buffers = [tensor.shape for tensor in root.buffers()]
    largest = max(buffers, key=lambda shape: shape.numel())
    if isinstance(root, LowRankRoot):
        return float(largest.numel() * largest[-2])  # the sketch: D² r
    return float(largest.numel() * largest[-1])  # D³, or D² for a diagonal
