"""Which local Fisher layer each weight gets: the modes of ``reconstruct``."""

import functools
from typing import Literal

from torch import nn

from fisherlayers.natural_gradient.attachment import Make, place_of
from fisherlayers.natural_gradient.kronecker import KroneckerWeight
from fisherlayers.natural_gradient.parametrization import FisherWeight, Settings
from fisherlayers.natural_gradient.rules.rule import ProductRule, Rule, Weight

__all__ = ["Mode", "Rank", "maker", "trust_of"]

Mode = Literal["input", "kronecker"]
Rank = int | Literal["auto"] | None

_AUTO_RANK = 31  # 32 columns with the mean: matrix products like them
_AUTO_SIZE = 100
_AUTO_TRUST = 0.03  # measured: see benchmarks/README.md


def maker(mode: Mode, settings: Settings, rank: Rank, layer: nn.Module, rule: Rule, weight: Weight) -> Make:
    """Return what makes the local Fisher layer of a weight.

    Args:
        mode: Which information.
        settings: How to follow statistics; its rank is replaced.
        rank: Directions that are treated one by one.
        layer: The layer.
        rule: Of its kind.
        weight: One of the layer's.

    Returns:
        A function of reader and layout.
    """
    *_, outputs, inputs = weight.layout.rows(getattr(*place_of(layer, weight.name))).shape
    settings = settings._replace(rank=_rank_of(inputs, rank))
    if mode == "kronecker" and isinstance(rule, ProductRule):
        return functools.partial(KroneckerWeight, settings=settings, rank=_rank_of(outputs, rank))
    return functools.partial(FisherWeight, settings=settings)


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
    if given == "auto":
        return _AUTO_TRUST if mode == "kronecker" else None
    if given is not None and not (isinstance(given, int | float) and given > 0):
        raise ValueError(f"trust_region must be a positive number, None or 'auto', got {given!r}")
    return given


def _rank_of(size: int, rank: Rank) -> int | None:
    if rank == "auto":
        return _AUTO_RANK if size >= _AUTO_SIZE else None
    return rank
