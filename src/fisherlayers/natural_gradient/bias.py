"""The parametrization of a bias, which takes up what the weight beside it does to the mean of the inputs."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.parametrization import FisherWeight, fisher_of
from fisherlayers.natural_gradient.readers import original, parametrization_of

__all__ = ["FisherBias", "bias_of"]


class FisherBias(nn.Module):
    """The parametrization b = T d - W μ of the bias next to a ``FisherWeight``, or next to several without T.

    Args:
        host: The module whose bias it will be; W' is read through it at every call, so that ``functional_call`` and
            ``deepcopy`` find the tensor that is in place.
        name: Of the bias there.
        weights: Names of the weights beside it, with the slices of the bias that they shift (None: all of it).
    """

    def __init__(self, host: nn.Module, name: str, weights: Sequence[tuple[str, slice | None]]) -> None:
        super().__init__()
        self._host = (host,)  # in a tuple: not a submodule of its own parametrization
        self._name = name
        self._weights = tuple(weights)

    def forward(self, bias: Tensor) -> Tensor:
        """Return b.

        Args:
            bias: d, (out,).

        Returns:
            b, of the same shape and dtype.
        """
        fisher = self._fisher
        if len(self._weights) == 1:
            weight = cast("Tensor", original(self._host[0], self._weights[0][0]))
            shifted = fisher.reading.shifted_bias(weight, bias)
            if shifted is not None:
                return shifted if fisher.output is None else fisher.mixed_bias(shifted)
        return fisher.mixed_bias(bias - self._offset(bias)).to(bias.dtype)

    def right_inverse(self, bias: Tensor) -> Tensor:
        """Return d.

        Args:
            bias: b, (out,).

        Returns:
            d, of the same shape and dtype.
        """
        return (self._fisher.unmixed_bias(bias) + self._offset(bias)).to(bias.dtype)

    @property
    def parameter(self) -> Tensor:
        """The parameter d."""
        return cast("Tensor", original(self._host[0], self._name))

    def beside(self) -> list[tuple[FisherWeight, slice | None]]:
        """Return the weights that shift the bias.

        Returns:
            Local Fisher layers, with the slice of the bias that belongs to each (None: all of it).
        """
        return [(cast("FisherWeight", fisher_of(self._host[0], name)), part) for name, part in self._weights]

    @property
    def _fisher(self) -> FisherWeight:
        # The first of the weights: only a bias that belongs to one weight alone has a root on its side.
        return cast("FisherWeight", fisher_of(self._host[0], self._weights[0][0]))

    def _offset(self, bias: Tensor) -> Tensor:
        offsets = []
        for name, part in self._weights:
            host = self._host[0]
            offset = cast("FisherWeight", fisher_of(host, name)).offset(cast("Tensor", original(host, name)))
            if part is not None:
                start, stop, _ = part.indices(len(bias))
                offset = nn.functional.pad(offset, (start, len(bias) - stop))
            offsets.append(offset)
        return offsets[0] if len(offsets) == 1 else torch.stack(offsets).sum(0)


def bias_of(module: nn.Module, name: str) -> FisherBias | None:
    """Return the parametrization of a bias beside a reconstructed weight.

    Args:
        module: Any module.
        name: Of its bias.

    Returns:
        The ``FisherBias``, or None if there is none.
    """
    first = parametrization_of(module, name)
    return first if isinstance(first, FisherBias) else None
