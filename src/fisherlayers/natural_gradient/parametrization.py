"""A weight's local Fisher layer: the parametrization of the weight, and its coordinates."""

from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from fisherlayers.information import DenseInformation, full_precision_of
from fisherlayers.layer import identity_root
from fisherlayers.natural_gradient.coordinates import Coordinates, mixed_bias, unmixed, unmixed_bias
from fisherlayers.natural_gradient.following import Following, Settings
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.products import solve
from fisherlayers.natural_gradient.readers import Reader, parametrization_of
from fisherlayers.natural_gradient.reading import Reading
from fisherlayers.natural_gradient.region import TrustRegion
from fisherlayers.natural_gradient.roots import input_coordinates
from fisherlayers.precision import full_precision
from fisherlayers.root import Root

__all__ = ["FisherWeight", "fisher_of", "fisher_weights"]


class FisherWeight(Following):
    """The parametrization W = W' S of a weight, by the information of the inputs that it is multiplied with.

    Subclasses may add a root T on the output side, W = T W' S (``output``), and follow other statistics.

    Args:
        reader: The module that holds the weight, and under which names.
        layout: How the weight lies as rows.
        settings: How to follow the input.
    """

    mean: Tensor
    shift: Tensor
    root: Root
    output: Root | None

    def __init__(self, reader: Reader, layout: Layout, settings: Settings) -> None:
        super().__init__(reader, layout, settings)
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
        self.reading = Reading()

    def _start(self, size: int, shape: tuple[int, ...], like: dict[str, Any]) -> tuple[Any, Root]:
        rank = self.settings.rank
        information = DenseInformation(size + 1, decay=self.settings.decay, batch_shape=shape, **like)
        return information, identity_root(DenseInformation(size, batch_shape=shape, **like), rank=rank)

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
        with full_precision(rows):
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
            with full_precision(rows):
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
    def coordinates(self) -> Coordinates:
        """Root and mean in use."""
        return Coordinates(self.root, self.mean, self.output)

    @override
    def split(self, groups: int) -> None:
        """Give each of several blocks of outputs an information and a root of its own; for now they are all the same.

        Args:
            groups: How many blocks of equal size; the layout must have no groups yet.
        """
        super().split(groups)
        self.reading.forget()

    @override
    def _by_group(self) -> list[nn.Module]:
        return [*super()._by_group(), self.root, *(() if self.region is None else (self.region.spread,))]

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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.forget_pending()  # seen by the state that is left
        mean = state_dict.get(prefix + "mean")
        if isinstance(mean, Tensor) and mean.ndim > self.mean.ndim:
            self.split(len(mean))
        elif isinstance(mean, Tensor) and mean.ndim < self.mean.ndim:  # saved before the split
            for key, value in state_dict.items():
                if key.startswith(prefix) and value.is_floating_point() and not key.endswith((".count", ".power")):
                    state_dict[key] = value.expand(self.layout.groups, *value.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.was_centred = None if self.mean.is_meta else bool(self.mean.any())

    def _replicate_for_data_parallel(self) -> Self:
        raise RuntimeError(
            "a reconstructed model cannot train or run under nn.DataParallel, which copies it to every GPU at every "
            "forward pass: use DistributedDataParallel, one process a GPU (start trainers by torchrun), show it "
            "one GPU (CUDA_VISIBLE_DEVICES=0), or fold(model) first"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.forget_pending()
        self.reading.forget()
        with full_precision_of(self):  # there is no bf16 root
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
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
