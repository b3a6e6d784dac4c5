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


def linear_forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``nn.Linear.forward`` in a reconstructed layer.

    Args:
        layer: The layer, whose class is the one that torch made for its parametrization.
        *args: As the plain layer takes them.
        **kwargs: The same.

    Returns:
        What the plain layer returns.
    """
    plain = _plain_forward(layer, linear_forward)
    inputs = args[0] if args else kwargs.get("input")
    if plain is nn.Linear.forward and isinstance(inputs, Tensor) and len(args) + len(kwargs) == 1:
        parts = _parts(layer, inputs)
        if parts is not None:
            fisher, weight, bias = parts
            factors = fisher.reading.factors(fisher.root, fisher.shift)
            rows = centred_product(inputs.reshape(-1, inputs.shape[-1]), fisher.mean, factors)
            return nn.functional.linear(rows.view(inputs.shape), weight, bias)
    return plain(layer, *args, **kwargs)


def embedding_forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``nn.Embedding.forward`` in a reconstructed layer.

    Args:
        layer: The layer, whose class is the one that torch made for its parametrization.
        *args: As the plain layer takes them.
        **kwargs: The same.

    Returns:
        What the plain layer returns.
    """
    plain = _plain_forward(layer, embedding_forward)
    tokens = args[0] if args else kwargs.get("input")
    if plain is nn.Embedding.forward and isinstance(tokens, Tensor) and len(args) + len(kwargs) == 1:
        fisher, weight = sole_parametrization(layer, "weight")
        if weight is not None and isinstance(fisher, DiagonalWeight) and _scales_rows(fisher, weight, tokens):
            table = cast("nn.Embedding", layer)
            rows = nn.functional.embedding(
                tokens, weight, table.padding_idx, scale_grad_by_freq=table.scale_grad_by_freq
            )
            return rows * cast("DiagonalRoot", fisher.root).gains[tokens].unsqueeze(-1)
    return plain(layer, *args, **kwargs)


def _scales_rows(fisher: DiagonalWeight, weight: Tensor, tokens: Tensor) -> bool:
    return (
        _is_plain_call(tokens)
        and weight.dtype == fisher.mean.dtype
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
    if not _is_plain_call(inputs):
        return None
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
