"""Convolutions: a convolution is the linear layer of its unfolded patches.

Row o of the flattened weight meets every patch of o's group. Zero padding counts as input that was seen.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.rules.rule import Call, ProductRule, Weight, register_rule

__all__ = ["Convolution", "ConvolutionRule", "patches", "rows_of", "unfolded"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvolutionRule(ProductRule):
    """One weight, one bias, every patch a row; each group has inputs of its own."""

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        return [Weight("weight", "bias", Layout(cast("Convolution", layer).groups))]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        inputs, convolution = call.argument(0, "input"), cast("Convolution", layer)
        if not isinstance(inputs, Tensor):
            return {}
        return {"weight": rows_of(patches(convolution, inputs), convolution.groups, call.max_rows)}

    @override
    def output_rows(self, layer: nn.Module, gradient: Tensor) -> Tensor:
        convolution = cast("Convolution", layer)
        positions = len(convolution.kernel_size)
        rows = gradient.movedim(-positions - 1, -1).flatten(0, -2)
        groups = convolution.groups
        return rows if groups == 1 else rows.reshape(len(rows), groups, -1).transpose(0, 1)


def patches(layer: Convolution, inputs: Tensor) -> Tensor:
    """Cut the padded inputs into the patches that a convolution reads.

    Args:
        layer: The convolution: kernel, stride, dilation, padding and its mode count.
        inputs: (batch, channels, *sizes), or without the batch.

    Returns:
        A view (batch, channels, *positions, *kernel) of the padded inputs.
    """
    dimensions = len(layer.kernel_size)
    if inputs.ndim == dimensions + 1:
        inputs = inputs.unsqueeze(0)
    # Left and right of the last axis first, as F.pad wants it; also right for padding="same" with even kernels.
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, padding, mode=mode) if any(padding) else inputs
    return unfolded(padded, layer.kernel_size, layer.stride, layer.dilation)


def unfolded(padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Cut padded inputs into patches.

    Args:
        padded: (batch, channels, *sizes).
        kernel: Sizes of a patch.
        stride: From patch to patch.
        dilation: From entry to entry of a patch.

    Returns:
        A view (batch, channels, *positions, *kernel).
    """
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        padded = padded.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    return padded


def rows_of(patched: Tensor, groups: int, max_rows: int) -> Tensor:
    """Return patches as rows.

    Args:
        patched: (batch, channels, *positions, *kernel), with as many positions' axes as kernel axes.
        groups: Into which the channels fall.
        max_rows: From more samples x positions than this, as many are drawn: quasi-random, the same at every call.

    Returns:
        (N, D), or (groups, N, D / groups) if there are several groups; N at most ``max_rows``.
    """
    dimensions = (patched.ndim - 2) // 2
    # (batch, channels, *positions, *kernel) -> (batch, *positions, channels, *kernel)
    patched = patched.movedim(1, 1 + dimensions)
    shape = patched.shape[: 1 + dimensions]
    index = thinned(shape.numel(), max_rows, patched.device)
    rows = patched.flatten(0, dimensions) if index is None else patched[torch.unravel_index(index, shape)]
    if groups == 1:
        return rows.flatten(1)
    return rows.flatten(1).reshape(len(rows), groups, -1).transpose(0, 1)


for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_rule(_kind, ConvolutionRule())
