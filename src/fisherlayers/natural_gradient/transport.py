"""Move a layer, its pending gradient and its optimizer's state to other coordinates without moving W and b."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisherlayers.natural_gradient.coordinates import Coordinates, change_gradient, change_value
from fisherlayers.natural_gradient.inputs import to_rows
from fisherlayers.natural_gradient.parametrization import FisherWeight, originals

__all__ = ["move"]

# Buffers by the names that torch.optim gives them. Linear in the gradients:
_GRADIENTS = frozenset({"momentum_buffer", "exp_avg", "grad_avg", "prev"})
# Averages of the parameter itself (ASGD):
_VALUES = frozenset({"ax"})
# Second moments and step sizes, coordinate by coordinate: they have no exact image and are kept as they are.
_KEPT = frozenset({
    "exp_avg_sq",
    "max_exp_avg_sq",
    "square_avg",
    "acc_delta",
    "sum",
    "exp_inf",
    "step_size",
    "row_var",
    "col_var",
})

_Change = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@torch.no_grad()
def move(layer: nn.Module, fisher: FisherWeight, new: Coordinates, optimizers: Iterable[Optimizer]) -> None:
    """Enter new coordinates: W and b stay, W', d, gradients and optimizer state are re-expressed.

    Args:
        layer: A reconstructed layer.
        fisher: Its local Fisher layer.
        new: Root, of the structure of the one in use, and mean.
        optimizers: Those that hold its parameters.
    """
    old = fisher.coordinates
    weight, bias = originals(layer)

    def change(weights: Tensor, biases: Tensor | None, rule: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
        rows = to_rows(weights, fisher.groups).to(fisher.mean.dtype)
        offsets = None if biases is None else to_rows(biases, fisher.groups).to(fisher.mean.dtype)
        moved, moved_offsets = rule(rows, offsets, old, new)
        return moved.reshape(weights.shape), None if moved_offsets is None else moved_offsets.flatten()

    if weight.grad is not None:
        weight.grad.copy_(change(weight.grad, None if bias is None else bias.grad, change_gradient)[0])
    for optimizer in optimizers:
        held = optimizer.state.get(weight, {})
        beside = {} if bias is None else optimizer.state.get(bias, {})
        unknown = []
        for name, buffer in held.items():
            if not isinstance(buffer, Tensor) or buffer.numel() <= 1 or name in _KEPT:
                continue
            if name in _GRADIENTS:
                buffer.copy_(change(buffer, beside.get(name), change_gradient)[0])
            elif name in _VALUES:
                moved, moved_bias = change(buffer, beside.get(name), change_value)
                buffer.copy_(moved)
                if moved_bias is not None:
                    beside[name].copy_(moved_bias)
            else:
                unknown.append(name)
        if unknown:
            warnings.warn(
                f"{type(optimizer).__name__} keeps {', '.join(sorted(unknown))}, which refresh does not know how to "
                "carry to the new coordinates: left as it is",
                stacklevel=2,
            )
    moved, moved_bias = change(weight, bias, change_value)
    weight.copy_(moved)
    if bias is not None and moved_bias is not None:
        bias.copy_(moved_bias)
    fisher.enter(new)
