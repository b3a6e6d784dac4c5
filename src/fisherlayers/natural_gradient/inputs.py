"""What a layer sees: its weight as rows and its inputs as the vectors that these rows are multiplied with.

A convolution is the linear layer of its unfolded patches: row o of the flattened weight meets every patch of o's
group. Zero padding counts as input that was seen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Layer", "group_count", "input_rows", "patches", "row_size", "to_rows"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_GOLDEN = 0.6180339887498949


def group_count(layer: Layer) -> int:
    """Return the number of groups.

    Args:
        layer: A linear layer or a convolution.

    Returns:
        1 for a linear layer.
    """
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def row_size(weight: Tensor) -> int:
    """Return D, the number of inputs of one output.

    Args:
        weight: Of a linear layer or a convolution, (out, ...).

    Returns:
        Features, or channels of a group times kernel positions.
    """
    return weight[0].numel()


def to_rows(tensor: Tensor, groups: int) -> Tensor:
    """Flatten a weight (or its gradient) to rows; a bias to one entry an output.

    Args:
        tensor: (out, ...).
        groups: Of the layer.

    Returns:
        (out, D), or (groups, out / groups, D) if there are several groups; a bias without D.
    """
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor
    return rows if groups == 1 else rows.reshape(groups, -1, *rows.shape[1:])


def input_rows(layer: Layer, inputs: Tensor, max_rows: int) -> Tensor:
    """Return the vectors that the rows of the weight are multiplied with.

    Args:
        layer: A linear layer or a convolution.
        inputs: What its forward is called with.
        max_rows: From more samples x positions than this, as many are drawn: quasi-random, the same at every call.

    Returns:
        (N, D), or (groups, N, D / groups) if there are several groups; N at most ``max_rows``.
    """
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        index = _spread(rows.shape[0], max_rows, rows.device)
        return rows if index is None else rows[index]
    unfolded = patches(layer, inputs)
    dimensions = len(layer.kernel_size)
    # (batch, channels, *positions, *kernel) -> (batch, *positions, channels, *kernel)
    unfolded = unfolded.movedim(1, 1 + dimensions)
    shape = unfolded.shape[: 1 + dimensions]
    index = _spread(shape.numel(), max_rows, unfolded.device)
    rows = unfolded.flatten(0, dimensions) if index is None else unfolded[torch.unravel_index(index, shape)]
    if layer.groups == 1:
        return rows.flatten(1)
    return rows.flatten(1).reshape(len(rows), layer.groups, -1).transpose(0, 1)


def patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
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
    view = F.pad(inputs, padding, mode=mode) if any(padding) else inputs
    for axis in range(dimensions):
        kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        view = view.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return view


def _spread(total: int, count: int, device: torch.device) -> Tensor | None:
    """Return ``count`` indices below ``total``, spread by the golden ratio: no grid that could meet rows of pixels."""
    if total <= count:
        return None
    steps = torch.arange(count, dtype=torch.float64, device=device)
    return ((steps * _GOLDEN).remainder(1.0) * total).long()
