"""A weight whose inputs are one-hot, as in an embedding: the information is diagonal, the frequencies of the tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from fisherlayers.information import DiagonalInformation, FisherInformation
from fisherlayers.layer import identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.precision import widened
from fisherlayers.root import DiagonalRoot, Root

__all__ = ["Counts", "DiagonalWeight"]


class Counts(NamedTuple):
    """How often each input was 1, and behind that how many inputs there were: (D + 1,)."""

    sums: Tensor

    @property
    def number(self) -> Tensor:
        """How many inputs were counted, ()."""
        return self.sums[-1]


class DiagonalWeight(FisherWeight):
    """The parametrization W = W' S with a diagonal root S, from how often each input occurs.

    For one-hot inputs E[x xᵀ] is the diagonal matrix of their frequencies. There is no bias, so they are not centred.
    """

    adapts = False
    information: DiagonalInformation
    pending: Counts | None  # type: ignore[assignment]

    @override
    def _start(self, size: int, batch_shape: tuple[int, ...], like: dict[str, Any]) -> tuple[FisherInformation, Root]:
        information = DiagonalInformation(size, decay=self.settings.decay, batch_shape=batch_shape, **like)
        return information, identity_root(information)

    @override
    @torch.no_grad()
    def observe(self, rows: Tensor) -> None:
        """Count inputs.

        Args:
            rows: Which input is 1, (N,), whole numbers below D.
        """
        if rows.numel() == 0:
            return
        size = self.mean.shape[-1]
        counts = torch.bincount(rows.flatten(), minlength=size).to(self.mean.dtype)
        sums = torch.cat([counts, counts.new_full((1,), rows.numel())])
        self.pending = Counts(sums if self.pending is None else self.pending.sums + sums)

    @override
    @torch.no_grad()
    def absorb(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            moment = pending.sums[:-1] / pending.number
            self.information.update_from_moment(moment, pending.number, new_step=self.observed_at != self.steps)
            self._observed(int(pending.number))

    @override
    def refreshed(self) -> Coordinates | None:
        """Return the coordinates that the information asks for: (F + λ tr(F) / D)^(-1/2), with the input's power kept.

        Returns:
            New coordinates.
        """
        frequencies = widened(self.information.value())
        total = frequencies.sum(-1, keepdim=True)
        damped = frequencies + self.damping * total / frequencies.shape[-1]
        scale = (total / (frequencies / damped).sum(-1, keepdim=True)).sqrt()  # tr(S F S) = tr F
        return Coordinates(DiagonalRoot((scale * damped.rsqrt()).to(self.mean)), torch.zeros_like(self.mean))
