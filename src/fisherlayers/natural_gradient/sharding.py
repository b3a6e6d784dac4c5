"""Weights that ``fully_shard`` has laid over processes: each holds some of the rows.

Multiplying a weight on the right acts on each row by itself, so most re-expressions need this process's rows only; the
others work on the whole tensors and keep this process's part of the result.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["gathered", "is_sharded", "lay_out", "whole", "writable"]


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is laid over processes.

    Args:
        tensor: Any tensor.

    Returns:
        True for a ``DTensor``.
    """
    module = sys.modules.get("torch.distributed.tensor")  # takes a second to import; who has a DTensor, has done so
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its rows.

    Args:
        tensor: Sharded (then all processes must call this), or not.

    Returns:
        The gathered tensor; a tensor that is not sharded as it is.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def lay_out(model: nn.Module) -> None:
    """Put the sharded parameters in place again: ``fully_shard`` leaves whole ones there after a forward pass.

    Args:
        model: Any model; what is not laid over processes stays as it is.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for part in model.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Let a module hold whole tensors in the place of its sharded parameters; all processes must do so.

    Args:
        module: Any module.

    Yields:
        Nothing.
    """
    sharded: list[tuple[dict[str, Any], str, Tensor]] = [
        (part._parameters, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and is_sharded(parameter)
    ]
    try:
        for holder, name, parameter in sharded:
            holder[name] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
        yield
    finally:
        for holder, name, parameter in sharded:
            holder[name] = parameter


@contextmanager
def writable(tensors: Sequence[Tensor], *, by_rows: bool) -> Iterator[list[Tensor]]:
    """Stand plain tensors in for sharded ones: what is written to them is kept.

    Args:
        tensors: Sharded or not.
        by_rows: Whether rows may be treated one by one: then the plain tensors hold this process's rows only.

    Yields:
        Plain tensors, in the same order; those that are not sharded as they are.
    """
    local = [by_rows and is_sharded(tensor) and all(map(_is_by_rows, tensor.placements)) for tensor in tensors]
    plain = [
        tensor.to_local() if is_sharded(tensor) and mine else whole(tensor)
        for tensor, mine in zip(tensors, local, strict=True)
    ]
    yield plain
    for tensor, mine, written in zip(tensors, local, plain, strict=True):
        if is_sharded(tensor) and not mine:
            from torch.distributed.tensor import DTensor, Replicate

            mesh = tensor.device_mesh
            everywhere = DTensor.from_local(written, mesh, [Replicate()] * mesh.ndim, run_check=False)
            tensor.to_local().copy_(everywhere.redistribute(mesh, tensor.placements).to_local())


def _is_by_rows(placement: object) -> bool:
    from torch.distributed.tensor import Replicate, Shard

    return isinstance(placement, Replicate) or (isinstance(placement, Shard) and placement.dim == 0)
