"""Linear layers: every leading dimension of the input is a batch of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.input_side import linear_forward
from fisherlayers.natural_gradient.rules.rule import Call, ProductRule, Weight, register_rule

__all__ = ["LinearRule"]


class LinearRule(ProductRule):
    """One weight, one bias, the input as it comes."""

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        return [Weight("weight", "bias")]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        inputs = call.argument(0, "input")
        if not isinstance(inputs, Tensor):
            return {}
        if inputs.is_nested:
            inputs = torch.cat([part.flatten(0, -2) for part in inputs.unbind()])
        elif inputs.layout is not torch.strided:
            inputs = inputs.to_dense()
        # A subclass may be called with what its own forward makes inputs of.
        if inputs.ndim == 0 or inputs.shape[-1] != getattr(layer, "in_features", inputs.shape[-1]):
            return {}
        return {"weight": inputs.reshape(-1, inputs.shape[-1])}

    @override
    def members(self) -> Mapping[str, Any]:
        return {"forward": linear_forward}

    @override
    def output_rows(self, layer: nn.Module, gradient: Tensor) -> Tensor:
        return gradient.reshape(-1, gradient.shape[-1])


register_rule(nn.Linear, LinearRule())
