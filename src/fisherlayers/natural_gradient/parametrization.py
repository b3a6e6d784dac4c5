"""A layer's local Fisher layer: its state, and the parametrizations of weight and bias that read it."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from fisherlayers.information import DenseInformation
from fisherlayers.layer import LowRankRoot, Root, identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.inputs import Layer, group_count, input_rows, row_size, to_rows
from fisherlayers.natural_gradient.products import (
    Factors,
    fusible,
    multiply,
    multiply_and_shift,
    shifted_factors,
    solve,
)
from fisherlayers.natural_gradient.roots import input_coordinates

__all__ = ["FisherBias", "FisherWeight", "Settings", "fisher_of", "originals"]


class Settings(NamedTuple):
    """How a local Fisher layer follows its input; see ``reconstruct``."""

    damping: float
    decay: float
    refresh_every: int
    statistics_every: int
    rank: int | None
    max_rows: int = 4096


class _Read(NamedTuple):
    """What a weight was computed from, to recognise it when the bias is read next."""

    plain: weakref.ref[Tensor]
    weight: weakref.ref[Tensor]
    version: int
    with_grad: bool

    def is_of(self, weight: Tensor) -> bool:
        return self.weight() is weight and (self.version, self.with_grad) == (weight._version, torch.is_grad_enabled())


class FisherWeight(nn.Module):
    """The parametrization W = W' S of a weight, with the information of the layer's input.

    The scores are s = [x - origin; 1] for inputs x, where the origin is the mean of the first batch: it keeps the
    covariance accurate in float32 when the mean is large.

    Args:
        layer: The layer whose weight it will be.
        settings: How to follow the input.
    """

    origin: Tensor
    mean: Tensor
    shift: Tensor
    root: Root

    def __init__(self, layer: Layer, settings: Settings) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: not a submodule of its own parametrization
        self.settings = settings
        self.groups = group_count(layer)
        weight = layer.weight
        size = row_size(weight)
        batch_shape = () if self.groups == 1 else (self.groups,)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        like: dict[str, Any] = {"device": weight.device, "dtype": dtype}
        self.information = DenseInformation(size + 1, decay=settings.decay, batch_shape=batch_shape, **like)
        rank = settings.rank
        self.root = identity_root(DenseInformation(size, batch_shape=batch_shape, **like), rank=rank)
        self.register_buffer("origin", torch.zeros(*batch_shape, size, **like))
        self.register_buffer("mean", torch.zeros(*batch_shape, size, **like))
        self.register_buffer("shift", torch.zeros(*batch_shape, size, **like))  # mean S: b = d - W' shift
        self._centres = layer.bias is not None
        self._latest: _Read | None = None
        self._factors: tuple[tuple[int, ...], Factors] | None = None
        self.steps = 0
        self.observed_at = -1
        self.refreshed_at = -1

    def forward(self, weight: Tensor) -> Tensor:
        """Return W = W' S.

        Args:
            weight: W', (out, ...).

        Returns:
            W, of the same shape and dtype.
        """
        rows = to_rows(weight, self.groups).to(self.mean.dtype)
        if self._centres and rows.dtype == weight.dtype and fusible(self.root, rows):
            plain, offset = multiply_and_shift(rows, self._shifted_factors(self.root))
            plain = plain.reshape(weight.shape)
            plain.offset = offset  # type: ignore[attr-defined]  # lives as long as this W does
            self._latest = _Read(weakref.ref(plain), weakref.ref(weight), weight._version, torch.is_grad_enabled())
            return plain
        return multiply(self.root, rows).reshape(weight.shape).to(weight.dtype)

    def offset(self, weight: Tensor) -> Tensor:
        """Return W' S μ = W' · shift; free of charge just after ``forward``, as a layer reads weight and bias.

        Args:
            weight: W', (out, ...).

        Returns:
            (out,).
        """
        latest, self._latest = self._latest, None
        plain = None if latest is None else latest.plain()
        if latest is not None and plain is not None and latest.is_of(weight):
            return cast("Tensor", plain.offset)  # type: ignore[attr-defined]
        rows = to_rows(weight, self.groups).to(self.shift.dtype)
        return (rows @ self.shift.unsqueeze(-1)).flatten()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return W' = W S^(-1), and shift d so that assigning to the layer's weight leaves its bias b.

        Args:
            weight: W, (out, ...).

        Returns:
            W', of the same shape and dtype.
        """
        rows = solve(self.root, to_rows(weight, self.groups).to(self.mean.dtype))
        if _parametrizations(self._layer[0], "bias") is not None:
            mine, bias = originals(self._layer[0])
            before = to_rows(mine, self.groups).to(self.mean.dtype)
            cast("Tensor", bias).add_(((rows - before) @ self.shift.unsqueeze(-1)).flatten())
        return rows.reshape(weight.shape).to(weight.dtype)

    def _shifted_factors(self, root: LowRankRoot) -> Factors:
        # The versions count writes in place: by a refresh, or by load_state_dict.
        versions = tuple(tensor._version for tensor in (root.scale, root.basis, root.gains, self.shift))
        if self._factors is None or self._factors[0] != versions:
            self._factors = versions, shifted_factors(root, self.shift)
        return self._factors[1]

    @property
    def coordinates(self) -> Coordinates:
        """Root and mean in use."""
        return Coordinates(self.root, self.mean)

    @property
    def statistics_due(self) -> bool:
        """Whether a forward pass now is to be observed: a new step's turn, or a further chunk of the same step."""
        return self.steps == self.observed_at or self._due(self.observed_at, self.settings.statistics_every)

    @property
    def refresh_due(self) -> bool:
        """Whether there is news since the last refresh, and its turn has come."""
        return self.observed_at > self.refreshed_at and self._due(self.refreshed_at, self.settings.refresh_every)

    def _due(self, last: int, every: int) -> bool:
        # Inputs change fastest at the start: the turns are at steps 0, 1, 2, 4, 8, ... until ``every`` apart.
        return last < 0 or self.steps - last >= min(every, max(last, 1))

    @torch.no_grad()
    def observe(self, layer: Layer, inputs: Tensor) -> None:
        """Feed the information with a batch; one that is not finite is passed over.

        Args:
            layer: The layer that will see the batch.
            inputs: What its forward is called with.
        """
        with torch.autocast(inputs.device.type, enabled=False):
            rows = input_rows(layer, inputs.detach(), self.settings.max_rows).to(self.mean.dtype)
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            if self.observed_at < 0:
                self.origin.copy_(rows.mean(-2))
            scores = torch.nn.functional.pad(rows - self.origin.unsqueeze(-2), (0, 1), value=1.0)
            self.information.update(scores, new_step=self.observed_at != self.steps)
        self.observed_at = self.steps

    def refreshed(self, *, centred: bool) -> Coordinates | None:
        """Return the coordinates that the information asks for.

        Args:
            centred: Whether the layer trains a bias.

        Returns:
            New coordinates, or None if the input never varied.
        """
        return input_coordinates(
            self.information.value(),
            self.origin,
            centred=centred,
            damping=self.settings.damping,
            previous=self.root,
        )

    def enter(self, coordinates: Coordinates) -> None:
        """Use new coordinates from now on; whoever calls this re-expresses W' and d.

        Args:
            coordinates: Root, of the structure of the one in use, and mean.
        """
        for mine, new in zip(self.root.buffers(), coordinates.root.buffers(), strict=True):
            mine.copy_(new)
        self.mean.copy_(coordinates.mean)
        self.shift.copy_(self.root.multiply(self.mean.unsqueeze(-2)).squeeze(-2))

    def get_extra_state(self) -> Tensor:
        """Return the counters for ``state_dict``.

        Returns:
            Steps, step of the last observation, step of the last refresh.
        """
        return torch.tensor([self.steps, self.observed_at, self.refreshed_at])

    def set_extra_state(self, state: Tensor) -> None:
        """Take the counters from a ``state_dict``.

        Args:
            state: As ``get_extra_state`` returned it.
        """
        self.steps, self.observed_at, self.refreshed_at = state.tolist()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._factors = None
        # model.half() or .bfloat16() must not round the information and the root: there is no bf16 root.
        kept = [buffer.clone() for buffer in self.buffers()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, before in zip(self.buffers(), kept, strict=True):
                if buffer.dtype in (torch.float16, torch.bfloat16):
                    buffer.data = before.to(buffer.device)
        return self


class FisherBias(nn.Module):
    """The parametrization b = d - W' S μ of the bias next to a ``FisherWeight``.

    Args:
        layer: The layer whose bias it will be; W' is read through it at every call, so that ``functional_call`` and
            ``deepcopy`` find the tensor that is in place.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: not a submodule of its own parametrization

    def forward(self, bias: Tensor) -> Tensor:
        """Return b.

        Args:
            bias: d, (out,).

        Returns:
            b, of the same shape and dtype.
        """
        return (bias - self._offset()).to(bias.dtype)

    def right_inverse(self, bias: Tensor) -> Tensor:
        """Return d.

        Args:
            bias: b, (out,).

        Returns:
            d, of the same shape and dtype.
        """
        return (bias + self._offset()).to(bias.dtype)

    def _offset(self) -> Tensor:
        layer = self._layer[0]
        return cast("FisherWeight", fisher_of(layer)).offset(originals(layer)[0])


def fisher_of(module: nn.Module) -> FisherWeight | None:
    """Return the local Fisher layer of a module.

    Args:
        module: Any module.

    Returns:
        Its ``FisherWeight``, or None if it is not a reconstructed layer.
    """
    weights = _parametrizations(module, "weight")
    first = None if weights is None else weights._modules["0"]
    return first if isinstance(first, FisherWeight) else None


def originals(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the parameters of a reconstructed layer.

    Args:
        layer: A reconstructed layer.

    Returns:
        W' and d; d is None if there is no bias.
    """
    weights, biases = _parametrizations(layer, "weight"), _parametrizations(layer, "bias")
    bias = None if biases is None else biases._parameters["original"]
    return cast("Tensor", cast("nn.Module", weights)._parameters["original"]), bias


def _parametrizations(module: nn.Module, name: str) -> nn.Module | None:
    # Past the properties and containers on the way: this is looked up at every step.
    every = module._modules.get("parametrizations")
    return None if every is None else every._modules.get(name)
