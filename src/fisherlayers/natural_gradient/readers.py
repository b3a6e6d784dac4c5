"""Who holds a reconstructed weight and the bias beside it, and under which names."""

from typing import NamedTuple, cast

from torch import Tensor, nn

__all__ = ["Bias", "Reader", "original", "originals", "parametrization_of", "sole_parametrization"]


class Reader(NamedTuple):
    """A module that holds the weight, the names of weight and bias there, and the slice of the bias that it shifts.

    Not ``observed`` is who reads the weight in another way than by multiplying observed inputs with it.
    """

    host: nn.Module
    weight: str
    bias: str | None
    part: slice | None = None
    observed: bool = True


class Bias(NamedTuple):
    """A bias d, and the slice of it that a weight shifts (None: all of it)."""

    parameter: Tensor
    part: slice | None

    def view_of(self, tensor: Tensor) -> Tensor:
        """Return that slice of the bias, of its gradient or of a buffer of an optimizer.

        Args:
            tensor: Of the shape of the bias.

        Returns:
            A view.
        """
        return tensor if self.part is None else tensor[self.part]


def original(host: nn.Module, name: str) -> Tensor | None:
    """Return the parameter behind a parametrized tensor.

    Args:
        host: Any module.
        name: Of its weight or bias.

    Returns:
        W' or d; None if the tensor is not parametrized.
    """
    every = _parametrizations(host, name)
    return None if every is None else every._parameters["original"]


def originals(host: nn.Module, weight: str = "weight", bias: str = "bias") -> tuple[Tensor, Tensor | None]:
    """Return the parameters of a reconstructed weight and its bias.

    Args:
        host: A module with a reconstructed weight.
        weight: Name of the weight.
        bias: Name of the bias.

    Returns:
        W' and d; d is None if there is no reconstructed bias.
    """
    return cast("Tensor", original(host, weight)), original(host, bias)


def parametrization_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the first parametrization of a tensor.

    Args:
        module: Any module.
        name: Of its weight or bias.

    Returns:
        The parametrization; None if there is none.
    """
    every = _parametrizations(module, name)
    return None if every is None else every._modules["0"]


def sole_parametrization(module: nn.Module, name: str) -> tuple[nn.Module | None, Tensor | None]:
    """Return the parametrization of a tensor and the parameter behind it, if there is no other on top of it.

    Args:
        module: Any module.
        name: Of its weight or bias.

    Returns:
        Both; the parametrization alone if others follow; None twice if there is none.
    """
    every = _parametrizations(module, name)
    if every is None:
        return None, None
    return every._modules["0"], every._parameters.get("original") if len(every._modules) == 1 else None


def _parametrizations(module: nn.Module, name: str) -> nn.Module | None:
    # Past the properties and containers on the way: this is looked up at every step.
    every = module._modules.get("parametrizations")
    return None if every is None else every._modules.get(name)
