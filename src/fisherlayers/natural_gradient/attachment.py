"""Put the parametrizations on the weights of a layer and take them off; the Parameter objects stay."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.parametrization import FisherBias, FisherWeight, Reader, bias_of, fisher_of
from fisherlayers.natural_gradient.pickling import complete_class
from fisherlayers.natural_gradient.rules.rule import Rule, Weight

__all__ = ["Make", "Place", "attach", "detach", "is_host", "order_of", "place_of"]

Make = Callable[[Reader, Layout], FisherWeight]

_ORDER = "_order_before_reconstruction"


class Place(NamedTuple):
    """Where a weight is: the module that holds it, and the name of the tensor there."""

    host: nn.Module
    name: str


def place_of(layer: nn.Module, name: str) -> Place:
    """Return where a layer's weight is.

    Args:
        layer: Any module.
        name: Of the weight, seen from the layer: ``"weight"`` or ``"projection.weight"``.

    Returns:
        The module that holds it, and the last part of the name.
    """
    path, _, last = name.rpartition(".")
    return Place(layer.get_submodule(path), last)


def attach(layer: nn.Module, rule: Rule, weights: Iterable[tuple[Weight, Make]]) -> None:
    """Parametrize weights of a layer and the biases beside them; values stay.

    Args:
        layer: The layer.
        rule: Its rule.
        weights: What to reconstruct, and what makes each local Fisher layer.
    """
    fishers: dict[nn.Module, dict[str, FisherWeight]] = {}
    for weight, make in weights:
        host, name = place_of(layer, weight.name)
        bias = weight.bias if weight.bias is not None and host._parameters.get(weight.bias) is not None else None
        fisher = make(Reader(host, name, bias, weight.part), weight.layout)
        fishers.setdefault(host, {})[name] = fisher
    for host, found in fishers.items():
        _attach(host, found)


def _attach(host: nn.Module, fishers: dict[str, FisherWeight]) -> None:
    shifting: dict[str, list[tuple[str, slice | None]]] = {}
    for fisher in fishers.values():
        reader = fisher.readers[0]
        if reader.bias is not None:
            shifting.setdefault(reader.bias, []).append((reader.weight, reader.part))
    order = list(host._parameters)
    setattr(host, _ORDER, order)
    # Weights first: d is made of b by the weight's mean.
    for name in order:
        if name in fishers:
            parametrize.register_parametrization(host, name, fishers[name], unsafe=True)
    for name in order:
        if name in shifting:
            parametrize.register_parametrization(host, name, FisherBias(host, name, shifting[name]), unsafe=True)
    inner = host._modules["parametrizations"]
    assert inner is not None
    _sort(inner._modules, order)  # so that parameters() gives them in the order of the plain module
    _sort(host._modules, ["parametrizations"])
    complete_class(host)


def detach(host: nn.Module) -> None:
    """Make the weights and biases of a module plain again, as they are.

    Args:
        host: A module with reconstructed weights.
    """
    # torch gives a deep copy the class of its original and takes the property off that class: take a class of our own.
    shared = type(host)
    members = {name: member for name, member in vars(shared).items() if name not in {"__dict__", "__weakref__"}}
    host.__class__ = type(shared.__name__, shared.__bases__, members)
    inner = host._modules["parametrizations"]
    assert inner is not None
    names = [name for name in inner._modules if fisher_of(host, name) or bias_of(host, name)]
    for name in sorted(names, key=lambda name: fisher_of(host, name) is not None):  # biases first: they read weights
        parametrize.remove_parametrizations(host, name, leave_parametrized=True)
    _sort(host._parameters, getattr(host, _ORDER))
    delattr(host, _ORDER)


def is_host(module: nn.Module) -> bool:
    """Return whether a module holds reconstructed weights.

    Args:
        module: Any module.

    Returns:
        True from ``attach`` to ``detach``.
    """
    return _ORDER in vars(module)


def order_of(host: nn.Module) -> list[str]:
    """Return the names of a module's parameters, in the order that the plain module has.

    Args:
        host: A module with reconstructed weights.

    Returns:
        Names of its own parameters.
    """
    return list(getattr(host, _ORDER))


def _sort(members: dict[str, Any], order: list[str]) -> None:
    """Sort in place: first what ``order`` names, then the rest as it was."""
    arranged = {name: members[name] for name in order if name in members} | members
    members.clear()
    members.update(arranged)
