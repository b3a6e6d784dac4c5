"""Move a weight, its pending gradient and its optimizer's state to other coordinates without moving W and b."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from fisherlayers.natural_gradient.coordinates import (
    Coordinates,
    change_gradient,
    change_value,
    exchanged_gradient,
    exchanged_value,
)
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.sharding import writable
from fisherlayers.precision import full_precision

__all__ = ["move"]

# Buffers by the names that torch.optim and others give them. Linear in the gradients:
_GRADIENTS = frozenset({
    "momentum_buffer",
    "exp_avg",
    "grad_avg",
    "prev",
    "exp_avg_diff",  # Adan
    "previous_grad",
    "exp_avg_slow",  # AdEMAMix
})
# Averages and earlier values of the parameter itself (ASGD; schedule-free optimizers; look-ahead):
_VALUES = frozenset({"ax", "z", "slow_buffer", "lookahead_params"})
# Second moments and step sizes, coordinate by coordinate: they have no exact image and are kept as they are.
_KEPT = frozenset({
    "exp_avg_sq",
    "exp_avg_sq_col",
    "exp_avg_sq_row",
    "exp_avg_var",
    "max_exp_avg_sq",
    "square_avg",
    "acc_delta",
    "sum",
    "exp_inf",
    "step_size",
    "row_var",
    "col_var",
})


@torch.no_grad()
def move(fisher: FisherWeight, new: Coordinates, optimizers: Iterable[Optimizer]) -> None:
    """Enter new coordinates: W and b stay, W', d, gradients and optimizer state are re-expressed.

    Args:
        fisher: A local Fisher layer.
        new: Root, of the structure of the one in use, and mean.
        optimizers: Those that hold its parameters.
    """
    with full_precision(fisher.mean):
        _move(fisher, new, list(optimizers))


def _move(fisher: FisherWeight, new: Coordinates, optimizers: Sequence[Optimizer]) -> None:
    weight, biases = fisher.weight, [bias.parameter for bias in fisher.biases()]
    if weight.grad is not None:
        _move_gradient(fisher, new, weight.grad, [bias.grad for bias in biases])
    moved: set[int] = set()
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            _move_history(fisher, new, optimizer)
            continue
        unknown = []
        for name, buffer in optimizer.state.get(weight, {}).items():
            if isinstance(buffer, list | tuple) and any(isinstance(each, Tensor) for each in buffer):
                unknown.append(name)
            if not isinstance(buffer, Tensor) or buffer.numel() <= 1 or name in _KEPT:
                continue
            if name in _GRADIENTS:
                beside = [_beside(optimizer, weight, bias, name, optimizers) for bias in biases]
                _move_gradient(fisher, new, buffer, beside)
                moved |= {id(each) for each in beside}
            elif name in _VALUES:
                _move_value(fisher, new, buffer, [optimizer.state.get(bias, {}).get(name) for bias in biases])
            else:
                unknown.append(name)
        if unknown:
            warnings.warn(
                f"{type(optimizer).__name__} keeps {', '.join(sorted(unknown))}, which refresh does not know how to "
                "carry to the new coordinates: left as it is",
                stacklevel=2,
            )
    _move_left_behind(fisher, new, optimizers, moved)
    _move_value(fisher, new, weight, biases)
    fisher.enter(new)


def _beside(
    optimizer: Optimizer, weight: Tensor, bias: Tensor, name: str, optimizers: Sequence[Optimizer]
) -> Tensor | None:
    # The bias's buffer beside the weight's: of the same optimizer, or of another that averages in the same way.
    own: Tensor | None = optimizer.state.get(bias, {}).get(name)
    if own is not None:
        return own
    for other in optimizers:
        if weight not in other.state and _averages(other, bias) == _averages(optimizer, weight):
            return cast("Tensor | None", other.state.get(bias, {}).get(name))
    return None


def _averages(optimizer: Optimizer, parameter: Tensor) -> tuple[object, ...] | None:
    for group in optimizer.param_groups:
        if any(each is parameter for each in group["params"]):
            return (type(optimizer), *(group.get(name) for name in ("momentum", "dampening", "betas", "alpha")))
    return None


def _move_left_behind(fisher: FisherWeight, new: Coordinates, optimizers: Sequence[Optimizer], moved: set[int]) -> None:
    """Re-express buffers of biases that did not go along with a weight's, by the root of the outputs."""
    if fisher.output is None:
        return
    for optimizer in optimizers:
        for bias in fisher.biases():
            for name, buffer in optimizer.state.get(bias.parameter, {}).items():
                if name in _GRADIENTS and isinstance(buffer, Tensor) and id(buffer) not in moved:
                    view = bias.view_of(buffer)
                    entry = fisher.layout.entries(view).to(fisher.mean.dtype)
                    view.copy_(exchanged_gradient(entry, fisher.output, new.output).flatten())


def _move_history(fisher: FisherWeight, new: Coordinates, optimizer: torch.optim.LBFGS) -> None:
    """Re-express the flat vectors of L-BFGS: differences of gradients and of values; their products stay."""
    parameters: list[Tensor] = optimizer._params
    state = optimizer.state.get(parameters[0], {})
    starts: dict[int, int] = {}
    for parameter in parameters:
        starts[id(parameter)] = sum(each.numel() for each in parameters[: len(starts)])

    def part(flat: Tensor, parameter: Tensor) -> Tensor | None:
        start = starts.get(id(parameter))
        return None if start is None else flat[start : start + parameter.numel()].view_as(parameter)

    gradients = [state.get("prev_flat_grad"), *(state.get("old_dirs") or [])]
    values = [state.get("d"), *(state.get("old_stps") or [])]
    for vectors, rule in ((gradients, _move_gradient), (values, _move_value)):
        for flat in vectors:
            weight = None if flat is None else part(flat, fisher.weight)
            if weight is not None:
                rule(fisher, new, weight, [part(flat, bias.parameter) for bias in fisher.biases()])


@contextmanager
def _opened(
    fisher: FisherWeight, weight: Tensor, biases: Sequence[Tensor | None]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield a tensor of the weight's shape and parts of those of the biases' shapes, to be written to."""
    present = [(bias, tensor) for bias, tensor in zip(fisher.biases(), biases, strict=True) if tensor is not None]
    by_rows = fisher.layout == Layout() and fisher.output is None and all(bias.part is None for bias, _ in present)
    with writable([weight, *(tensor for _, tensor in present)], by_rows=by_rows) as (plain, *others):
        yield plain, [bias.view_of(other) for (bias, _), other in zip(present, others, strict=True)]


def _move_gradient(fisher: FisherWeight, new: Coordinates, weight: Tensor, biases: Sequence[Tensor | None]) -> None:
    with _opened(fisher, weight, biases) as (opened, beside):
        rows = fisher.layout.rows(opened).to(fisher.mean.dtype)
        entries = [fisher.layout.entries(bias).to(rows) for bias in beside]
        together = torch.stack(entries).sum(0) if len(entries) > 1 else entries[0] if entries else None
        moved, _ = change_gradient(rows, together, fisher.coordinates, new)
        opened.copy_(fisher.layout.tensor(moved, opened.shape))
        if fisher.output is not None:  # without it the bias's gradient stays as it is
            for bias, entry in zip(beside, entries, strict=True):
                bias.copy_(exchanged_gradient(entry, fisher.output, new.output).flatten())


def _move_value(fisher: FisherWeight, new: Coordinates, weight: Tensor, biases: Sequence[Tensor | None]) -> None:
    with _opened(fisher, weight, biases) as (opened, beside):
        rows = fisher.layout.rows(opened).to(fisher.mean.dtype)
        moved, shift = change_value(rows, torch.zeros_like(rows[..., 0]), fisher.coordinates, new)
        opened.copy_(fisher.layout.tensor(moved, opened.shape))
        for bias in beside:
            if fisher.output is not None:
                entry = fisher.layout.entries(bias).to(rows)
                bias.copy_(exchanged_value(entry, fisher.output, new.output).flatten())
            bias.add_(cast("Tensor", shift).flatten())
