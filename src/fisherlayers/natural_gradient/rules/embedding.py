"""Embeddings: linear layers of one-hot inputs, whose information is the diagonal of the tokens' frequencies."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.input_side import embedding_forward
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule

__all__ = ["EmbeddingRule"]


class EmbeddingRule(Rule):
    """``Embedding`` and ``EmbeddingBag``; padding does not count.

    Tables with sparse gradients, or whose rows are renormalised when they are read (``max_norm``), have no weight here.
    """

    optional = True

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        table = cast("nn.Embedding", layer)
        if table.sparse or table.max_norm is not None:
            return []
        return [Weight("weight", layout=Layout(transposed=True), diagonal=True)]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        tokens = call.argument(0, "input").flatten()
        padding = cast("nn.Embedding", layer).padding_idx
        return {"weight": tokens if padding is None else tokens[tokens != padding]}


class _TableRule(EmbeddingRule):
    """``Embedding``, whose rows are scaled where they are looked up."""

    @override
    def members(self) -> Mapping[str, Any]:
        return {"forward": embedding_forward}


register_rule(nn.Embedding, _TableRule())
register_rule(nn.EmbeddingBag, EmbeddingRule())
