"""Layers with their Fisher layer on the input: W x + b = W' S (x - μ) + d, computed from the right.

The product with the root, forward and backward, is then one of the batch instead of the weight: less work where the
batch has fewer rows than the weight, and none backward where the inputs need no gradient, as in a first layer. In an
embedding, where S is diagonal, only the rows that are looked up are scaled.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.diagonal import DiagonalWeight
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.products import centred_product, fusible
from fisherlayers.natural_gradient.readers import sole_parametrization
from fisherlayers.natural_gradient.sharding import is_sharded
from fisherlayers.root import DenseRoot, DiagonalRoot

__all__ = ["embedding_forward", "linear_forward"]


def _standing_in(
    kind: type[nn.Module], from_inputs: Callable[[nn.Module, Tensor], Tensor | None]
) -> Callable[..., Any]:
    """Return what stands in for a layer's forward in a reconstructed layer, whose class torch made for it.

    Args:
        kind: The plain layer; subclasses with a forward of their own keep it.
        from_inputs: (layer, inputs) -> what the plain layer returns, or None to leave the call to it.
    """

    def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plain = _plain_forward(layer, forward)
        inputs = args[0] if args else kwargs.get("input")
        if plain is kind.forward and isinstance(inputs, Tensor) and len(args) + len(kwargs) == 1:
            outputs = from_inputs(layer, inputs) if _is_plain_call(inputs) else None
            if outputs is not None:
                return outputs
        return plain(layer, *args, **kwargs)

    return forward


def _linear(layer: nn.Module, inputs: Tensor) -> Tensor | None:
    parts = _parts(layer, inputs)
    if parts is None:
        return None
    fisher, weight, bias = parts
    factors = fisher.reading.factors(fisher.root, fisher.shift)
    rows = centred_product(inputs.reshape(-1, inputs.shape[-1]), fisher.mean, factors)
    return nn.functional.linear(rows.view(inputs.shape), weight, bias)


def _embedding(layer: nn.Module, tokens: Tensor) -> Tensor | None:
    fisher, weight = sole_parametrization(layer, "weight")
    if weight is None or not isinstance(fisher, DiagonalWeight) or not _scales_rows(fisher, weight):
        return None
    table = cast("nn.Embedding", layer)
    rows = nn.functional.embedding(tokens, weight, table.padding_idx, scale_grad_by_freq=table.scale_grad_by_freq)
    return rows * cast("DiagonalRoot", fisher.root).gains[tokens].unsqueeze(-1)


linear_forward = _standing_in(nn.Linear, _linear)
embedding_forward = _standing_in(nn.Embedding, _embedding)


def _scales_rows(fisher: DiagonalWeight, weight: Tensor) -> bool:
    return (
        weight.dtype == fisher.mean.dtype
        and fisher.output is None
        and fisher.layout.groups == 1
        and not is_sharded(weight)
    )


def _is_plain_call(inputs: Tensor) -> bool:
    # Compilers and transforms do their own fusing, and see through W alone.
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not inputs.is_nested and inputs.layout is torch.strided


def _plain_forward(layer: nn.Module, ours: Callable[..., Any]) -> Callable[..., Any]:
    # That of the class below the one that torch made; fully_shard puts one more on top.
    made = next(kind for kind in type(layer).__mro__ if vars(kind).get("forward") is ours)
    plain: Callable[..., Any] = made.__bases__[0].forward  # type: ignore[attr-defined]
    return plain


def _parts(layer: nn.Module, inputs: Tensor) -> tuple[FisherWeight, Tensor, Tensor | None] | None:
    # The Fisher layer, W' and d, if the product is to be taken on the input's side.
    fisher, weight = sole_parametrization(layer, "weight")
    if weight is None or not isinstance(fisher, FisherWeight):
        return None
    rows, with_grad = inputs.numel() // max(1, inputs.shape[-1]), torch.is_grad_enabled()
    ours, theirs = rows * (1 + (with_grad and inputs.requires_grad)), len(weight) * (1 + with_grad)
    if not 0 < ours < theirs or inputs.ndim < 2 or inputs.shape[-1] != weight.shape[1]:
        return None
    if not (inputs.dtype == weight.dtype == fisher.mean.dtype) or torch.is_autocast_enabled(inputs.device.type):
        return None
    if fisher.output is not None or fisher.layout.groups > 1 or is_sharded(weight):
        return None
    if not (isinstance(fisher.root, DenseRoot) or fusible(fisher.root, weight)):
        return None
    shifted, bias = sole_parametrization(layer, "bias")
    if shifted is not None and bias is None:  # something stands on top of ours
        return None
    return fisher, weight, bias if shifted is not None else cast("Tensor | None", layer.bias)
