"""A weight's local Fisher layer: the parametrization of the weight, and its state."""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from fisherlayers.information import DenseInformation
from fisherlayers.layer import identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates, mixed_bias, unmixed, unmixed_bias
from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.moments import Moments, about, moments, total
from fisherlayers.natural_gradient.products import solve
from fisherlayers.natural_gradient.readers import Bias, Reader, original, parametrization_of
from fisherlayers.natural_gradient.reading import Reading
from fisherlayers.natural_gradient.region import TrustRegion
from fisherlayers.natural_gradient.roots import automatic_damping, input_coordinates
from fisherlayers.root import Root

__all__ = ["FisherWeight", "Settings", "fisher_of", "fisher_weights"]

# Measured: see benchmarks/README.md.
_ROWS_A_DIRECTION = 2
_ENOUGH_ROWS = 1024
_ENOUGH_FOR_A_MEAN = 256


class Settings(NamedTuple):
    """How a local Fisher layer follows its input; see ``reconstruct``."""

    damping: float | None
    decay: float
    refresh_every: int
    statistics_every: int
    rank: int | None
    max_rows: int = 4096
    output_damping: float = 3.0
    trust: float | None = None
    block_size: int | None = None


class FisherWeight(nn.Module):
    """The parametrization W = W' S of a weight, with the information of the inputs that it is multiplied with.

    Subclasses may add a root T on the output side, W = T W' S (``output``), and follow other statistics.

    The scores are s = [x - origin; 1] for inputs x, where the origin is the mean of the first batch: it keeps the
    covariance accurate in float32 when the mean is large. A forward pass adds to ``pending``, raw sums; the next
    optimizer step enters them into the information at once (``absorb``), so that the batches of a step, or of several
    processes, count as one.

    Args:
        reader: The module that holds the weight, and under which names.
        layout: How the weight lies as rows.
        settings: How to follow the input.
    """

    origin: Tensor
    mean: Tensor
    shift: Tensor
    root: Root
    output: Root | None
    adapts: ClassVar[bool] = True
    """Whether the root depends on the kind of the optimizer's steps."""

    def __init__(self, reader: Reader, layout: Layout, settings: Settings) -> None:
        super().__init__()
        self.readers = [reader]  # in a list: not submodules of their own parametrization
        self.layout = layout
        self.settings = settings
        weight = cast("Tensor", getattr(reader.host, reader.weight))
        *batch_shape, _, size = layout.rows(weight).shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        like: dict[str, Any] = {"device": weight.device, "dtype": dtype}
        shape = tuple(batch_shape)
        self.information, self.root = self._start(size, shape, like)
        self.output = None
        self.register_buffer("origin", torch.zeros(*shape, size, **like))
        self.register_buffer("mean", torch.zeros(*shape, size, **like))
        self.register_buffer("shift", torch.zeros(*shape, size, **like))  # mean S: b = d - W' shift
        self.region = None if settings.trust is None else TrustRegion(self.root, settings.trust)
        self.pending: Moments | None = None
        self.reading = Reading()
        self.steps = 0
        self.rows = 0
        self.observed_at = -1
        self.refreshed_at = -1
        self.orthogonal = False  # as the optimizer's steps are

    def _start(self, size: int, shape: tuple[int, ...], like: dict[str, Any]) -> tuple[Any, Root]:
        rank = self.settings.rank
        information = DenseInformation(size + 1, decay=self.settings.decay, batch_shape=shape, **like)
        return information, identity_root(DenseInformation(size, batch_shape=shape, **like), rank=rank)

    def also_read_by(self, reader: Reader) -> None:
        """Serve one more module that holds the same parameter.

        Args:
            reader: The module, and the names of weight and bias there.
        """
        self.readers.append(reader)

    def _arranged(self, rows: Tensor) -> Tensor:
        return rows

    def forward(self, weight: Tensor) -> Tensor:
        """Return W = T W' S.

        Args:
            weight: W', as the module holds it.

        Returns:
            W, of the same shape and dtype.
        """
        return self.reading.weight(self, weight)

    def offset(self, weight: Tensor) -> Tensor:
        """Return W' S μ = W' · shift.

        Args:
            weight: W', as the module holds it.

        Returns:
            (out,).
        """
        rows = self.layout.rows(weight).to(self.shift.dtype)
        return (rows @ self.shift.unsqueeze(-1)).flatten()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return W' = T^(-1) W S^(-1), and shift d so that assigning to the weight leaves the bias b.

        Args:
            weight: W, as the module holds it.

        Returns:
            W', of the same shape and dtype.
        """
        rows = unmixed(self.output, solve(self.root, self.layout.rows(weight).to(self.mean.dtype)))
        biases = self.biases()
        if biases:
            before = self.layout.rows(self.weight).to(self.mean.dtype)
            change = ((rows - before) @ self.shift.unsqueeze(-1)).flatten()
            for bias in biases:
                bias.view_of(bias.parameter).add_(change)
        return self.layout.tensor(rows, weight.shape).to(weight.dtype).contiguous()

    def mixed_bias(self, bias: Tensor) -> Tensor:
        """Return T d.

        Args:
            bias: d, (out,).

        Returns:
            (out,).
        """
        return bias if self.output is None else mixed_bias(self.output, self._entries(bias)).flatten()

    def unmixed_bias(self, bias: Tensor) -> Tensor:
        """Return T^(-1) b.

        Args:
            bias: b, (out,).

        Returns:
            (out,).
        """
        return bias if self.output is None else unmixed_bias(self.output, self._entries(bias)).flatten()

    def _entries(self, bias: Tensor) -> Tensor:
        return self.layout.entries(bias).to(self.mean.dtype)

    @property
    def weight(self) -> Tensor:
        """The parameter W'."""
        reader = self.readers[0]
        return cast("Tensor", original(reader.host, reader.weight))

    def biases(self) -> list[Bias]:
        """Return the biases that take up the mean.

        Returns:
            One for each reader that adds a bias to the product.
        """
        found = [(original(reader.host, reader.bias), reader.part) for reader in self.readers if reader.bias]
        return [Bias(parameter, part) for parameter, part in found if parameter is not None]

    @property
    def coordinates(self) -> Coordinates:
        """Root and mean in use."""
        return Coordinates(self.root, self.mean, self.output)

    @property
    def damping(self) -> float:
        """λ, relative to the mean eigenvalue: as it was set, or by the inputs that a step sees and by its kind."""
        if self.settings.damping is not None:
            return self.settings.damping
        return automatic_damping(self._size, self.rows, orthogonal=self.orthogonal)

    @property
    def max_rows(self) -> int:
        """How many inputs of a batch enter the statistics, within the settings' limit.

        Some for each direction; fewer where only the mean is used, and one where nothing is.
        """
        if math.isinf(self.damping):
            return min(self.settings.max_rows, _ENOUGH_FOR_A_MEAN if self.centred else 1)
        return min(self.settings.max_rows, max(_ENOUGH_ROWS, _ROWS_A_DIRECTION * self._size))

    @property
    def _size(self) -> int:
        return self.mean.shape[-1]

    @property
    def centred(self) -> bool:
        """Whether the mean may move: all products with it have a bias added that is trained."""
        biases, observed = self.biases(), [reader for reader in self.readers if reader.observed]
        return len(biases) == len(observed) and all(bias.parameter.requires_grad for bias in biases)

    def adapt(self, *, orthogonal: bool) -> None:
        """Follow the kind of the optimizer's steps.

        Args:
            orthogonal: Whether they are made orthogonal. When that changes, so does ``max_rows``; what was seen before
                weighs no more than one batch of those to come.
        """
        if self.adapts and orthogonal != self.orthogonal:
            self.orthogonal = orthogonal
            self.information.count.clamp_(max=self.max_rows)

    @property
    def statistics_due(self) -> bool:
        """Whether the forward passes before the next optimizer step are to be observed."""
        return self._due(self.observed_at, self.settings.statistics_every)

    @property
    def refresh_due(self) -> bool:
        """Whether there is news since the last refresh, and its turn has come."""
        return self.observed_at > self.refreshed_at and self._due(self.refreshed_at, self.settings.refresh_every)

    def _due(self, last: int, every: int) -> bool:
        # Inputs change fastest at the start: the turns are at steps 0, 1, 2, 4, 8, ... until ``every`` apart.
        return last < 0 or self.steps - last >= min(every, max(last, 1))

    @torch.no_grad()
    def observe(self, rows: Tensor) -> None:
        """Add inputs to the pending sums; a batch that is not finite is passed over.

        Args:
            rows: What the weight is multiplied with, (N, D), or (groups, N, D), which splits a weight without groups;
                more than ``max_rows`` are thinned out.
        """
        if rows.ndim > 2 and self.layout.groups == 1:
            self.split(len(rows))
        if rows.ndim == 2 and self.layout.groups > 1:
            rows = rows.expand(self.layout.groups, *rows.shape)
        index = thinned(rows.shape[-2], self.max_rows, rows.device)
        rows = self._arranged((rows if index is None else rows[..., index, :]).to(self.mean.dtype))
        with torch.autocast(rows.device.type, enabled=False):
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            if self.pending is None:
                self.pending = moments(rows, rows.mean(-2) if self.observed_at < 0 else self.origin.clone())
            else:
                self.pending = total(self.pending, moments(rows, self.pending.origin))

    def absorb(self) -> None:
        """Enter the pending sums into the information, as one step."""
        if self.pending is not None:  # looked at in every step
            self._enter_pending(self.pending)

    @torch.no_grad()
    def _enter_pending(self, pending: Moments) -> None:
        self.pending = None
        if self.observed_at < 0:
            self.origin.copy_(pending.origin)
        pending = about(pending, self.origin)
        count = pending.number.flatten()[0]
        self.information.update_from_moment(pending.sums / count, count, new_step=self.observed_at != self.steps)
        self._observed(int(count))

    def _observed(self, rows: int) -> None:
        # A closure may enter the batch of a step in several parts.
        self.rows = rows + (self.rows if self.observed_at == self.steps else 0)
        self.observed_at = self.steps

    @torch.no_grad()
    def split(self, groups: int) -> None:
        """Give each of several blocks of outputs an information and a root of its own; for now they are all the same.

        Args:
            groups: How many blocks of equal size; the layout must have no groups yet.
        """
        self.layout = self.layout._replace(groups=groups)
        self.information.batch_shape = (groups,)
        for module in (self, self.information, self.root, *(() if self.region is None else (self.region.spread,))):
            for name, buffer in module.named_buffers(recurse=False):
                if name != "count":
                    setattr(module, name, buffer.expand(groups, *buffer.shape).clone())
        if self.pending is not None:
            self.pending = Moments(*(tensor.expand(groups, *tensor.shape).clone() for tensor in self.pending))
        self.reading.forget()

    def refreshed(self) -> Coordinates | None:
        """Return the coordinates that the information asks for.

        Returns:
            New coordinates, or None if the input never varied.
        """
        return input_coordinates(
            self.information.value(),
            self.origin,
            centred=self.centred,
            damping=self.damping,
            previous=self.root,
        )

    def enter(self, coordinates: Coordinates) -> None:
        """Use new coordinates from now on; whoever calls this re-expresses W' and d.

        Args:
            coordinates: Roots, of the structure of those in use, and mean.
        """
        for mine, new in ((self.root, coordinates.root), (self.output, coordinates.output)):
            if mine is not None and new is not None:
                for buffer, value in zip(mine.buffers(), new.buffers(), strict=True):
                    buffer.copy_(value)
        self.mean.copy_(coordinates.mean)
        if self.region is not None and self.observed_at >= 0:
            self.region.measure(self)
        self.shift.copy_(self.root.multiply(self.mean.unsqueeze(-2)).squeeze(-2))

    def get_extra_state(self) -> Tensor:
        """Return the counters for ``state_dict``.

        Returns:
            Steps, step of the last observation, step of the last refresh, inputs in the last observation.
        """
        return torch.tensor([self.steps, self.observed_at, self.refreshed_at, self.rows])

    def set_extra_state(self, state: Tensor) -> None:
        """Take the counters from a ``state_dict``.

        Args:
            state: As ``get_extra_state`` returned it; the last number may be missing.
        """
        self.steps, self.observed_at, self.refreshed_at, *rows = state.tolist()
        self.rows = rows[0] if rows else 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mean = state_dict.get(prefix + "mean")
        if isinstance(mean, Tensor) and mean.ndim > self.mean.ndim:
            self.split(len(mean))
        elif isinstance(mean, Tensor) and mean.ndim < self.mean.ndim:  # saved before the split
            for key, value in state_dict.items():
                if key.startswith(prefix) and value.is_floating_point() and not key.endswith((".count", ".power")):
                    state_dict[key] = value.expand(self.layout.groups, *value.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.pending = None
        self.reading.forget()
        # model.half() or .bfloat16() must not round the information and the root: there is no bf16 root.
        kept = [buffer.clone() for buffer in self.buffers()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, before in zip(self.buffers(), kept, strict=True):
                if buffer.dtype in (torch.float16, torch.bfloat16):
                    buffer.data = before.to(buffer.device)
        return self


def fisher_of(module: nn.Module, name: str = "weight") -> FisherWeight | None:
    """Return the local Fisher layer of a weight.

    Args:
        module: Any module.
        name: Of its weight.

    Returns:
        The ``FisherWeight``, or None if the weight is not reconstructed.
    """
    first = parametrization_of(module, name)
    return first if isinstance(first, FisherWeight) else None


def fisher_weights(model: nn.Module) -> Iterator[FisherWeight]:
    """Yield the local Fisher layers of a model, each once.

    Args:
        model: Any model.

    Yields:
        Local Fisher layers, in the order of the modules.
    """
    for module in model.modules():
        if isinstance(module, FisherWeight):
            yield module
