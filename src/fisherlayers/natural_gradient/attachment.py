"""Put the parametrizations on a layer and take them off; the Parameter objects stay."""

from torch import nn
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.inputs import Layer
from fisherlayers.natural_gradient.parametrization import FisherBias, FisherWeight, Settings, originals

__all__ = ["attach", "detach"]


def attach(layer: Layer, settings: Settings) -> None:
    """Parametrize a layer's weight and bias; values stay.

    Args:
        layer: A linear layer or a convolution.
        settings: How its local Fisher layer follows the input.
    """
    parametrize.register_parametrization(layer, "weight", FisherWeight(layer, settings), unsafe=True)
    if layer.bias is not None:
        parametrize.register_parametrization(layer, "bias", FisherBias(layer), unsafe=True)


def detach(layer: nn.Module) -> None:
    """Make weight and bias plain again, as they are.

    Args:
        layer: A reconstructed layer.
    """
    # torch gives a deep copy the class of its original and takes the property off that class: take a class of our own.
    shared = type(layer)
    members = {name: member for name, member in vars(shared).items() if name not in {"__dict__", "__weakref__"}}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
    if originals(layer)[1] is not None:
        parametrize.remove_parametrizations(layer, "bias", leave_parametrized=True)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    layer._parameters["bias"] = layer._parameters.pop("bias")  # behind the weight, as it was
