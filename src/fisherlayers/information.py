"""Accumulate: the Fisher information F = E[s sᵀ] of a stream of scores.

A score s is the derivative of a log-likelihood, or the layer input that carries it. Every class keeps the running
mean of s sᵀ together with the effective number of scores behind it, so that

- ``decay = 1`` is the exact mean over everything seen, and ``decay < 1`` the exponential moving average with its
  start-up bias removed (no share of an arbitrary initial matrix is left in it);
- one update equals the same update cut into chunks (``new_step=False`` continues a step);
- the information of several processes merges exactly into that of one process that saw all the scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from fisherlayers.gram import gram
from fisherlayers.precision import full_precision, has_float64

__all__ = [
    "DenseInformation",
    "DiagonalInformation",
    "FisherInformation",
    "KroneckerInformation",
    "full_precision_of",
]

_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def full_precision_of(module: nn.Module) -> Iterator[None]:
    """Let ``half()`` and ``bfloat16()`` of a model leave a module's buffers in the precision that they have.

    Args:
        module: Whose buffers, its submodules' included, are converted inside the context.

    Yields:
        Nothing.
    """
    kept = [buffer.clone() for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), kept, strict=True):
            if buffer.dtype in _HALVES:
                buffer.data = before.to(buffer.device)


class FisherInformation(nn.Module, ABC):
    """Running second moment of scores; subclasses choose its structure.

    With n scores a step, ``count <- decay * count + n`` and ``F <- F + n / count * (mean(s sᵀ) - F)``.

    Args:
        decay: Weight of the past at every step, in [0, 1]; 1 is the exact mean over all scores.

    Raises:
        ValueError: If ``decay`` lies outside [0, 1].
    """

    def __init__(self, *, decay: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1] (1 = exact mean), got {decay}")
        self.decay = float(decay)

    @abstractmethod
    def update(self, scores: Tensor, *, new_step: bool = True) -> None:
        """Add scores of shape (..., N, D).

        Args:
            scores: One score a row.
            new_step: Whether the past decays first; False continues the step of the previous call, so that a batch
                may come in chunks.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another instance accumulated over the same number of steps, as if its scores had come here.

        Args:
            other: Information of the same kind, size and decay.
        """

    @abstractmethod
    def value(self) -> Tensor:
        """Return F in its own structure.

        Returns:
            The information: (..., D, D) if dense, (..., D) if diagonal.
        """


def _type_of_counts(device: torch.device) -> torch.dtype:
    return torch.float64 if has_float64(device) else torch.float32


class _SecondMoment(FisherInformation):
    """State and bookkeeping that the dense (``order`` 2) and the diagonal (1) information share."""

    order: int
    second_moment: Tensor
    count: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        decay: float = 1.0,
        batch_shape: tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(decay=decay)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if dtype in _HALVES:
            raise ValueError(f"dtype must be float32 or float64, got {dtype}: in half precision a mean is lost")
        self.num_features = num_features
        self.batch_shape = tuple(batch_shape)
        shape = (*batch_shape, *[num_features] * self.order)
        self.register_buffer("second_moment", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("count", torch.zeros((), device=device, dtype=_type_of_counts(self.second_moment.device)))

    @abstractmethod
    def _mean_moment(self, scores: Tensor) -> Tensor: ...

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        target = fn(self.second_moment.new_empty(0)).device
        if not has_float64(target):
            self.count.data = self.count.data.float()
        with full_precision_of(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.count.data = self.count.data.to(_type_of_counts(target))
        return self

    @torch.no_grad()
    def update(self, scores: Tensor, *, new_step: bool = True) -> None:
        """Add scores of shape (*batch_shape, N, D).

        Args:
            scores: One score a row; converted to the dtype of the information.
            new_step: Whether the past decays first; False continues the step of the previous call.

        Scores that do not fit are refused as by ``checked_moment``, and leave no trace.
        """
        self.update_from_moment(self.checked_moment(scores), scores.shape[-2], new_step=new_step)

    @torch.no_grad()
    def checked_moment(self, scores: Tensor) -> Tensor:
        """Return the mean second moment of scores, which nothing is done with yet.

        Args:
            scores: (*batch_shape, N, D); converted to the dtype of the information.

        Returns:
            In the shape of ``value()``.

        Raises:
            ValueError: If the shape does not fit, there is no row, or a score or its square is not finite.
        """
        if scores.ndim < 2 or (scores.shape[:-2], scores.shape[-1]) != (self.batch_shape, self.num_features):
            expected = ", ".join([*map(str, self.batch_shape), "N", str(self.num_features)])
            raise ValueError(f"scores must have shape ({expected}), got {tuple(scores.shape)}")
        rows = scores.shape[-2]
        if rows == 0:
            raise ValueError(f"scores must hold at least one row, got shape {tuple(scores.shape)}")
        with full_precision(scores):
            moment = self._mean_moment(scores.to(self.second_moment.dtype))
        # One non-finite score makes its whole row of s sᵀ non-finite, and with it the sum.
        if not bool(torch.isfinite(moment.sum())):
            if bool(torch.isfinite(scores).all()):
                raise ValueError(f"scores are so large that the squares overflow in {moment.dtype}: scale them down")
            raise ValueError("scores must be finite: found NaN or infinity (drop this batch, or look for its cause)")
        return moment

    @torch.no_grad()
    def update_from_moment(self, moment: Tensor, count: Tensor | float, *, new_step: bool = True) -> None:
        """Add scores whose mean second moment is known.

        Args:
            moment: Their mean of s sᵀ, in the shape of ``value()``.
            count: How many scores they were, more than 0.
            new_step: Whether the past decays first; False continues the step of the previous call.
        """
        total = (self.count * self.decay if new_step else self.count) + count
        self.second_moment.lerp_(moment.to(self.second_moment), (count / total).to(self.second_moment.dtype))
        self.count.copy_(total)

    @torch.no_grad()
    def merge(self, other: Self) -> None:
        """Add what another instance accumulated over the same number of steps, as if its scores had come here.

        Args:
            other: Information of the same kind, size and decay.

        Raises:
            TypeError: If ``other`` is of another kind.
            ValueError: If its size or decay differs.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}")
        if other.second_moment.shape != self.second_moment.shape or other.decay != self.decay:
            raise ValueError(
                f"other must have shape {tuple(self.second_moment.shape)} and decay {self.decay}, "
                f"got {tuple(other.second_moment.shape)} and {other.decay}"
            )
        total = self.count + other.count.to(self.count)
        if float(total) > 0:
            share = (other.count.to(total) / total).to(self.second_moment.dtype)
            self.second_moment.lerp_(other.second_moment.to(self.second_moment), share)
            self.count.copy_(total)

    def value(self) -> Tensor:
        """Return F.

        Returns:
            The running mean: (*batch_shape, D, D) if dense, (*batch_shape, D) if diagonal.

        Raises:
            RuntimeError: If no score has been seen.
        """
        if float(self.count) == 0:
            raise RuntimeError("the information is empty: call update(scores) before using it")
        return self.second_moment

    def extra_repr(self) -> str:
        """Describe the size and the decay.

        Returns:
            Text for ``repr``.
        """
        return f"{self.num_features}, decay={self.decay}, batch_shape={self.batch_shape}"


class DenseInformation(_SecondMoment):
    """F = E[s sᵀ], a full matrix of shape (*batch_shape, D, D).

    Args:
        num_features: D, at least 1.
        decay: Weight of the past at every step, in [0, 1]; 1 is the exact mean over all scores.
        batch_shape: Leading dimensions: several informations side by side, such as one a group of a convolution.
        device: Where the information lives.
        dtype: float32 or float64; the default type of torch if None.
    """

    order = 2

    def _mean_moment(self, scores: Tensor) -> Tensor:
        return gram(scores) / scores.shape[-2]


class DiagonalInformation(_SecondMoment):
    """diag F = E[s²], of shape (*batch_shape, D).

    Args:
        num_features: D, at least 1.
        decay: Weight of the past at every step, in [0, 1]; 1 is the exact mean over all scores.
        batch_shape: Leading dimensions: several informations side by side.
        device: Where the information lives.
        dtype: float32 or float64; the default type of torch if None.
    """

    order = 1

    @classmethod
    def from_value(cls, value: Tensor) -> DiagonalInformation:
        """Wrap a diagonal that is known in closed form.

        Args:
            value: (*batch_shape, D), positive.

        Returns:
            Information that holds ``value`` with a count of one.

        Raises:
            ValueError: If an entry is not positive and finite.
        """
        if value.ndim == 0 or not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"value must hold positive finite entries along its last axis, got {value}")
        information = cls(value.shape[-1], batch_shape=tuple(value.shape[:-1]), device=value.device, dtype=value.dtype)
        information.second_moment.copy_(value)
        information.count.fill_(1.0)
        return information

    def _mean_moment(self, scores: Tensor) -> Tensor:
        return scores.square().mean(dim=-2)


class KroneckerInformation(FisherInformation):
    """F = A ⊗ B of a layer's weight: A = E[x xᵀ] of its inputs, B = E[g gᵀ] of its output derivatives (K-FAC).

    The score of one sample is g xᵀ; taking the two factors' expectations apart assumes that they are independent
    (Martens and Grosse 2015). ``inputs`` and ``gradients`` are ordinary dense informations.

    Args:
        in_features: Size of A.
        out_features: Size of B.
        decay: Weight of the past at every step, in [0, 1]; 1 is the exact mean over all scores.
        device: Where the factors live.
        dtype: float32 or float64; the default type of torch if None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        decay: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(decay=decay)
        self.inputs = DenseInformation(in_features, decay=decay, device=device, dtype=dtype)
        self.gradients = DenseInformation(out_features, decay=decay, device=device, dtype=dtype)

    def update(self, scores: tuple[Tensor, Tensor], *, new_step: bool = True) -> None:  # type: ignore[override]
        """Add the two factors of N scores.

        Args:
            scores: Inputs (N, in_features) and output derivatives (N, out_features).
            new_step: Whether the past decays first; False continues the step of the previous call.

        Raises:
            TypeError: If it is no pair.
            ValueError: If the numbers of rows differ, or either factor does not fit or is not finite.
        """
        if isinstance(scores, Tensor) or len(scores) != 2:
            raise TypeError("scores must be a pair: inputs (N, in_features) and output derivatives (N, out_features)")
        inputs, gradients = scores
        if inputs.shape[0] != gradients.shape[0]:
            raise ValueError(
                f"scores must hold as many inputs as gradients, got {inputs.shape[0]} and {gradients.shape[0]} rows"
            )
        # Both or neither: a batch that is refused has left no trace.
        first, second = self.inputs.checked_moment(inputs), self.gradients.checked_moment(gradients)
        self.inputs.update_from_moment(first, len(inputs), new_step=new_step)
        self.gradients.update_from_moment(second, len(gradients), new_step=new_step)

    def merge(self, other: Self) -> None:
        """Add what another instance accumulated over the same number of steps.

        Args:
            other: Information of the same sizes and decay.

        Raises:
            TypeError: If ``other`` is of another kind.
            ValueError: If its sizes or decay differ.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}")
        own, its = (tuple(len(f.second_moment) for f in (i.inputs, i.gradients)) for i in (self, other))
        if own != its:
            raise ValueError(f"other must have (in_features, out_features) = {own}, got {its}")
        self.inputs.merge(other.inputs)
        self.gradients.merge(other.gradients)

    def value(self) -> Tensor:
        """Return A ⊗ B in full: for small layers and for tests.

        Returns:
            (in_features * out_features) squared, for ``weight.T.reshape(-1)``.
        """
        return torch.kron(self.inputs.value(), self.gradients.value())
