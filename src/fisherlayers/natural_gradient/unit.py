"""Mode ``unit``: one information per output unit.

Unit j has G_j = E[ν_j s sᵀ], s = [x - origin; 1], with ν_j = ν(z_j) from ``activations``. Divided by m_j = E[ν_j], its
corner, this is the second moment of the inputs weighted by ν_j: weighted mean and covariance give the coordinates of
the unit as for a whole layer. What is left of m_j is a gain t_j on the output side, t_j² = (1 + λ) m / (m_j + λ m) with
m the mean of the m_j: a unit that is rarely active takes longer steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from fisherlayers.inverse_root import inverse_square_root
from fisherlayers.natural_gradient.activations import Activation
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.following import Settings
from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.moments import Moments, about, moments, total
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.readers import Reader
from fisherlayers.natural_gradient.roots import input_coordinates
from fisherlayers.precision import full_precision, widened
from fisherlayers.root import DenseRoot, DiagonalRoot

__all__ = ["UnitCoordinates", "UnitWeight", "check_size", "homogeneous", "released_coordinates", "unit_moments"]

_LARGEST = 2**28  # numbers: 1 GiB in float32
_CHUNK = 2**24


class UnitCoordinates(NamedTuple):
    """Of every unit: root S (out, D, D), mean μ (out, D) and gain t (out,), for w = t w' S and b = t d - w · μ."""

    root: Tensor
    mean: Tensor
    gain: Tensor


def check_size(layer: str, outputs: int, inputs: int) -> None:
    """Raise where one matrix a unit would not fit.

    Args:
        layer: Name of the layer, for the message.
        outputs: Units.
        inputs: D.

    Raises:
        ValueError: If the information takes more than 2^28 numbers.
    """
    numbers = outputs * (inputs + 1) ** 2
    if numbers > _LARGEST:
        raise ValueError(
            f"mode 'unit' needs one {inputs + 1} x {inputs + 1} matrix for each of the {outputs} units of layer "
            f"{layer!r}: {numbers / 2**28:.1f} GiB in float32, and twice that for the roots (at most 1 GiB): "
            "leave it out with exclude=, give it activations={...: 'linear'} (one matrix for all units), "
            "or use mode='input'"
        )


def unit_moments(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sums Σ_n ν_nj s_n s_nᵀ of every unit.

    Args:
        rows: s, (N, D).
        weights: ν, (N, out), at least 0.

    Returns:
        (out, D, D).
    """
    samples, size = rows.shape
    result = rows.new_empty(weights.shape[1], size, size)
    step = max(1, _CHUNK // max(1, samples * size))
    for start in range(0, weights.shape[1], step):
        part = weights[:, start : start + step].T.unsqueeze(-1)  # (units, N, 1)
        torch.matmul((part * rows).mT, rows, out=result[start : start + step])
    return result


def released_coordinates(information: Tensor, *, damping: float, centred: bool = True) -> UnitCoordinates:
    """Return coordinates whose preconditioner is (G + damping tr(G) I)^(-1), the authors' released rule.

    The trace is that of the whole homogeneous matrix and not divided by its size; the constant input is damped like the
    others, and nothing is rescaled.

    Args:
        information: G about the origin 0, (..., D + 1, D + 1).
        damping: Times the trace.
        centred: Whether the layer trains a bias; if not, the information is that of the inputs alone.

    Returns:
        Root, mean and gain; see ``UnitCoordinates``.
    """
    values = widened(information if centred else information[..., :-1, :-1])
    size = values.shape[-1]
    trace = values.diagonal(dim1=-2, dim2=-1).sum(-1)
    damped = values + damping * trace[..., None, None] * torch.eye(size, dtype=values.dtype, device=values.device)
    if not centred:
        root = inverse_square_root(damped)
        return UnitCoordinates(root, torch.zeros_like(root[..., 0]), torch.ones_like(trace))
    corner = damped[..., -1, -1]
    mean = damped[..., -1, :-1] / corner.unsqueeze(-1)
    covariance = damped[..., :-1, :-1] - corner[..., None, None] * mean.unsqueeze(-1) * mean.unsqueeze(-2)
    gain = corner.rsqrt()
    root = inverse_square_root((covariance + covariance.mT) / 2) / gain[..., None, None]
    return UnitCoordinates(root, mean, gain)


def homogeneous(rows: Tensor, origin: Tensor) -> Tensor:
    """Return s = [x - origin; 1].

    Args:
        rows: x, (..., N, D).
        origin: (..., D).

    Returns:
        (..., N, D + 1).
    """
    return pad(rows - origin.unsqueeze(-2), (0, 1), value=1.0)


class UnitWeight(FisherWeight):
    """The parametrization w_j = t_j w'_j S_j of every row of a weight, with the information of every unit.

    A unit that is followed by nothing (``linear``) shares its information with all others of its layer.

    Args:
        reader: The module that holds the weight, and under which names; its bias belongs to this weight alone.
        layout: How the weight lies as rows.
        settings: How to follow the input.
        activation: What follows the layer.
        compat: By the rule of the authors' released code: ``damping`` times the trace, a moving average that starts at
            the identity, refreshes exactly every ``refresh_every`` steps, no scale.
    """

    adapts = False

    def __init__(
        self, reader: Reader, layout: Layout, settings: Settings, *, activation: Activation, compat: bool
    ) -> None:
        *_, outputs, _ = layout.rows(getattr(reader.host, reader.weight)).shape
        shared = activation.name == "linear"
        units = Layout(groups=layout.groups * outputs)
        super().__init__(reader, layout if shared else units, settings._replace(rank=None))
        self.activation, self.compat = activation, compat
        self._inner = layout
        self._shared = shared
        self._rows = 0
        shape = self.layout.rows(getattr(reader.host, reader.weight)).shape[:-1]
        self.output: DiagonalRoot = DiagonalRoot(self.mean.new_ones(shape))
        if compat:
            self.information.second_moment.copy_(torch.eye(self.mean.shape[-1] + 1, device=self.mean.device))

    @property
    @override
    def max_rows(self) -> int:
        return self.settings.max_rows  # a unit that is rarely active sees few of them

    @torch.no_grad()
    @override
    def observe(self, rows: Tensor) -> None:
        index = thinned(rows.shape[-2], self.max_rows, rows.device)
        rows = (rows if index is None else rows[..., index, :]).to(self.mean.dtype)
        with full_precision(rows):
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            if self.compat or self.observed_at >= 0:
                origin = self.origin
            else:
                origin = self.pending.origin if self.pending is not None else self._per_unit(rows.mean(-2))
            found = Moments(origin, self._sums(rows, origin))
            self.pending = found if self.pending is None else total(self.pending, found)
            self._rows += rows.shape[-2]

    @override
    def forget_pending(self) -> None:
        super().forget_pending()
        self._rows = 0

    @torch.no_grad()
    @override
    def absorb(self) -> None:
        pending, self.pending = self.pending, None
        number, self._rows = self._rows, 0
        if pending is None:
            return
        if self.observed_at < 0:
            self.origin.copy_(pending.origin)
        new_step = self.observed_at != self.steps
        if self.compat and new_step:  # what the past keeps is the decay, whatever the batch's size
            self.information.count.fill_(number / (1 - self.settings.decay))
        moment = about(pending, self.origin).sums / number
        self.information.update_from_moment(moment, number, new_step=new_step)
        self._observed(number)

    @override
    def refreshed(self) -> Coordinates | None:
        values, damping = self.information.value(), self.damping
        if self.compat:
            found = released_coordinates(values, damping=damping, centred=self.centred)
            gain = found.gain.unsqueeze(-1).expand_as(self.output.gains)
            tensors = [tensor.to(self.mean) for tensor in (found.root, found.mean, gain)]
            return Coordinates(DenseRoot(tensors[0]), tensors[1], DiagonalRoot(tensors[2].clone()))
        share = values[..., -1, -1]
        moment = values / share[..., None, None].clamp_min(torch.finfo(values.dtype).tiny)
        plain = input_coordinates(moment, self.origin, centred=self.centred, damping=damping, previous=self.root)
        typical = share.mean()
        gains = ((1 + damping) * typical / (share + damping * typical)).sqrt()
        return None if plain is None else plain._replace(output=DiagonalRoot(gains.unsqueeze(-1)))

    @override
    def _due(self, last: int, every: int) -> bool:
        return last < 0 or self.steps - last >= every if self.compat else super()._due(last, every)

    def extra_repr(self) -> str:
        """Describe the activation.

        Returns:
            Text for ``repr``.
        """
        return f"activation={self.activation.name}" + (", compat" if self.compat else "")

    def _per_unit(self, values: Tensor) -> Tensor:
        # (D,) or (groups, D) -> one row a unit
        if self._shared:
            return values
        groups = self._inner.groups
        return values.reshape(groups, 1, -1).expand(groups, len(self.mean) // groups, -1).flatten(0, 1)

    def _sums(self, rows: Tensor, origin: Tensor) -> Tensor:
        if self._shared:
            return moments(rows, origin).sums
        reader, groups = self.readers[0], self._inner.groups
        weight = self._inner.rows(getattr(reader.host, reader.weight)).to(rows)
        z = rows @ weight.mT
        if reader.bias is not None:
            z = z + self._inner.entries(getattr(reader.host, reader.bias)).to(rows).unsqueeze(-2)
        origins = origin.reshape(groups, -1, origin.shape[-1])[:, 0]  # the same for all units of a group
        shares = self.activation.weight(z)
        parts = [(rows, shares, origins[0])] if groups == 1 else list(zip(rows, shares, origins, strict=True))
        return torch.cat([unit_moments(homogeneous(x, centre), nu) for x, nu, centre in parts])
