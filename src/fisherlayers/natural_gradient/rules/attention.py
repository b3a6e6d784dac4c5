"""Multi-head attention: the projections of query, key and value, and the projection of what the heads attended to.

The in-projection sees query, key and value: one information if they are the same tensor (self-attention), else one for
each of its three blocks. The out-projection is read past the forward of its own module; its inputs come from running
the attention once more with the identity in its place, with the same random numbers and so with the same dropout.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.layout import thinned
from fisherlayers.natural_gradient.rules.randomness import random_state_kept
from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule

__all__ = ["AttentionRule"]


class AttentionRule(Rule):
    """In-projection, in one weight or in three, and out-projection; ``bias_k`` and ``bias_v`` are left alone."""

    repeats = True

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        attention = cast("nn.MultiheadAttention", layer)
        size = attention.embed_dim
        if attention._qkv_same_embed_dim:
            projections = [Weight("in_proj_weight", "in_proj_bias")]
        else:
            projections = [
                Weight(f"{name}_proj_weight", "in_proj_bias", part=slice(i * size, (i + 1) * size))
                for i, name in enumerate("qkv")
            ]
        return [*projections, Weight("out_proj.weight", "bias")]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        attention = cast("nn.MultiheadAttention", layer)
        given = [call.argument(position, name) for position, name in enumerate(("query", "key", "value"))]
        if not all(isinstance(tensor, Tensor) and not tensor.is_nested for tensor in given):
            return {}
        flat = [tensor.flatten(0, -2) for tensor in given]
        rows = {"out_proj.weight": _attended(attention, call)}
        if not attention._qkv_same_embed_dim:
            return rows | {f"{name}_proj_weight": seen for name, seen in zip("qkv", flat, strict=True)}
        if given[0] is given[1] is given[2]:
            return rows | {"in_proj_weight": flat[0]}
        number = min([call.max_rows, *map(len, flat)])
        index = [thinned(len(seen), number, seen.device) for seen in flat]
        blocks = [seen if chosen is None else seen[chosen] for seen, chosen in zip(flat, index, strict=True)]
        return rows | {"in_proj_weight": torch.stack(blocks)}


class _Identity(nn.Module):
    """What stands in for the out-projection."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        weight = like.weight
        self.weight = nn.Parameter(torch.eye(len(weight), dtype=weight.dtype, device=weight.device), False)
        self.bias = None


def _attended(attention: nn.MultiheadAttention, call: Call) -> Tensor:
    projection = attention._modules["out_proj"]
    attention._modules["out_proj"] = _Identity(attention.out_proj)
    try:
        with random_state_kept(attention.out_proj.weight.device):
            outputs, _ = attention.forward(*call.args, **call.kwargs)
    finally:
        attention._modules["out_proj"] = projection
    return outputs.flatten(0, -2)


register_rule(nn.MultiheadAttention, AttentionRule())
