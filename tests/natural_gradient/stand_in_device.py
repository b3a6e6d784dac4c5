"""A device made of Python, for what a CPU does not show: where tensors are made, mixing of devices, autocast, waits.

Its numbers lie on the CPU. It refuses to mix devices as CUDA does; its autocast takes products in bfloat16. Torch has
one such device a process, which it then takes for the accelerator: `install` it in a process of its own.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "standin"

aten = torch.ops.aten
_BETWEEN_DEVICES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}  # by indices on the CPU too
_TOGETHER = {aten.cat.default, aten.stack.default}  # numbers of other devices are refused here as well
_PRODUCTS = ["mm", "bmm", "matmul", "addmm", "addmv", "mv", "addr", "baddbmm", "linear"]

float64 = True
"""Whether the device has it: CUDA does, MPS does not."""

calls: Counter[str] = Counter()
"""How often each operation of torch was asked for."""


class StandInTensor(Tensor):
    """A tensor on the device; ``inner`` has the numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "StandInTensor":
        if inner.dtype == torch.float64 and not float64:
            raise TypeError(f"{NAME} has no float64")
        result = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME, 0)
        )
        result.inner = inner
        return result

    def __repr__(self) -> str:
        return f"{NAME}({self.inner})"

    def tolist(self) -> Any:
        """Wait for the numbers; torch refuses this method to all subclasses."""
        calls["_local_scalar_dense"] += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    calls[func.overloadpacket.__name__] += 1
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, StandInTensor)]
    elsewhere = [
        tensor for tensor in tensors if not isinstance(tensor, StandInTensor) and (tensor.ndim > 0 or func in _TOGETHER)
    ]
    if here and elsewhere and func not in _BETWEEN_DEVICES | _INDEXED:
        raise RuntimeError(f"{func}: expected all tensors on one device, got {NAME} and {elsewhere[0].device}")
    target = kwargs.get("device")
    target = torch.device(target).type if target is not None else None
    if target == NAME and kwargs.get("generator") is not None:
        raise RuntimeError(f"expected a {NAME!r} device type for generator but found 'cpu'")
    inner_kwargs = kwargs if target is None else kwargs | {"device": "cpu"}
    inner_kwargs.pop("pin_memory", None)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, StandInTensor) else x, (args, inner_kwargs))
    found = func(*inner_args, **inner_kwargs)
    if target == "cpu" or (target is None and not here) or func is aten._local_scalar_dense.default:
        return found
    if func is aten.copy_.default:
        return args[0]
    if func is aten._to_copy.default and found is inner_args[0]:
        found = found.clone()
    wrapped = tree_map(lambda x: StandInTensor(x) if isinstance(x, Tensor) else x, found)
    if not here:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class OnDevice(TorchDispatchMode):
    """In this context tensors may be made on the device, and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == NAME:
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _low_precision(name: str, *args: Any, **kwargs: Any) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        to = torch.get_autocast_dtype(NAME)
        low = tree_map(lambda x: x.to(to) if isinstance(x, Tensor) and x.dtype == torch.float32 else x, (args, kwargs))
        return getattr(aten, name)(*low[0], **low[1])


def _empty(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    one, other = (tensor.inner if isinstance(tensor, StandInTensor) else tensor for tensor in (source, target))
    other.copy_(one)
    return target


@functools.cache
def install() -> list[torch.library.Library]:
    """Give torch the device, for the rest of the process.

    Returns:
        What it consists of, kept by the cache.
    """
    from torch.utils import backend_registration

    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    kernels.impl("empty_strided", lambda size, stride, *, dtype=None, **_: StandInTensor(_empty(size, stride, dtype)))
    kernels.impl("_copy_from", _copied)
    rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel)
    autocast = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in _PRODUCTS:
        autocast.impl(name, functools.partial(_low_precision, name))
    return [kernels, rest, autocast]
