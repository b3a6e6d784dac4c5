"""Data parallelism: every process sees the inputs of all.

The processes that train a model together are found, not configured: those of the ``DistributedDataParallel`` that runs
a forward pass, or those of the mesh over which ``fully_shard`` has laid a weight. Three things travel, all of them in
the optimizer's step and at observed or refreshed steps only:

- how many inputs every process has pending (and their sum, before there is an origin), in float64;
- the pending sums, in one all-reduce: they add up exactly, however uneven the batches are;
- the new roots, dealt out by their cost and broadcast (``dealing.py``).

So all processes hold the same information, roots and counters, which are what one process would hold that saw the whole
batch. A model in one process takes none of these ways.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fisherlayers.natural_gradient.diagonal import Counts, DiagonalWeight
from fisherlayers.natural_gradient.kronecker import KroneckerWeight
from fisherlayers.natural_gradient.moments import Moments, about
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.sharding import is_sharded
from fisherlayers.natural_gradient.unit import UnitWeight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["by_dtype", "by_group", "check_optimizer", "find_processes", "passed_by", "share_pending"]

_wrappers: MutableMapping[FisherWeight, weakref.ref[DistributedDataParallel]] = weakref.WeakKeyDictionary()
_agreed: weakref.WeakSet[FisherWeight] = weakref.WeakSet()  # whose counters are the same everywhere


def find_processes(fishers: Iterable[FisherWeight]) -> None:
    """Note which processes a training forward pass belongs to; call it from within the pass.

    They stay together as long as the wrapper lives, whatever else is run through the model.

    Args:
        fishers: Local Fisher layers that the pass runs through.

    Raises:
        RuntimeError: If the pass runs under ``DistributedDataParallel.join``.
    """
    wrapper = DistributedDataParallel._active_ddp_module if _initialized() else None
    if wrapper is None:
        return
    if wrapper._join_config.enable:
        raise RuntimeError(
            "a reconstructed model cannot train under DistributedDataParallel.join: a process without data takes no "
            "optimizer step, where the statistics meet. Give every process as many batches (they may be of different "
            "sizes), as DistributedSampler does"
        )
    if any(_wrapper_of(fisher) is not wrapper for fisher in fishers):
        _adopt(wrapper, fishers)


def _adopt(wrapper: DistributedDataParallel, fishers: Iterable[FisherWeight]) -> None:
    own = {module: name for name, module in wrapper.module.named_modules() if isinstance(module, FisherWeight)}
    for module in (*own, *fishers):
        _wrappers[module] = weakref.ref(wrapper)
        _agreed.discard(module)  # a new wrapper has given the first process's weights to all
    for module, name in own.items():
        # They are equal by construction: no broadcast before every forward pass.
        wrapper.parameters_to_ignore.update(f"{name}.{buffer}" for buffer, _ in module.named_buffers())
    wrapper._assign_modules_buffers()  # type: ignore[no-untyped-call]
    _let_go()


@functools.cache
def _let_go() -> None:
    # The first wrapper of a process outlives its last user, in a cycle with a frame of its constructor: when it goes
    # would be left to chance, and another chance in each process.
    gc.collect()


def passed_by(fisher: FisherWeight) -> bool:
    """Return whether the forward pass that runs leaves out the wrapper that the weight is trained under.

    Such a pass, as ``wrapped.module(inputs)`` is, may run in one process only: what it shows does not count.

    Args:
        fisher: A local Fisher layer.

    Returns:
        True if the weight has such a wrapper, and no wrapper runs.
    """
    wrapper = _wrapper_of(fisher) if _initialized() else None
    alone = wrapper is None or wrapper.process_group.size() == 1
    return not alone and DistributedDataParallel._active_ddp_module is None


def _wrapper_of(fisher: FisherWeight) -> DistributedDataParallel | None:
    reference = _wrappers.get(fisher)
    return None if reference is None else reference()


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse what divides parameters among the processes: these step all of them, and wait for each other.

    Args:
        optimizer: One that steps reconstructed weights.

    Raises:
        RuntimeError: For torch's ``ZeroRedundancyOptimizer``.
    """
    if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
        raise RuntimeError(
            "a reconstructed model cannot train with ZeroRedundancyOptimizer, whose processes step different weights: "
            "use the optimizer that it wraps, or fully_shard(model) to divide the optimizer's state"
        )


def share_pending(fishers: Sequence[FisherWeight]) -> None:
    """Give every process the pending sums of all.

    Args:
        fishers: Local Fisher layers, in the same order in every process.
    """
    for group, members in by_group(fishers):
        if group is None:
            continue
        _check(members)
        _agree(members, group)
        due = [fisher for fisher in members if fisher.statistics_due]
        for fisher in members:
            if not fisher.statistics_due:
                fisher.pending = None
        counted = [fisher for fisher in due if isinstance(fisher, DiagonalWeight)]
        others = [fisher for fisher in due if not isinstance(fisher, DiagonalWeight)]
        if counted:
            _share_counts(counted, group)
        if others:
            _share(others, group)


@torch.no_grad()
def _share(fishers: Sequence[FisherWeight], group: ProcessGroup) -> None:
    heads = []
    for fisher in fishers:
        last = torch.zeros_like(fisher.information.second_moment[..., -1], dtype=torch.float64)
        if fisher.pending is not None:
            last = fisher.pending.sums[..., -1].to(torch.float64, copy=True)
            last[..., :-1] += last[..., -1:] * fisher.pending.origin.double()
        heads.append(last if fisher.observed_at < 0 else last[..., -1])  # sum and number of inputs, or the number
    numbers, sums = [], []
    for fisher, head in zip(fishers, _summed(heads, group), strict=True):
        first = fisher.observed_at < 0
        number = head[..., -1:] if first else head.unsqueeze(-1)
        numbers.append(number)
        if not bool(number.any()):
            continue
        origin = (head[..., :-1] / number).to(fisher.mean) if first else fisher.origin.clone()
        empty = torch.zeros_like(fisher.information.second_moment)
        fisher.pending = Moments(origin, empty) if fisher.pending is None else about(fisher.pending, origin)
        sums.append(fisher)
    if sums:
        pending = [fisher.pending for fisher in sums if fisher.pending is not None]
        together = _summed([moments.sums for moments in pending], group)
        for fisher, moments, total in zip(sums, pending, together, strict=True):
            fisher.pending = moments._replace(sums=total)
        _share_gradients([fisher for fisher in sums if isinstance(fisher, KroneckerWeight)], group)


def _share_counts(fishers: Sequence[DiagonalWeight], group: ProcessGroup) -> None:
    empty = [fisher.mean.new_zeros(fisher.mean.shape[-1] + 1) for fisher in fishers]
    sums = [
        zero if fisher.pending is None else fisher.pending.sums for fisher, zero in zip(fishers, empty, strict=True)
    ]
    for fisher, total in zip(fishers, _summed(sums, group), strict=True):
        fisher.pending = Counts(total) if bool(total[-1]) else None


def _share_gradients(fishers: Sequence[KroneckerWeight], group: ProcessGroup) -> None:
    # About the origin 0: the mean of derivatives is small beside their spread.
    found = []
    for fisher in fishers:
        origin = torch.zeros_like(fisher.gradients.second_moment[..., 0])
        size = origin.shape[-1] + 1
        empty = Moments(origin, origin.new_zeros(*origin.shape[:-1], size, size))
        found.append(empty if fisher.pending_gradients is None else about(fisher.pending_gradients, origin))
    if found:
        for fisher, moments, total in zip(fishers, found, _summed([each.sums for each in found], group), strict=True):
            fisher.pending_gradients = moments._replace(sums=total) if bool(total[..., -1, -1].all()) else None


def by_group(fishers: Sequence[FisherWeight]) -> list[tuple[ProcessGroup | None, list[FisherWeight]]]:
    """Sort local Fisher layers by the processes that train them together.

    Args:
        fishers: In the same order in every process.

    Returns:
        Pairs of the processes (None for this one alone) and their layers.
    """
    if not _initialized():
        return [(None, list(fishers))]
    together: dict[ProcessGroup | None, list[FisherWeight]] = {}
    for fisher in fishers:
        together.setdefault(_group_of(fisher), []).append(fisher)
    return list(together.items())


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _group_of(fisher: FisherWeight) -> ProcessGroup | None:
    weight = fisher.weight
    group: ProcessGroup | None
    if is_sharded(weight):
        mesh = weight.device_mesh
        group = mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()
    else:
        wrapper = _wrapper_of(fisher)
        group = None if wrapper is None else wrapper.process_group
    return group if group is not None and group.size() > 1 else None


def _agree(fishers: Sequence[FisherWeight], group: ProcessGroup) -> None:
    """Take the counters of the first process: it may be the only one that has loaded a checkpoint."""
    new = [fisher for fisher in fishers if fisher not in _agreed]
    if new:
        counters = torch.stack([fisher.get_extra_state() for fisher in new]).to(new[0].mean.device)
        dist.broadcast(counters, group=group, group_src=0)
        for fisher, state in zip(new, counters, strict=True):
            fisher.set_extra_state(state)
            _agreed.add(fisher)


def _summed(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    # Over processes, with one all-reduce for each dtype.
    found: dict[int, Tensor] = {}
    for alike in by_dtype(tensors):
        flat = torch.cat([tensor.flatten() for tensor in alike])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [tensor.numel() for tensor in alike])
        found |= {id(tensor): part.view_as(tensor) for tensor, part in zip(alike, parts, strict=True)}
    return [found[id(tensor)] for tensor in tensors]


def _check(fishers: Sequence[FisherWeight]) -> None:
    for fisher in fishers:
        if isinstance(fisher, UnitWeight):
            raise RuntimeError("mode 'unit' trains in one process only: use mode='input' or 'kronecker' with several")
        if is_sharded(fisher.weight) and (fisher.output is not None or fisher.region is not None):
            raise RuntimeError("fully_shard needs mode='input' without a trust region: use it, or train with DDP")


def by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sort tensors by dtype, to communicate each lot at once.

    Args:
        tensors: Any.

    Returns:
        Lists of tensors of one dtype.
    """
    together: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        together.setdefault(tensor.dtype, []).append(tensor)
    return list(together.values())
