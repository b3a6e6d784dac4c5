"""Put the parametrizations on the weights of a layer and take them off; the Parameter objects stay."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.bias import FisherBias, bias_of
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.parametrization import FisherWeight, fisher_of
from fisherlayers.natural_gradient.pickling import complete_class
from fisherlayers.natural_gradient.places import ORDER, holders, place_of
from fisherlayers.natural_gradient.readers import Reader, parametrization_of
from fisherlayers.natural_gradient.rules.rule import Weight
from fisherlayers.natural_gradient.selection import Choice

__all__ = ["Make", "attach", "detach"]

Make = Callable[[Reader, Layout], FisherWeight]


def attach(
    model: nn.Module, choices: Sequence[Choice], make: Callable[[Choice, Weight], Make]
) -> list[tuple[Choice, list[str]]]:
    """Parametrize weights of a model and the biases beside them; values stay.

    A weight that several layers share has one local Fisher layer, which sees the inputs of all of them that use it in
    the same way; whoever else holds the parameter reads the same W.

    Args:
        model: The model.
        choices: Layers, their rules, and which of their weights to reconstruct.
        make: Gives what makes the local Fisher layer of a weight.

    Returns:
        For each choice the names of the weights whose inputs are to be observed there.
    """
    known = holders(model)
    fishers: dict[int, FisherWeight] = {}
    observed: dict[nn.Module, list[str]] = {}
    wanted = [(choice, weight) for choice in choices for weight in choice.weights]
    for choice, weight in sorted(wanted, key=lambda pair: pair[1].diagonal):
        host, name = place_of(choice.layer, weight.name)
        parameter = host._parameters[name]
        beside = None if weight.bias is None else host._parameters.get(weight.bias)
        alone = beside is not None and len(known[id(beside)]) == 1
        reader = Reader(host, name, weight.bias if alone else None, weight.part)
        fisher = fishers.get(id(parameter))
        if fisher is None:
            fishers[id(parameter)] = make(choice, weight)(reader, weight.layout)
        elif fisher.layout == weight.layout and not weight.diagonal:
            fisher.also_read_by(reader)
        else:
            continue
        observed.setdefault(choice.layer, []).append(weight.name)
    hosts: dict[nn.Module, list[tuple[FisherWeight, Reader]]] = {}
    for key, fisher in fishers.items():
        reading = {(reader.host, reader.weight) for reader in fisher.readers}
        for place in known[key]:
            if place not in reading:
                fisher.also_read_by(Reader(place.host, place.name, None, observed=False))
        for reader in fisher.readers:
            hosts.setdefault(reader.host, []).append((fisher, reader))
    for host, found in hosts.items():
        _attach(host, found)
    return [(choice, observed[choice.layer]) for choice in choices if choice.layer in observed]


def _attach(host: nn.Module, found: Sequence[tuple[FisherWeight, Reader]]) -> None:
    fishers = {reader.weight: fisher for fisher, reader in found}
    shifting: dict[str, list[tuple[str, slice | None]]] = {}
    for _, reader in found:
        if reader.bias is not None:
            shifting.setdefault(reader.bias, []).append((reader.weight, reader.part))
    order = list(host._parameters)
    setattr(host, ORDER, order)
    # Weights first: d is made of b by the weight's mean.
    for name in order:
        if name in fishers:
            _register(host, name, fishers[name])
    for name in order:
        if name in shifting:
            _register(host, name, FisherBias(host, name, shifting[name]))
    for name in _out_of_order(host, order):
        _register(host, name, _AsItIs())
    inner = host._modules["parametrizations"]
    assert inner is not None
    _sort(inner._modules, order)  # so that parameters() gives them in the order of the plain module
    _sort(host._modules, ["parametrizations"])
    complete_class(host, list(inner._modules))


def _register(host: nn.Module, name: str, parametrization: nn.Module) -> None:
    # The values stay, since roots start as the identity. Torch gives the parameter new storage all the same, and with
    # that takes off what hangs on its gradient, as DistributedDataParallel does: it gets another parameter for it.
    parameter = cast("nn.Parameter", host._parameters[name])
    host._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    parametrize.register_parametrization(host, name, parametrization, unsafe=True)
    host.get_submodule(f"parametrizations.{name}")._parameters["original"] = parameter


@torch.no_grad()
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
    kept = [name for name in inner._modules if isinstance(parametrization_of(host, name), _AsItIs)]
    names = [name for name in inner._modules if fisher_of(host, name) or bias_of(host, name)]
    for name in kept + sorted(names, key=lambda name: fisher_of(host, name) is not None):  # biases read weights
        plain = getattr(host, name)
        parametrize.remove_parametrizations(host, name, leave_parametrized=False)
        cast("nn.Parameter", host._parameters[name]).copy_(plain)  # in its own storage, see _register
    _sort(host._parameters, getattr(host, ORDER))
    delattr(host, ORDER)


class _AsItIs(nn.Module):
    """The parametrization of a parameter that is not reconstructed, for its place among those that are."""

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter


def _out_of_order(host: nn.Module, order: Sequence[str]) -> list[str]:
    # Parameters of the module itself come before those of its parametrizations: what stood behind one of them in the
    # plain module has to follow it there.
    plain = [name for name in order if host._parameters.get(name) is not None]
    first = next(place for place, name in enumerate(order) if parametrization_of(host, name) is not None)
    return [name for name in plain if order.index(name) > first]


def _sort(members: dict[str, Any], order: list[str]) -> None:
    """Sort in place: first what ``order`` names, then the rest as it was."""
    arranged = {name: members[name] for name in order if name in members} | members
    members.clear()
    members.update(arranged)
