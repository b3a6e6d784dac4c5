"""Mode ``kronecker``: a second Fisher layer on the output side, so that descent on W' is K-FAC.

W = T W' S and b = T d - W μ, where T is the damped inverse square root of B, the covariance of the loss's derivatives g
by the layer's outputs. A step on (W', d) moves [W b] by -η T T G E[x̃ x̃ᵀ]^(-1), the step of K-FAC (Martens and Grosse
2015; for convolutions Grosse and Martens 2016, with the mean over positions).

The labels are the training loss's own: B is empirical. A label drawn from the model would give g a mean of zero; a
training label does not, and its mean is the very direction in which the loss falls. It is therefore removed: B = Cov(g)
within each step's batches. B is divided by its mean eigenvalue before it is averaged, and T keeps the power of g, so
that neither the loss's reduction nor a gradient scaler's factor has any influence.
"""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from typing_extensions import override

from fisherlayers.information import DenseInformation
from fisherlayers.layer import identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.following import Settings
from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.moments import Moments, moments, total
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.readers import Reader
from fisherlayers.natural_gradient.roots import input_coordinates
from fisherlayers.natural_gradient.rules.rule import ProductRule
from fisherlayers.precision import full_precision
from fisherlayers.root import Root

__all__ = ["KroneckerWeight", "follow_gradient", "normalized_covariance", "output_root"]


class KroneckerWeight(FisherWeight):
    """The parametrization W = T W' S, with the informations of the layer's inputs and of its outputs' derivatives.

    Args:
        reader: The module that holds the weight, and under which names; its bias belongs to this weight alone.
        layout: How the weight lies as rows.
        settings: How to follow inputs and derivatives.
        rank: Of T; None for a dense root.
    """

    adapts = False

    def __init__(self, reader: Reader, layout: Layout, settings: Settings, *, rank: int | None) -> None:
        super().__init__(reader, layout, settings)
        *batch_shape, size, _ = layout.rows(getattr(reader.host, reader.weight)).shape
        like: dict[str, Any] = {"device": self.mean.device, "dtype": self.mean.dtype}
        self.gradients = DenseInformation(size, decay=settings.decay, batch_shape=tuple(batch_shape), **like)
        self.output: Root = identity_root(self.gradients, rank=rank)
        self.pending_gradients: Moments | None = None

    @torch.no_grad()
    def observe_gradient(self, rows: Tensor) -> None:
        """Add derivatives of the loss by outputs to the pending sums; a batch that is not finite is passed over.

        Args:
            rows: (N, out), or (groups, N, out / groups); more than ``max_rows`` are thinned out.
        """
        index = thinned(rows.shape[-2], self.settings.max_rows, rows.device)
        rows = (rows if index is None else rows[..., index, :]).to(self.mean.dtype)
        with full_precision(rows):
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            origin = rows.mean(-2) if self.pending_gradients is None else self.pending_gradients.origin
            found = moments(rows, origin)
            self.pending_gradients = found if self.pending_gradients is None else total(self.pending_gradients, found)

    @override
    def forget_pending(self) -> None:
        super().forget_pending()
        self.pending_gradients = None

    @override
    def absorb(self) -> None:
        step = self.steps if self.pending is not None else None
        new_step = self.observed_at != self.steps
        super().absorb()
        pending, self.pending_gradients = self.pending_gradients, None
        if pending is None or step is None:
            return
        covariance = normalized_covariance(pending)
        if covariance is not None:
            self.gradients.update_from_moment(covariance, pending.number.flatten()[0], new_step=new_step)

    @override
    def refreshed(self) -> Coordinates | None:
        coordinates = super().refreshed()
        if coordinates is None or float(self.gradients.count) == 0:
            return coordinates if coordinates is None else coordinates._replace(output=self.output)
        damping = self.settings.output_damping
        return coordinates._replace(output=output_root(self.gradients.value(), damping=damping, previous=self.output))


def normalized_covariance(given: Moments) -> Tensor | None:
    """Return Cov(g) over its mean eigenvalue.

    Args:
        given: Moments of g.

    Returns:
        (..., out, out), of trace ``out`` together with all groups; None if the derivatives do not vary.
    """
    sums, number = given.sums, given.number[..., None]
    mean = sums[..., -1, :-1] / number
    covariance = sums[..., :-1, :-1] / number.unsqueeze(-1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    power = covariance.diagonal(dim1=-2, dim2=-1).mean()
    if not 0 < float(power) < float("inf"):
        return None
    return covariance / power


def output_root(information: Tensor, *, damping: float, previous: Root) -> Root:
    """Return T = c (B + λ I)^(-1/2), with c such that the whitened derivatives keep their power, tr(T B T) = tr(B).

    Args:
        information: B, (..., out, out).
        damping: λ relative to the mean eigenvalue of B, more than 0.
        previous: The root so far: gives the structure, and the start of a low-rank one.

    Returns:
        The root, in the structure of ``previous``; ``previous`` itself if no group's derivatives ever varied.
    """
    origin = torch.zeros_like(information[..., 0])
    moment = pad(information, (0, 1, 0, 1))
    found = input_coordinates(moment, origin, centred=False, damping=damping, previous=previous)
    return previous if found is None else found.root


def follow_gradient(fisher: KroneckerWeight, layer: nn.Module, rule: ProductRule, output: Tensor) -> None:
    """Let the backward pass through an output hand its derivative to a local Fisher layer.

    The hook belongs to the tensor as it is now: what an activation in place makes of it later does not matter.

    Args:
        fisher: Follows the derivatives.
        layer: The layer.
        rule: Turns derivatives into rows.
        output: What its forward returned, part of a graph.
    """
    take = functools.partial(_take, weakref.ref(fisher), weakref.ref(layer), rule)
    output.register_hook(take)  # type: ignore[no-untyped-call]


def _take(
    fisher: weakref.ref[KroneckerWeight], layer: weakref.ref[nn.Module], rule: ProductRule, gradient: Tensor
) -> None:
    found, owner = fisher(), layer()
    if found is not None and owner is not None:
        with torch.no_grad():
            found.observe_gradient(rule.output_rows(owner, gradient))
