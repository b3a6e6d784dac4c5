"""Whole models by ``torch.save`` and pickle, which torch refuses for parametrized modules.

Torch gives a parametrized module a class of its own, made at run time, which pickle cannot name. What is saved instead
is the plain class and the names of the parametrized tensors; from these the class is made again.
"""

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.rules.rule import rule_of

__all__ = ["allow_pickling", "complete_class"]


def complete_class(host: nn.Module) -> None:
    """Finish the class that torch has made for a parametrized module: with what its rule adds, and with pickling.

    Args:
        host: A module with reconstructed weights.
    """
    rule = rule_of(host)
    for name, member in rule.members().items() if rule is not None else ():
        setattr(type(host), name, member)
    allow_pickling(type(host))


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
    complete_class(host)
    return host
