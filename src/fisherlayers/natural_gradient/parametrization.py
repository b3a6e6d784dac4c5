"""A weight's local Fisher layer: its state, and the parametrizations of weight and bias that read it."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from fisherlayers.information import DenseInformation
from fisherlayers.layer import LowRankRoot, Root, identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates, mixed, mixed_bias, unmixed, unmixed_bias
from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.moments import Moments, about, moments, total
from fisherlayers.natural_gradient.products import (
    Factors,
    fusible,
    multiply,
    multiply_and_shift,
    shifted_factors,
    solve,
)
from fisherlayers.natural_gradient.region import TrustRegion
from fisherlayers.natural_gradient.roots import input_coordinates

__all__ = [
    "Bias",
    "FisherBias",
    "FisherWeight",
    "Reader",
    "Settings",
    "bias_of",
    "fisher_of",
    "fisher_weights",
    "original",
    "originals",
]


class Settings(NamedTuple):
    """How a local Fisher layer follows its input; see ``reconstruct``."""

    damping: float
    decay: float
    refresh_every: int
    statistics_every: int
    rank: int | None
    max_rows: int = 4096
    output_damping: float = 3.0
    trust: float | None = None
    block_size: int | None = None


class Reader(NamedTuple):
    """A module that holds the weight, the names of weight and bias there, and the slice of the bias that it shifts.

    Not ``observed`` is who reads the weight in another way than by multiplying observed inputs with it.
    """

    host: nn.Module
    weight: str
    bias: str | None
    part: slice | None = None
    observed: bool = True


class Bias(NamedTuple):
    """A bias d, and the slice of it that a weight shifts (None: all of it)."""

    parameter: Tensor
    part: slice | None

    def view_of(self, tensor: Tensor) -> Tensor:
        """Return that slice of the bias, of its gradient or of a buffer of an optimizer.

        Args:
            tensor: Of the shape of the bias.

        Returns:
            A view.
        """
        return tensor if self.part is None else tensor[self.part]


class _Read(NamedTuple):
    """What a weight was computed from, to recognise it when the bias is read next."""

    plain: weakref.ref[Tensor]
    weight: weakref.ref[Tensor]
    version: int
    with_grad: bool

    @staticmethod
    def of(plain: Tensor, weight: Tensor) -> "_Read":
        return _Read(weakref.ref(plain), weakref.ref(weight), weight._version, torch.is_grad_enabled())

    def is_of(self, weight: Tensor) -> bool:
        return self.weight() is weight and (self.version, self.with_grad) == (weight._version, torch.is_grad_enabled())


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
        self._centres = reader.bias is not None
        self._latest: _Read | None = None
        self._keeps = False
        self._kept: tuple[_Read, Tensor] | None = None
        self._factors: tuple[tuple[int, ...], Factors] | None = None
        self.steps = 0
        self.observed_at = -1
        self.refreshed_at = -1

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
        self._centres |= reader.bias is not None

    def _arranged(self, rows: Tensor) -> Tensor:
        return rows

    def forward(self, weight: Tensor) -> Tensor:
        """Return W = T W' S.

        Args:
            weight: W', as the module holds it.

        Returns:
            W, of the same shape and dtype.
        """
        if not torch.compiler.is_compiling() and self._keeps:
            read, plain = self._kept if self._kept is not None else (None, weight)
            if read is None or not read.is_of(weight):
                plain = self._plain(weight)
                self._kept = _Read.of(plain, weight), plain
            return plain
        return self._plain(weight)

    def keep(self, on: bool) -> None:
        """Keep W from now on, or forget it: between two writes it is computed once.

        Args:
            on: Whether to keep it.
        """
        self._keeps, self._kept = on, None

    def _plain(self, weight: Tensor) -> Tensor:
        rows = self.layout.rows(weight).to(self.mean.dtype)
        if self._centres and rows.dtype == weight.dtype and fusible(self.root, rows):
            product, offset = multiply_and_shift(rows, self._shifted_factors(self.root))
            plain = self.layout.tensor(mixed(self.output, product), weight.shape)
            plain.offset = offset  # type: ignore[attr-defined]  # lives as long as this W does
            self._latest = _Read.of(plain, weight)
            return plain
        return self.layout.tensor(mixed(self.output, multiply(self.root, rows)), weight.shape).to(weight.dtype)

    def offset(self, weight: Tensor) -> Tensor:
        """Return W' S μ = W' · shift; free of charge just after ``forward``, as a layer reads weight and bias.

        Args:
            weight: W', as the module holds it.

        Returns:
            (out,).
        """
        latest, self._latest = self._latest, self._latest if self._keeps else None
        plain = None if latest is None else latest.plain()
        if latest is not None and plain is not None and latest.is_of(weight):
            return cast("Tensor", plain.offset)  # type: ignore[attr-defined]
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

    def _shifted_factors(self, root: LowRankRoot) -> Factors:
        # The versions count writes in place: by a refresh, or by load_state_dict.
        versions = tuple(tensor._version for tensor in (root.scale, root.basis, root.gains, self.shift))
        if self._factors is None or self._factors[0] != versions:
            self._factors = versions, shifted_factors(root, self.shift)
        return self._factors[1]

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
    def centred(self) -> bool:
        """Whether the mean may move: all products with it have a bias added that is trained."""
        biases, observed = self.biases(), [reader for reader in self.readers if reader.observed]
        return len(biases) == len(observed) and all(bias.parameter.requires_grad for bias in biases)

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
        index = thinned(rows.shape[-2], self.settings.max_rows, rows.device)
        rows = self._arranged((rows if index is None else rows[..., index, :]).to(self.mean.dtype))
        with torch.autocast(rows.device.type, enabled=False):
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            if self.pending is None:
                self.pending = moments(rows, rows.mean(-2) if self.observed_at < 0 else self.origin.clone())
            else:
                self.pending = total(self.pending, moments(rows, self.pending.origin))

    @torch.no_grad()
    def absorb(self) -> None:
        """Enter the pending sums into the information, as one step."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        if self.observed_at < 0:
            self.origin.copy_(pending.origin)
        pending = about(pending, self.origin)
        count = pending.number.flatten()[0]
        self.information.update_from_moment(pending.sums / count, count, new_step=self.observed_at != self.steps)
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
        self._factors = self._latest = None

    def refreshed(self) -> Coordinates | None:
        """Return the coordinates that the information asks for.

        Returns:
            New coordinates, or None if the input never varied.
        """
        return input_coordinates(
            self.information.value(),
            self.origin,
            centred=self.centred,
            damping=self.settings.damping,
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: not what was kept for the pass at hand.

        Returns:
            The attributes.
        """
        return {**self.__dict__, "_latest": None, "_kept": None, "_factors": None}

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
        self._factors = self.pending = None
        # model.half() or .bfloat16() must not round the information and the root: there is no bf16 root.
        kept = [buffer.clone() for buffer in self.buffers()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, before in zip(self.buffers(), kept, strict=True):
                if buffer.dtype in (torch.float16, torch.bfloat16):
                    buffer.data = before.to(buffer.device)
        return self


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
        return self._fisher.mixed_bias(bias - self._offset(bias)).to(bias.dtype)

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


def fisher_of(module: nn.Module, name: str = "weight") -> FisherWeight | None:
    """Return the local Fisher layer of a weight.

    Args:
        module: Any module.
        name: Of its weight.

    Returns:
        The ``FisherWeight``, or None if the weight is not reconstructed.
    """
    weights = _parametrizations(module, name)
    first = None if weights is None else weights._modules["0"]
    return first if isinstance(first, FisherWeight) else None


def bias_of(module: nn.Module, name: str) -> FisherBias | None:
    """Return the parametrization of a bias beside a reconstructed weight.

    Args:
        module: Any module.
        name: Of its bias.

    Returns:
        The ``FisherBias``, or None if there is none.
    """
    every = _parametrizations(module, name)
    first = None if every is None else every._modules["0"]
    return first if isinstance(first, FisherBias) else None


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


def original(host: nn.Module, name: str) -> Tensor | None:
    """Return the parameter behind a parametrized tensor.

    Args:
        host: Any module.
        name: Of its weight or bias.

    Returns:
        W' or d; None if the tensor is not parametrized.
    """
    every = _parametrizations(host, name)
    return None if every is None else every._parameters["original"]


def originals(host: nn.Module, weight: str = "weight", bias: str = "bias") -> tuple[Tensor, Tensor | None]:
    """Return the parameters of a reconstructed weight and its bias.

    Args:
        host: A module with a reconstructed weight.
        weight: Name of the weight.
        bias: Name of the bias.

    Returns:
        W' and d; d is None if there is no reconstructed bias.
    """
    return cast("Tensor", original(host, weight)), original(host, bias)


def _parametrizations(module: nn.Module, name: str) -> nn.Module | None:
    # Past the properties and containers on the way: this is looked up at every step.
    every = module._modules.get("parametrizations")
    return None if every is None else every._modules.get(name)
