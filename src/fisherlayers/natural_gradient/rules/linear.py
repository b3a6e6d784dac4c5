"""Linear layers: every leading dimension of the input is a batch of rows."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule

__all__ = ["LinearRule"]


class LinearRule(Rule):
    """One weight, one bias, the input as it comes."""

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        return [Weight("weight", "bias")]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        inputs = call.argument(0, "input")
        return {"weight": inputs.reshape(-1, inputs.shape[-1])} if isinstance(inputs, Tensor) else {}


register_rule(nn.Linear, LinearRule())
