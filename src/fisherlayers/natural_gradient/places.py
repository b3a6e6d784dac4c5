"""Where weights are: the modules that hold them, and under which names."""

from typing import NamedTuple

from torch import nn

__all__ = ["ORDER", "Place", "holders", "is_host", "order_of", "place_of"]

ORDER = "_order_before_reconstruction"


class Place(NamedTuple):
    """The module that holds a weight, and the name of the tensor there."""

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
    return Place(layer.get_submodule(path) if path else layer, last)


def holders(model: nn.Module) -> dict[int, list[Place]]:
    """Return who holds each parameter: several modules, if it is shared.

    Args:
        model: Any model.

    Returns:
        Places by the ``id`` of the parameter.
    """
    found: dict[int, list[Place]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(Place(module, name))
    return found


def is_host(module: nn.Module) -> bool:
    """Return whether a module holds reconstructed weights.

    Args:
        module: Any module.

    Returns:
        True from ``attach`` to ``detach``.
    """
    return ORDER in vars(module)


def order_of(host: nn.Module) -> list[str]:
    """Return the names of a module's parameters, in the order that the plain module has.

    Args:
        host: A module with reconstructed weights.

    Returns:
        Names of its own parameters.
    """
    return list(getattr(host, ORDER))
