"""The class that torch makes for a parametrized module, completed: pickling, and reading tensors without detours.

Torch gives a parametrized module a class of its own, made at run time, which pickle cannot name. What is saved instead
is the plain class and the names of the parametrized tensors; from these the class is made again.

A weight that several modules hold has its tensors under several names; transformers, whose files hold no tensor twice,
asks every module which names it may leave out.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.rules.rule import rule_of

__all__ = ["allow_pickling", "complete_class"]


def complete_class(host: nn.Module, names: Iterable[str]) -> None:
    """Finish the class that torch has made for a parametrized module: with what its rule adds, reading and pickling.

    Args:
        host: A module with reconstructed weights.
        names: Of its parametrized tensors.
    """
    rule = rule_of(host)
    for name, member in rule.members().items() if rule is not None else ():
        setattr(type(host), name, member)
    for name in names:
        read_directly(type(host), name)
    setattr(type(host), "_tied_weights_keys", property(_names_held_elsewhere))  # noqa: B010
    allow_pickling(type(host))


def _names_held_elsewhere(host: nn.Module) -> dict[str, str]:
    # Patterns of names, as transformers' models declare them; the values are theirs alone.
    held = dict(getattr(super(type(host), host), "_tied_weights_keys", None) or {})
    for name in host._modules["parametrizations"]._modules:  # type: ignore[union-attr]
        fisher = fisher_of(host, name)
        if fisher is not None and (fisher.readers[0].host, fisher.readers[0].weight) != (host, name):
            held[rf"parametrizations\.{name}\."] = ""
    return held


def read_directly(parametrized: type[nn.Module], name: str) -> None:
    """Let a parametrized tensor be computed without the calls of two modules on the way: they take 50 microseconds.

    Where torch's own way does more (a cache is on, something traces or compiles, hooks, several parametrizations), it
    is taken.

    Args:
        parametrized: The class that torch made.
        name: Of the tensor.
    """
    property_ = vars(parametrized)[name]
    in_full = property_.fget

    def read(module: nn.Module) -> Tensor:
        if parametrize._cache_enabled or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            result: Tensor = in_full(module)
            return result
        every = module._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
        first = every._modules["0"]  # type: ignore[union-attr]
        original = every._parameters.get("original")  # type: ignore[union-attr]
        if original is None or len(every._modules) > 1 or _hooked(every) or _hooked(first):  # type: ignore[arg-type,union-attr]
            result = in_full(module)
            return result
        result = first.forward(original)  # type: ignore[union-attr]
        return result

    setattr(parametrized, name, property(read, property_.fset))


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def allow_pickling(parametrized: type[nn.Module]) -> None:
    """Replace torch's refusal to pickle.

    Args:
        parametrized: The class that torch made.
    """
    if "__getstate__" in vars(parametrized):
        del parametrized.__getstate__
    parametrized.__reduce_ex__ = _reduce  # type: ignore[assignment]


def _reduce(host: nn.Module, protocol: int) -> tuple[Any, ...]:
    names = list(host._modules["parametrizations"]._modules)  # type: ignore[union-attr]
    return _blank, (type(host).__bases__[0], names), host.__getstate__()  # type: ignore[no-untyped-call]


def _blank(plain: type[nn.Module], names: list[str]) -> nn.Module:
    host = plain.__new__(plain)
    parametrize._inject_new_class(host)
    for name in names:
        parametrize._inject_property(host, name)
    complete_class(host, names)
    return host
