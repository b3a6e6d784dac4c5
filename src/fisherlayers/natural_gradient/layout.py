"""How a weight tensor lies as rows: one row an output, along it the inputs that it is multiplied with."""

from typing import NamedTuple

import torch
from torch import Tensor

from fisherlayers.precision import has_float64

__all__ = ["Layout", "lying_as", "thinned"]

_GOLDEN = 0.6180339887498949


class Layout(NamedTuple):
    """Where a weight tensor keeps outputs and inputs.

    (out, in, ...) is flattened to rows (out, D), with D = in x the rest; with ``groups`` to (groups, out / groups, D),
    each group with inputs of its own. ``transposed`` weights are (in, out / groups, ...), as in transposed convolutions
    and embeddings; their groups divide the inputs, and the rows are the same.
    """

    groups: int = 1
    transposed: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a weight, or a gradient of it, as rows.

        Args:
            tensor: (out, in, ...), or (in, out / groups, ...) if transposed.

        Returns:
            (out, D), or (groups, out / groups, D) if there are several groups.
        """
        if self.transposed:
            split = tensor.reshape(self.groups, -1, *tensor.shape[1:]).transpose(1, 2).flatten(2)
            return split[0] if self.groups == 1 else split
        rows = tensor if tensor.ndim == 2 else tensor.flatten(1)
        return rows if self.groups == 1 else rows.reshape(self.groups, -1, rows.shape[1])

    def tensor(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Undo ``rows``.

        Args:
            rows: As ``rows`` returns them.
            shape: Of the weight.

        Returns:
            The weight tensor.
        """
        if not self.transposed:
            return rows if rows.shape == shape else rows.reshape(shape)
        split = rows.reshape(self.groups, shape[1], -1, *shape[2:])
        return split.transpose(1, 2).reshape(shape)

    def entries(self, bias: Tensor) -> Tensor:
        """Return a bias, or a gradient of it, beside the rows.

        Args:
            bias: (out,).

        Returns:
            (out,), or (groups, out / groups).
        """
        return bias if self.groups == 1 else bias.reshape(self.groups, -1)


def lying_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy a tensor that may be a view of another layout, as products leave it.

    Args:
        tensor: Of any strides.
        like: Of the same shape.

    Returns:
        A copy with the strides of ``like`` where those are dense, such as channels last.
    """
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def thinned(total: int, count: int, device: torch.device) -> Tensor | None:
    """Return indices of the rows that count, where there are too many.

    Spread by the golden ratio: the same at every call, and no grid that could meet rows of pixels.

    Args:
        total: How many rows there are.
        count: How many may stay.
        device: Where the indices are needed.

    Returns:
        ``count`` indices below ``total``; None if all rows stay.
    """
    if total <= count:
        return None
    steps = torch.arange(count, dtype=torch.float64, device=device if has_float64(device) else "cpu")
    return ((steps * _GOLDEN).remainder(1.0) * total).long().to(device)
