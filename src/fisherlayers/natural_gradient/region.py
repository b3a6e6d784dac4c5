"""The trust region of a local Fisher layer: its state, and what happens around an optimizer's step.

Kept in buffers, from statistics that all processes share, so that a restart and every process take the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.coordinates import mixed
from fisherlayers.natural_gradient.trust_region import change_power, clip_factor, whitened
from fisherlayers.precision import widened
from fisherlayers.root import Root

if TYPE_CHECKING:
    from fisherlayers.natural_gradient.parametrization import FisherWeight

__all__ = ["TrustRegion", "limit_steps"]


class TrustRegion(nn.Module):
    """Bounds a step by what it does to the layer's outputs: E|Δo|² ≤ ρ² N/D E|x|².

    The right side is the power of N outputs with the mean square of the D inputs. A layer that starts at zero can leave
    it, and one whose outputs have grown takes no longer steps for it: relative to E|o|², steps could grow without end.

    Args:
        root: S of the local Fisher layer; gives the structure.
        limit: ρ, more than 0.
    """

    power: Tensor
    spread: Root

    def __init__(self, root: Root, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.spread = whitened(root, torch.diag_embed(torch.zeros_like(root.dense()[..., 0])))
        self.register_buffer("power", torch.zeros((), dtype=root.dense().dtype, device=root.dense().device))
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def measure(self, fisher: FisherWeight) -> None:
        """Take the power of the layer's input and the covariance of its whitened input from the statistics.

        Args:
            fisher: With the coordinates that are in use from now on.
        """
        moment = widened(fisher.information.value())
        first, origin = moment[..., -1, :-1], widened(fisher.origin)
        step = origin - widened(fisher.mean)
        covariance = moment[..., :-1, :-1] + _outer(step, first) + _outer(first, step) + _outer(step, step)
        for mine, new in zip(self.spread.buffers(), whitened(fisher.root, covariance).buffers(), strict=True):
            mine.copy_(new)
        inputs = moment[..., :-1, :-1].diagonal(dim1=-2, dim2=-1) + 2 * origin * first + origin.square()
        outputs = fisher.layout.rows(fisher.weight).shape[-2]
        self.power.copy_(outputs * inputs.mean(-1).sum())

    def begin(self, fisher: FisherWeight) -> None:
        """Remember where a step starts.

        Args:
            fisher: The local Fisher layer.
        """
        self._before = [part.detach().clone() for part in _parts(fisher)]

    def change(self, fisher: FisherWeight) -> Tensor | None:
        """Return E|Δo|² of the step since ``begin``, over N/D E|x|².

        Args:
            fisher: The local Fisher layer.

        Returns:
            A scalar, 0 if there are no statistics yet; None if ``begin`` was not called.
        """
        if self._before is None:
            return None
        steps = [part.detach() - before for part, before in zip(_parts(fisher), self._before, strict=True)]
        return torch.where(self.power > 0, self._outputs(fisher, steps) / self.power, 0.0)

    def shorten(self, fisher: FisherWeight, factor: float) -> None:
        """Scale the step since ``begin``, and forget where it started.

        Args:
            fisher: The local Fisher layer.
            factor: In [0, 1]; 0 takes the step back.
        """
        before, self._before = self._before, None
        if before is None or factor == 1:
            return
        for part, start in zip(_parts(fisher), before, strict=True):
            part.copy_(start if factor == 0 else torch.lerp(start, part, factor))

    def _outputs(self, fisher: FisherWeight, parts: list[Tensor]) -> Tensor:
        rows = mixed(fisher.output, fisher.layout.rows(parts[0]).to(fisher.mean.dtype))
        bias = fisher.layout.entries(fisher.mixed_bias(parts[1])).to(rows) if len(parts) > 1 else None
        return change_power(rows, bias, self.spread)


@torch.no_grad()
def limit_steps(fishers: list[FisherWeight]) -> None:
    """Bring the steps since ``begin`` within the trust regions.

    Args:
        fishers: Local Fisher layers, with or without a region.
    """
    found = [(fisher, fisher.region) for fisher in fishers if fisher.region is not None]
    changes = [(fisher, region, region.change(fisher)) for fisher, region in found]
    started = [(fisher, region, change) for fisher, region, change in changes if change is not None]
    if started:
        first = started[0][2].device
        values = torch.stack([change.to(first) for _, _, change in started]).tolist()  # one wait for the device
        for (fisher, region, _), value in zip(started, values, strict=True):
            region.shorten(fisher, clip_factor(value, region.limit**2))


def _parts(fisher: FisherWeight) -> list[Tensor]:
    # The weight, and a bias that is its own.
    biases = fisher.biases()
    own = [bias.parameter for bias in biases if bias.part is None] if len(biases) == 1 else []
    return [fisher.weight, *own]


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first.unsqueeze(-1) * second.unsqueeze(-2)
