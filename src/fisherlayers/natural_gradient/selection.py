"""Which layers of a model are reconstructed, and what is said about the others."""

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fisherlayers.natural_gradient.places import Place, is_host, place_of
from fisherlayers.natural_gradient.rules.rule import Rule, Weight, rule_of

__all__ = ["Choice", "Selector", "chosen_layers"]

Selector = str | type[nn.Module]

_NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class Choice(NamedTuple):
    """A layer, its rule, and those of its weights that are reconstructed."""

    layer: nn.Module
    rule: Rule
    weights: list[Weight]


def chosen_layers(model: nn.Module, include: Sequence[Selector], exclude: Sequence[Selector]) -> list[Choice]:
    """Choose the weights to reconstruct; one warning names the parametric layers that nobody has a rule for.

    Args:
        model: A plain model.
        include: Patterns of module names, or classes of modules.
        exclude: The same, for what is left alone.

    Returns:
        Layers with at least one weight to reconstruct, in the order of the modules.

    Raises:
        ValueError: If a selector matches nothing, a layer is lazy or reconstructed already, or nothing is left.
    """
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    # A module may be registered under several names; patterns may match any of them.
    aliases = {alias: names[module] for alias, module in model.named_modules(remove_duplicate=False)}
    wanted = _matching(modules, aliases, "include", include) - _matching(modules, aliases, "exclude", exclude)
    rules = {name: rule for name, module in modules.items() if (rule := rule_of(module)) is not None}
    held = {name: _places(modules[name], rule) for name, rule in rules.items()}
    # A weight inside another module is read past that module's own forward, which would never observe an input.
    inner = {names[place.host] for name, places in held.items() for _, place in places if names[place.host] != name}
    asked = tuple(selector for selector in include if isinstance(selector, type))
    choices, left_alone, covered = [], [], set()
    for name, module in modules.items():
        if is_host(module):
            raise ValueError(
                f"the model is reconstructed already (layer {name!r}): call fold(model) first; models that share "
                "layers are reconstructed together, reconstruct(nn.ModuleList([first, second]))"
            )
        if name in wanted and any(is_lazy(p) for p in module._parameters.values() if p is not None):
            raise ValueError(f"layer {name!r} has no weights yet: run one forward pass before reconstruct(model)")
        if name not in wanted or name not in rules or name in inner:
            continue
        unfit = [p for p in module._parameters.values() if p is not None and (p.numel() == 0 or p.is_complex())]
        if unfit:
            what = "complex parameters" if unfit[0].is_complex() else "a parameter without entries"
            raise ValueError(f"layer {name!r} has {what}: leave it out, for example exclude=[{name!r}]")
        if rules[name].optional and not isinstance(module, asked):
            continue
        chosen = [weight for weight, place in held[name] if names[place.host] in wanted and _free(place)]
        if chosen:
            choices.append(Choice(module, rules[name], chosen))
            covered |= {id(getattr(*place_of(module, weight.name))) for weight in chosen}
    for name, module in modules.items():
        own = [p for p in module._parameters.values() if p is not None]
        known = isinstance(module, (*_NORMALIZATIONS, parametrize.ParametrizationList))
        if (own or parametrize.is_parametrized(module)) and name in wanted and not known:
            if any(id(p) in covered for p in own):
                continue
            why = ", parametrized" if parametrize.is_parametrized(module) else ""
            left_alone.append(f"{name} ({type(module).__name__}{why})")
    if not choices:
        raise ValueError("model has no layer to reconstruct: none of a kind that has a rule, or all are left out")
    if left_alone:
        warnings.warn(f"left alone, trained as before: {', '.join(left_alone)}", stacklevel=3)
    return choices


def _places(layer: nn.Module, rule: Rule) -> list[tuple[Weight, Place]]:
    return [(weight, place_of(layer, weight.name)) for weight in rule.weights(layer)]


def _free(place: Place) -> bool:
    return place.host._parameters.get(place.name) is not None and not parametrize.is_parametrized(place.host)


def _matching(
    modules: Mapping[str, nn.Module], aliases: Mapping[str, str], argument: str, selectors: Sequence[Selector]
) -> set[str]:
    if not isinstance(selectors, Sequence) or isinstance(selectors, str):
        what = {str: "the string ", type: "the class "}.get(type(selectors), "")
        raise ValueError(f"{argument} must be a sequence of patterns or classes, got {what}{selectors!r}")
    every: set[str] = set()
    for selector in selectors:
        if isinstance(selector, str):
            kind = "pattern"
            found = {name for alias, name in aliases.items() if fnmatch.fnmatchcase(alias, selector)}
        elif not isinstance(selector, type):
            raise ValueError(f"{argument} holds patterns of module names and classes of modules, got {selector!r}")
        else:
            kind, found = "class", {name for name, module in modules.items() if isinstance(module, selector)}
        if not found:
            raise ValueError(f"{argument}: the {kind} {selector!r} matches no module of {sorted(aliases)}")
        every |= found
    return every
