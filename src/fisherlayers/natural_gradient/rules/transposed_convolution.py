"""Transposed convolutions: the linear layer of the patches of the input with zeros between its entries.

A transposed convolution of stride s is the convolution of stride 1, with the kernel mirrored, of the input that is
spread out by s and padded. Its patches, mirrored instead of the kernel, are what a row of the weight meets.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.rules.convolution import rows_of, unfolded
from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule

__all__ = ["TransposedConvolution", "TransposedConvolutionRule", "patches"]

TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class TransposedConvolutionRule(Rule):
    """One weight, one bias, a row for every output position; each group has inputs of its own."""

    @override
    def weights(self, layer: nn.Module) -> Sequence[Weight]:
        return [Weight("weight", "bias", Layout(cast("TransposedConvolution", layer).groups, transposed=True))]

    @override
    def input_rows(self, layer: nn.Module, call: Call) -> Mapping[str, Tensor]:
        inputs, convolution = call.argument(0, "input"), cast("TransposedConvolution", layer)
        patched = patches(convolution, inputs, call.argument(1, "output_size"))
        return {"weight": rows_of(patched, convolution.groups, call.max_rows)}


def patches(layer: TransposedConvolution, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
    """Cut the spread and padded inputs into the patches that a transposed convolution reads.

    Args:
        layer: The transposed convolution: kernel, stride, dilation and paddings count.
        inputs: (batch, channels, *sizes), or without the batch.
        output_size: As its forward takes it.

    Returns:
        A view (batch, channels, *positions, *kernel), with the kernel axes in the order of the weight.
    """
    dimensions = len(layer.kernel_size)
    if inputs.ndim == dimensions + 1:
        inputs = inputs.unsqueeze(0)
    stride, kernel, dilation = list(layer.stride), list(layer.kernel_size), list(layer.dilation)
    padding = cast("list[int]", list(layer.padding))
    extra = layer._output_padding(inputs, output_size, stride, padding, kernel, dimensions, dilation)
    spread = inputs.new_zeros(
        *inputs.shape[:2], *((size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True))
    )
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = inputs
    borders = []
    for axis in reversed(range(dimensions)):
        border = dilation[axis] * (kernel[axis] - 1) - padding[axis]
        borders += [border, border + extra[axis]]
    padded = F.pad(spread, borders)
    mirrored = unfolded(padded, kernel, [1] * dimensions, dilation)
    return mirrored.flip(tuple(range(-dimensions, 0)))


for _kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_rule(_kind, TransposedConvolutionRule())
