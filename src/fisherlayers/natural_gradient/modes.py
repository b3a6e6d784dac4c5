"""Which local Fisher layer each weight gets: the modes of ``reconstruct``."""

import fnmatch
import functools
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Final, Literal, cast

from torch import nn

from fisherlayers.natural_gradient.activations import Activation, activation_after, as_activation
from fisherlayers.natural_gradient.attachment import Make
from fisherlayers.natural_gradient.blocks import BlockWeight
from fisherlayers.natural_gradient.diagonal import DiagonalWeight
from fisherlayers.natural_gradient.following import Settings
from fisherlayers.natural_gradient.kronecker import KroneckerWeight
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.places import place_of
from fisherlayers.natural_gradient.rules.rule import ProductRule, Rule, Weight
from fisherlayers.natural_gradient.selection import Choice
from fisherlayers.natural_gradient.unit import UnitWeight, check_size

__all__ = ["COMPAT", "Mode", "Rank", "activations_of", "maker", "trust_of"]

Mode = Literal["input", "unit", "kronecker"]
Rank = int | Literal["auto"] | None

COMPAT: Final[Mapping[str, Any]] = {
    "mode": "unit",
    "compat": True,
    "damping": 1e-4,
    "decay": 0.995,
    "refresh_every": 100,
    "statistics_every": 1,
}
"""The setting of the authors' released code, for ``reconstruct(model, **COMPAT)`` and plain SGD with batches of 50."""

_AUTO_RANK = 31  # 32 columns with the mean: matrix products like them
_AUTO_SIZE = 100
_AUTO_TRUST = 0.03  # measured: see benchmarks/README.md


def maker(
    mode: Mode,
    settings: Settings,
    rank: Rank,
    layer: nn.Module,
    rule: Rule,
    weight: Weight,
    activation: Activation | None = None,
    *,
    compat: bool = False,
) -> Make:
    """Return what makes the local Fisher layer of a weight.

    Args:
        mode: Which information.
        settings: How to follow statistics; its rank is replaced.
        rank: Directions that are treated one by one.
        layer: The layer.
        rule: Of its kind.
        weight: One of the layer's.
        activation: What follows the layer, in mode ``"unit"``.
        compat: By the rule of the authors' released code, in mode ``"unit"``.

    Returns:
        A function of reader and layout.
    """
    *_, outputs, inputs = weight.layout.rows(getattr(*place_of(layer, weight.name))).shape
    if weight.diagonal:
        return functools.partial(DiagonalWeight, settings=settings._replace(trust=None))
    if settings.block_size is not None and inputs > settings.block_size and _in_blocks(mode, rule, weight):
        return functools.partial(BlockWeight, settings=settings._replace(trust=None))
    settings = settings._replace(rank=_rank_of(inputs, rank), block_size=None)
    if mode == "kronecker" and isinstance(rule, ProductRule):
        return functools.partial(KroneckerWeight, settings=settings, rank=_rank_of(outputs, rank))
    if activation is not None and (compat or activation.name != "linear"):
        return functools.partial(UnitWeight, settings=settings, activation=activation, compat=compat)
    return functools.partial(FisherWeight, settings=settings)


def activations_of(
    model: nn.Module,
    choices: Iterable[Choice],
    given: Mapping[str, str | nn.Module] | None,
    *,
    compat: bool,
) -> dict[nn.Module, Activation]:
    """Return what follows each layer, for mode ``"unit"``.

    Args:
        model: The model.
        choices: The layers to reconstruct.
        given: Patterns of names, and the activations of the layers that match.
        compat: Whether the first and the last layer count as linear, as in the authors' released code.

    Returns:
        Layers that return the product of their one weight, and their activations.

    Raises:
        ValueError: If it cannot be told, a pattern matches no layer, or a layer is too wide for one matrix a unit.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = [choice.layer for choice in choices if isinstance(choice.rule, ProductRule)]
    for pattern in given or {}:
        if not any(fnmatch.fnmatchcase(names[layer], pattern) for layer in layers):
            raise ValueError(f"activations: the pattern {pattern!r} matches no layer of {[names[la] for la in layers]}")
    found = {layer: activation_after(model, names[layer], given) for layer in layers}
    if compat and layers:
        found[layers[0]] = found[layers[-1]] = as_activation("linear")
    unknown = [names[layer] for layer, activation in found.items() if activation is None]
    if unknown:
        raise ValueError(
            f"mode 'unit' cannot tell what follows layers {', '.join(map(repr, unknown))} (it looks at the next module "
            f"of an nn.Sequential): say so, for example activations={{{unknown[0]!r}: 'relu'}}"
        )
    for layer, activation in found.items():
        if activation is not None and activation.name != "linear":
            weight = cast("nn.Parameter", layer.weight)
            check_size(names[layer], len(weight), weight[0].numel())
    return {layer: activation for layer, activation in found.items() if activation is not None}


def trust_of(mode: Mode, given: float | Literal["auto"] | None) -> float | None:
    """Return ρ of the trust region.

    Args:
        mode: Which information.
        given: The argument of ``reconstruct``.

    Returns:
        ρ; None without a trust region.

    Raises:
        ValueError: If it is not a positive number, None or ``"auto"``.
    """
    if mode == "unit" and given is not None and given != "auto":
        raise ValueError(f"trust_region belongs to modes 'input' and 'kronecker', and mode is {mode!r}: leave it out")
    if given == "auto":
        return _AUTO_TRUST if mode == "kronecker" else None
    if given is None:
        return None
    if not (isinstance(given, Real) and given > 0):
        raise ValueError(f"trust_region must be a positive number, None or 'auto', got {given!r}")
    return float(given)


def _in_blocks(mode: Mode, rule: Rule, weight: Weight) -> bool:
    return mode != "unit" and isinstance(rule, ProductRule) and weight.layout.groups == 1


def _rank_of(size: int, rank: Rank) -> int | None:
    if rank == "auto":
        return _AUTO_RANK if size >= _AUTO_SIZE else None
    return None if rank is None else int(rank)
