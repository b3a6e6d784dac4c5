"""How much a unit's output tells about its weights: the relative Fisher information of one unit.

A unit with pre-activation z = w · x̃ and output y = f(z) + noise has the information E[ν(z) x̃ x̃ᵀ] about w, where ν is
the information of y about z (Sun and Nielsen, "Relative Fisher Information and Natural Gradient for Learning Large
Modular Models", ICML 2017). A Gaussian output of unit variance has ν = f'(z)²; a Bernoulli output has the variance of
its log-odds' derivative. The hard ReLU is taken as the soft one, ln(1 + e^z), as the authors' released code does:
a unit that is off for most inputs keeps some information.

==============  =======================================  ==============================================
name            ν(z)                                     output
==============  =======================================  ==============================================
``linear``      1                                        Gaussian
``relu``        σ(z)²                                    Gaussian around ln(1 + e^z)
``leaky_relu``  (ι + (1 - ι) σ((1 - ι) z))²              Gaussian around ln(e^(ι z) + e^z), slope ι
``elu``         1 for z ≥ 0, else (α e^z)²               Gaussian
``sigmoid``     σ(z) (1 - σ(z))                          Bernoulli in {0, 1}
``tanh``        1 - tanh(z)²                             Bernoulli in {-1, 1}
==============  =======================================  ==============================================
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Activation", "activation_after", "as_activation"]

_PASSED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


def _linear(z: Tensor, _: float) -> Tensor:
    return torch.ones_like(z)


def _leaky(z: Tensor, slope: float) -> Tensor:
    return (slope + (1 - slope) * torch.sigmoid((1 - slope) * z)).square()


def _elu(z: Tensor, alpha: float) -> Tensor:
    return torch.where(z >= 0, 1.0, alpha * z.clamp_max(0).exp()).square()


def _sigmoid(z: Tensor, _: float) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _tanh(z: Tensor, _: float) -> Tensor:
    return 1 - torch.tanh(z).square()


_WEIGHTS: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "linear": (_linear, 0.0),
    "relu": (_leaky, 0.0),
    "leaky_relu": (_leaky, 0.01),
    "elu": (_elu, 1.0),
    "sigmoid": (_sigmoid, 0.0),
    "tanh": (_tanh, 0.0),
}


@dataclass(frozen=True)
class Activation:
    """What follows a layer.

    Attributes:
        name: One of the table's.
        parameter: The slope of a leaky ReLU, the α of an ELU; of no meaning for the others.
    """

    name: str
    parameter: float

    def weight(self, z: Tensor) -> Tensor:
        """Return ν(z).

        Args:
            z: Pre-activations, of any shape.

        Returns:
            The information of one output about its pre-activation, of the same shape.
        """
        return _WEIGHTS[self.name][0](z, self.parameter)


def as_activation(given: str | nn.Module) -> Activation:
    """Return the activation that a name or a module stands for.

    Args:
        given: A name of the table, or a module: ``nn.ReLU``, ``nn.LeakyReLU``, ``nn.ELU``, ``nn.Sigmoid``, ``nn.Tanh``,
            ``nn.Identity``.

    Returns:
        The activation.

    Raises:
        ValueError: If it stands for none.
    """
    if isinstance(given, nn.LeakyReLU):
        return Activation("leaky_relu", given.negative_slope)
    if isinstance(given, nn.ELU):
        return Activation("elu", given.alpha)
    kinds = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Identity: "linear"}
    name = given if isinstance(given, str) else kinds.get(type(given))
    if name not in _WEIGHTS:
        raise ValueError(f"activation must be one of {sorted(_WEIGHTS)} or a module of that kind, got {given!r}")
    return Activation(name, _WEIGHTS[name][1])


def activation_after(
    model: nn.Module, layer: str, given: Mapping[str, str | nn.Module] | None = None
) -> Activation | None:
    """Return the activation that follows a layer.

    Args:
        model: Any model.
        layer: Name of the layer in it.
        given: Patterns of layer names, as ``fnmatch`` reads them, and the activation of each; the first match counts.

    Returns:
        The given one; else that of the next module, dropout passed over, if the layer stands in an ``nn.Sequential``;
        ``linear`` if it is the last one of the whole model; None if it cannot be told.
    """
    for pattern, activation in (given or {}).items():
        if fnmatch.fnmatchcase(layer, pattern):
            return as_activation(activation)
    if not layer:
        return as_activation("linear")
    owner, _, name = layer.rpartition(".")
    parent = model.get_submodule(owner)
    if not isinstance(parent, nn.Sequential):
        return None
    children = list(parent.named_children())
    position = [child for child, _ in children].index(name)
    for _, module in children[position + 1 :]:
        if not isinstance(module, _PASSED):
            try:
                return as_activation(module)
            except ValueError:
                return None
    return as_activation("linear") if parent is model else None
