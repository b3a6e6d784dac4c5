"""What a rule says about a kind of layer, and the registry of rules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fisherlayers.natural_gradient.layout import Layout

__all__ = ["Call", "ProductRule", "Rule", "Weight", "register_rule", "rule_of"]


class Weight(NamedTuple):
    """A weight that gets a local Fisher layer.

    ``name`` is the name of the parameter, seen from the layer (``"weight"``, ``"projection.weight"``). ``bias`` is the
    bias that is added to the same outputs, a parameter of the same module, through which the input can be centred;
    None, or a bias that the layer does not have, leaves the input as it is. ``part`` is the slice of the bias that
    belongs to this weight (None: all of it). The inputs of a ``diagonal`` weight are one-hot: its rule gives for each
    row the place of the 1.
    """

    name: str
    bias: str | None = None
    layout: Layout = Layout()
    part: slice | None = None
    diagonal: bool = False


class Call(NamedTuple):
    """A call of a layer's forward that is observed."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    max_rows: int
    """More rows than this are thinned out; a rule may do it itself, where making rows is expensive."""

    def argument(self, position: int, name: str) -> Any:
        """Return an argument of the call.

        Args:
            position: Where it stands.
            name: Its keyword.

        Returns:
            The argument, None if it was not given.
        """
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)


class Rule(ABC):
    """How a kind of layer is reconstructed: its weights, and the rows that each weight is multiplied with.

    Rules hold no state. Give one to ``register_rule``.

    ``repeats`` says that the layer's forward reads a weight more than once; the weight is then kept while it runs.
    ``optional`` layers are reconstructed only if their class is named in ``include``.
    """

    repeats: bool = False
    optional: bool = False

    @abstractmethod
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        """Return the weights that get a local Fisher layer.

        Args:
            layer: A layer of the kind.

        Returns:
            One entry a weight.
        """

    @abstractmethod
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        """Return what each weight is multiplied with in a call that is about to happen.

        It runs before the layer's forward, at observed steps only, without gradients and with autocast as in the call.
        It must leave the layer, its arguments and the random state as they are.

        Args:
            layer: The layer.
            call: What its forward is called with.

        Returns:
            Rows (N, D) by the weight's name, or (groups, N, D) for a layout with several groups; weights that are left
            out are not observed this time. Rows (groups, N, D) for a layout without groups give every block of outputs
            an information of its own from then on. For a diagonal weight whole numbers, (N,).
        """

    def members(self) -> Mapping[str, Any]:
        """Return attributes for the class of a reconstructed layer, where the layer keeps copies of its weights.

        Returns:
            By name; none by default.
        """
        return {}

    def restore(self, layer: nn.Module) -> None:  # noqa: B027
        """Bring copies of its weights that a layer keeps up to date; called when it has been made plain again.

        Args:
            layer: The plain layer.
        """


class ProductRule(Rule):
    """A rule for layers that return the product of their one weight, bias added: for these there is a second side."""

    @abstractmethod
    def output_rows(self, layer: nn.Module, gradient: Tensor) -> Tensor:
        """Return the derivatives of the loss by the products of the weight.

        Args:
            layer: The layer.
            gradient: Derivative of the loss by what its forward returned.

        Returns:
            Rows (N, out), or (groups, N, out / groups) for a layout with several groups.
        """


_rules: dict[type[nn.Module], Rule] = {}


def register_rule(layer_type: type[nn.Module], rule: Rule) -> None:
    """Teach ``reconstruct`` a kind of layer.

    The rule holds for subclasses as well, unless they have one of their own. It replaces an earlier rule.

    Args:
        layer_type: The class of the layers.
        rule: Which weights they have, and what these are multiplied with.

    Raises:
        TypeError: If ``layer_type`` is no class of modules, or ``rule`` no instance of ``Rule``.

    Example:
        >>> import torch
        >>> from fisherlayers import reconstruct, register_rule
        >>> from fisherlayers.natural_gradient import Layout, Rule, Weight
        >>> class Dense(torch.nn.Module):
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.kernel = torch.nn.Parameter(torch.randn(inputs, outputs))
        ...         self.offset = torch.nn.Parameter(torch.zeros(outputs))
        ...     def forward(self, x):
        ...         return x @ self.kernel + self.offset
        >>> class DenseRule(Rule):
        ...     def weights(self, layer):
        ...         return [Weight("kernel", "offset", Layout(transposed=True))]
        ...     def input_rows(self, layer, call):
        ...         return {"kernel": call.argument(0, "x").flatten(0, -2)}
        >>> register_rule(Dense, DenseRule())
        >>> model = reconstruct(torch.nn.Sequential(Dense(4, 8), torch.nn.Tanh(), Dense(8, 2)))
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise TypeError(f"layer_type must be a class of torch.nn.Module, got {layer_type!r}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be an instance of a fisherlayers.natural_gradient.Rule, got {rule!r}")
    _rules[layer_type] = rule


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule for a layer.

    Args:
        layer: Any module.

    Returns:
        The rule of the nearest base class that has one; None if there is none.
    """
    return next((_rules[base] for base in type(layer).__mro__ if base in _rules), None)
