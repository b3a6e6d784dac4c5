"""Following the training loop from outside: inputs by a forward pre-hook, steps by a hook of torch's optimizers.

No training loop has to change, and nothing holds on to a model: parameters and layers are found through weak
references, filled by ``watch`` and again by each training forward (so copies and loaded models work).
"""

import weakref
from collections.abc import MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from fisherlayers.natural_gradient.inputs import Layer
from fisherlayers.natural_gradient.parametrization import FisherWeight, fisher_of, originals
from fisherlayers.natural_gradient.transport import move

__all__ = ["refresh_layer", "unwatch", "watch"]

_layers: MutableMapping[Any, weakref.ref[nn.Module]] = WeakIdKeyDictionary()  # W' -> weak reference to its layer


def watch(layer: nn.Module) -> None:
    """Follow a reconstructed layer from now on.

    Args:
        layer: A reconstructed layer.
    """
    layer.register_forward_pre_hook(_before_forward, with_kwargs=True)
    _remember(layer)


def unwatch(layer: nn.Module) -> None:
    """Stop following a layer.

    Args:
        layer: A layer that ``watch`` was called with, or a copy of one.
    """
    _layers.pop(originals(layer)[0], None)
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _before_forward:
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)


def refresh_layer(layer: nn.Module, fisher: FisherWeight, optimizers: tuple[Optimizer, ...]) -> None:
    """Recompute the root of a layer from its information, and enter the new coordinates.

    Args:
        layer: A reconstructed layer.
        fisher: Its local Fisher layer, with statistics.
        optimizers: Those that hold its parameters.
    """
    bias = originals(layer)[1]
    new = fisher.refreshed(centred=bias is not None and bias.requires_grad)
    if new is not None:
        move(layer, fisher, new, optimizers)
    fisher.refreshed_at = fisher.steps


def _remember(layer: nn.Module) -> None:
    weight = originals(layer)[0]
    known = _layers.get(weight)
    if known is None or known() is not layer:
        _layers[weight] = weakref.ref(layer)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _before_forward(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not (layer.training and torch.is_grad_enabled()):
        return
    fisher = fisher_of(layer)
    if fisher is None or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    _remember(layer)
    inputs = args[0] if args else kwargs.get("input")
    if fisher.statistics_due and isinstance(inputs, Tensor) and originals(layer)[0].requires_grad:
        fisher.observe(cast("Layer", layer), inputs)


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            reference = _layers.get(parameter)
            layer = None if reference is None else reference()
            fisher = None if layer is None else fisher_of(layer)
            if layer is None or fisher is None or originals(layer)[0] is not parameter:
                continue
            if fisher.refresh_due:
                refresh_layer(layer, fisher, (optimizer,))
            fisher.steps += 1


register_optimizer_step_pre_hook(_before_step)
