"""What a local Fisher layer sees of its inputs: when it looks, the sums until a step, and the information."""

import math
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.layout import Layout, thinned
from fisherlayers.natural_gradient.moments import Moments, about, moments, total
from fisherlayers.natural_gradient.readers import Bias, Reader, original
from fisherlayers.natural_gradient.roots import automatic_damping
from fisherlayers.precision import full_precision

__all__ = ["Following", "Settings"]

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


class Following(nn.Module):
    """The inputs of a weight, followed from step to step; ``FisherWeight`` makes coordinates of it.

    The scores are s = [x - origin; 1] for inputs x, where the origin is the mean of the first batch: it keeps the
    covariance accurate in float32 when the mean is large. A forward pass adds to ``pending``, raw sums; the next
    optimizer step enters them into the information at once (``absorb``), so that the batches of a step, or of several
    processes, count as one.

    Args:
        reader: The module that holds the weight, and under which names.
        layout: How the weight lies as rows.
        settings: How to follow the input.
    """

    information: Any
    origin: Tensor
    adapts: ClassVar[bool] = True
    """Whether the root depends on the kind of the optimizer's steps."""

    def __init__(self, reader: Reader, layout: Layout, settings: Settings) -> None:
        super().__init__()
        self.readers = [reader]  # in a list: not submodules of their own parametrization
        self.layout = layout
        self.settings = settings
        self.pending: Moments | None = None
        self.steps = 0
        self.rows = 0
        self.observed_at = -1
        self.refreshed_at = -1
        self.forward_at = -1  # the last step at which a forward pass was seen outside of a backward pass
        self.orthogonal = False  # as the optimizer's steps are
        self.was_centred: bool | None = None  # at the last refresh, if that is known

    def also_read_by(self, reader: Reader) -> None:
        """Serve one more module that holds the same parameter.

        Args:
            reader: The module, and the names of weight and bias there.
        """
        self.readers.append(reader)

    def _arranged(self, rows: Tensor) -> Tensor:
        return rows

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
        return self.origin.shape[-1]

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
        """Whether there is news since the last refresh and its turn has come, or a bias was frozen since.

        A frozen bias follows its weight until the mean is given up.
        """
        if self.was_centred and not self.centred:
            return True
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
        rows = self._arranged((rows if index is None else rows[..., index, :]).to(self.origin.dtype))
        with full_precision(rows):
            if rows.shape[-2] == 0 or not bool(torch.isfinite(torch.linalg.vector_norm(rows).square())):
                return
            if self.pending is None:
                self.pending = moments(rows, rows.mean(-2) if self.observed_at < 0 else self.origin.clone())
            else:
                self.pending = total(self.pending, moments(rows, self.pending.origin))

    def forget_pending(self) -> None:
        """Drop what was seen since the last step: it belongs to a state, a device or a precision that is left."""
        self.pending, self.forward_at = None, -1

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
        count = pending.number.flatten()[0].clone()
        self.information.update_from_moment(pending.sums.div_(count), count, new_step=self.observed_at != self.steps)
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
        for module in self._by_group():
            for name, buffer in module.named_buffers(recurse=False):
                if name != "count":
                    setattr(module, name, buffer.expand(groups, *buffer.shape).clone())
        if self.pending is not None:
            self.pending = Moments(*(tensor.expand(groups, *tensor.shape).clone() for tensor in self.pending))

    def _by_group(self) -> list[nn.Module]:
        return [self, self.information]

    def get_extra_state(self) -> Tensor:
        """Return the counters for ``state_dict``.

        Returns:
            Steps, step of the last observation, step of the last refresh, inputs in the last observation, and whether
            the optimizer's steps are orthogonal.
        """
        counters = [self.steps, self.observed_at, self.refreshed_at, self.rows, int(self.orthogonal)]
        return torch.tensor(counters, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the counters from a ``state_dict``.

        Args:
            state: As ``get_extra_state`` returned it; the last two numbers may be missing.
        """
        self.steps, self.observed_at, self.refreshed_at, *others = state.tolist()
        self.rows, orthogonal = (*others, 0, 0)[:2]
        self.orthogonal = bool(orthogonal)
