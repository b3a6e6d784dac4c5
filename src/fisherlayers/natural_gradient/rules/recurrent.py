"""Recurrent layers and cells: one information for all gates on the input side, one on the recurrent side.

Each side has its own bias, and each bias takes up the mean of its own side. The inputs of the inner layers and the
hidden states that the recurrent weights meet are found by running the network once more, layer by layer, without
gradients and with the same random numbers, and so with the same dropout between the layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from fisherlayers.natural_gradient.rules.randomness import random_state_kept
from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule

__all__ = ["CellRule", "RecurrentRule"]


class CellRule(Rule):
    """``LSTMCell``, ``GRUCell`` and ``RNNCell``."""

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        return [Weight("weight_ih", "bias_ih"), Weight("weight_hh", "bias_hh")]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        cell, inputs, hidden = cast("nn.RNNCellBase", layer), call.argument(0, "input"), call.argument(1, "hx")
        rows = inputs.reshape(-1, cell.input_size)
        if hidden is None:
            hidden = rows.new_zeros(len(rows), cell.hidden_size)
        elif isinstance(cell, nn.LSTMCell):
            hidden = hidden[0]
        return {"weight_ih": rows, "weight_hh": hidden.reshape(-1, cell.hidden_size)}


class RecurrentRule(Rule):
    """``LSTM``, ``GRU`` and ``RNN``: any number of layers, both directions, projections, packed sequences."""

    repeats = True

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        found = []
        for suffix in _suffixes(cast("nn.RNNBase", layer)):
            found += [
                Weight(f"weight_ih{suffix}", f"bias_ih{suffix}"),
                Weight(f"weight_hh{suffix}", f"bias_hh{suffix}"),
            ]
            if hasattr(layer, f"weight_hr{suffix}"):
                found.append(Weight(f"weight_hr{suffix}"))
        return found

    @override
    def members(self) -> Mapping[str, Any]:
        # The layer keeps a list of its weights and computes with that: make it look the weights up instead.
        return {
            "_flat_weights": property(_weights_in_place, lambda layer, value: None),
            "_init_flat_weights": lambda layer: None,
            "_update_flat_weights": lambda layer: None,
            "flatten_parameters": lambda layer: None,
        }

    @override
    def restore(self, layer: nn.Module) -> None:
        cast("nn.RNNBase", layer)._init_flat_weights()

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        recurrent = cast("nn.RNNBase", layer)
        given = _given(recurrent, call)
        directions = 2 if recurrent.bidirectional else 1
        suffixes = list(_suffixes(recurrent))
        steps = _Steps.of(given.sizes)
        rows: dict[str, Tensor] = {}
        inputs = given.data
        with random_state_kept(inputs.device):
            for depth in range(recurrent.num_layers):
                here = slice(depth * directions, (depth + 1) * directions)
                start = [state[here].contiguous() for state in given.start]
                outputs = _one_layer(recurrent, suffixes[here], inputs, given.sizes, start)
                for index, suffix in enumerate(suffixes[here]):
                    output = outputs.chunk(directions, -1)[index]
                    before = steps.before(output, start[0][index], reverse=index == 1)
                    rows[f"weight_ih{suffix}"], rows[f"weight_hh{suffix}"] = inputs, before
                    if recurrent.proj_size > 0:
                        gates = _gates(recurrent, suffix, inputs, before)
                        rows[f"weight_hr{suffix}"] = steps.unprojected(gates, start[1][index], reverse=index == 1)
                inputs = torch.nn.functional.dropout(outputs, recurrent.dropout, recurrent.training)
        return rows


class _Given(NamedTuple):
    """A call in packed form: data (N, D), time by time; batch sizes; start of hidden (and cell) states."""

    data: Tensor
    sizes: Tensor
    start: list[Tensor]


class _Steps(NamedTuple):
    """For each row of packed data its time and its place in the batch of that time."""

    sizes: Tensor
    offsets: Tensor
    times: Tensor
    places: Tensor

    @staticmethod
    def of(sizes: Tensor) -> "_Steps":
        offsets = sizes.cumsum(0) - sizes
        times = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        return _Steps(sizes, offsets, times, torch.arange(len(times), device=sizes.device) - offsets[times])

    def before(self, states: Tensor, start: Tensor, *, reverse: bool) -> Tensor:
        """Return the state that each row comes from: of the time before, or after if reversed, or the start."""
        times = self.times + (1 if reverse else -1)
        inside = (times >= 0) & (times < len(self.sizes))
        times = times.clamp(0, len(self.sizes) - 1)
        inside &= self.places < self.sizes[times]
        index = torch.where(inside, self.offsets[times] + self.places, 0).to(states.device)
        return torch.where(inside.to(states.device).unsqueeze(1), states[index], start[self.places.to(start.device)])

    def unprojected(self, gates: Tensor, start: Tensor, *, reverse: bool) -> Tensor:
        """Return an LSTM's hidden states before the projection, from its gates before their nonlinearities."""
        entering, forgetting, candidate, leaving = gates.chunk(4, -1)
        gained, kept = entering.sigmoid() * candidate.tanh(), forgetting.sigmoid()
        cells, cell = torch.empty_like(gained), start.clone()
        order = range(len(self.sizes))
        for time in reversed(order) if reverse else order:
            size, offset = int(self.sizes[time]), int(self.offsets[time])
            rows = slice(offset, offset + size)
            cell[:size] = kept[rows] * cell[:size] + gained[rows]
            cells[rows] = cell[:size]
        return leaving.sigmoid() * cells.tanh()


def _suffixes(layer: nn.RNNBase) -> Iterator[str]:
    for depth in range(layer.num_layers):
        yield f"_l{depth}"
        if layer.bidirectional:
            yield f"_l{depth}_reverse"


def _weights_in_place(layer: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(layer, name, None) for name in layer._flat_weights_names]


def _given(layer: nn.RNNBase, call: Call) -> _Given:
    inputs, hidden = call.argument(0, "input"), call.argument(1, "hx")
    states = None if hidden is None else list(hidden) if isinstance(hidden, tuple) else [hidden]
    if isinstance(inputs, PackedSequence):
        data, sizes = inputs.data, inputs.batch_sizes
        if states is not None and inputs.sorted_indices is not None:
            states = [state.index_select(1, inputs.sorted_indices) for state in states]
    else:
        if inputs.ndim == 2:  # without batch
            inputs, states = inputs.unsqueeze(1), None if states is None else [state.unsqueeze(1) for state in states]
        elif layer.batch_first:
            inputs = inputs.transpose(0, 1)
        data, sizes = inputs.flatten(0, 1), torch.full((len(inputs),), inputs.shape[1], device="cpu")
    if states is None:
        number = layer.num_layers * (2 if layer.bidirectional else 1)
        widths = [layer.proj_size or layer.hidden_size] + [layer.hidden_size] * (layer.mode == "LSTM")
        states = [data.new_zeros(number, int(sizes[0]), width) for width in widths]
    return _Given(data, sizes, states)


def _one_layer(layer: nn.RNNBase, suffixes: list[str], data: Tensor, sizes: Tensor, start: list[Tensor]) -> Tensor:
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    kinds += ["weight_hr"] if layer.proj_size > 0 else []
    weights = [getattr(layer, kind + suffix) for suffix in suffixes for kind in kinds]
    run = getattr(torch._VF, layer.mode.lower())
    first = tuple(start) if layer.mode == "LSTM" else start[0]
    return run(data, sizes, first, weights, layer.bias, 1, 0.0, False, layer.bidirectional)[0]


def _gates(layer: nn.RNNBase, suffix: str, inputs: Tensor, hidden: Tensor) -> Tensor:
    biases = [getattr(layer, f"bias_{side}{suffix}") if layer.bias else None for side in ("ih", "hh")]
    linear = torch.nn.functional.linear
    sides = zip((inputs, hidden), ("ih", "hh"), biases, strict=True)
    first, second = (linear(rows, getattr(layer, f"weight_{side}{suffix}"), bias) for rows, side, bias in sides)
    return first + second


register_rule(nn.RNNCellBase, CellRule())
for _kind in (nn.RNN, nn.LSTM, nn.GRU):
    register_rule(_kind, RecurrentRule())
