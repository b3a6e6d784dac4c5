"""Plain checkpoints in and out of a reconstructed model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.coordinates import value_from_plain
from fisherlayers.natural_gradient.inputs import to_rows
from fisherlayers.natural_gradient.parametrization import fisher_of, originals

__all__ = ["accept_plain_keys", "plain_state_dict", "refuse_plain_keys"]


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return what ``fold(model).state_dict()`` would: the plain network's keys and values, detached copies.

    Args:
        model: A model, reconstructed or not; it is left as it is.

    Returns:
        Keys and tensors that load into the plain model.
    """
    layers = {name: module for name, module in model.named_modules() if fisher_of(module) is not None}
    inner = {f"{name}.parametrizations." if name else "parametrizations.": name for name in layers}
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        owner = next((prefix for prefix in inner if key.startswith(prefix)), None)
        if owner is None:
            state[key] = value.detach().clone() if isinstance(value, Tensor) else value
            continue
        tensor = key.removeprefix(owner).partition(".")[0]
        outer = owner.removesuffix("parametrizations.") + tensor
        if outer not in state:
            state[outer] = getattr(layers[inner[owner]], tensor).detach().clone()
    return state


def accept_plain_keys(layer: nn.Module) -> None:
    """Let ``load_state_dict`` of a reconstructed layer take the plain layer's keys as well.

    They become W' and d in the coordinates in use; information, root and counters stay.

    Args:
        layer: A reconstructed layer.
    """
    layer.register_load_state_dict_pre_hook(_translate)  # type: ignore[no-untyped-call]


def refuse_plain_keys(layer: nn.Module) -> None:
    """Undo ``accept_plain_keys``.

    Args:
        layer: A layer, or a copy of one, that it was called with.
    """
    hooks: dict[int, Callable[..., None]] = layer._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "hook", hook) is _translate:
            del hooks[key]


def _translate(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    plain = {name: state_dict.pop(prefix + name) for name in ("weight", "bias") if prefix + name in state_dict}
    fisher = fisher_of(layer)
    if not plain or fisher is None:
        return
    with torch.no_grad():
        mine, my_bias = originals(layer)
        weight = plain.get("weight", layer.weight)
        bias = None if my_bias is None else plain.get("bias", layer.bias)
        shapes = {"weight": (weight, mine), "bias": (bias, my_bias)}
        for name, (given, expected) in shapes.items():
            if expected is not None and given.shape != expected.shape:
                raise ValueError(
                    f"{prefix}{name} has shape {tuple(given.shape)} in the checkpoint, "
                    f"{tuple(expected.shape)} in the model"
                )
        rows = to_rows(weight, fisher.groups).to(fisher.mean)
        offsets = None if bias is None else to_rows(bias, fisher.groups).to(fisher.mean)
        moved, moved_bias = value_from_plain(rows, offsets, fisher.coordinates)
        inner = {
            key: value for key, value in layer.state_dict(prefix=prefix).items() if ".parametrizations." in "." + key
        }
        inner[f"{prefix}parametrizations.weight.original"] = moved.reshape(weight.shape).to(weight.dtype)
        if moved_bias is not None:
            inner[f"{prefix}parametrizations.bias.original"] = moved_bias.flatten().to(weight.dtype)
        elif bias is None and "bias" in plain:
            state_dict[prefix + "bias"] = plain["bias"]
        for key, value in inner.items():
            state_dict.setdefault(key, value)
