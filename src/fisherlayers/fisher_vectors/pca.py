"""Principal components from sufficient statistics: exact over any stream of chunks.

The statistics are the dense information of [x - a; 1] with the mean of the first chunk as the anchor a, the same
second moment that the natural gradient takes of a layer's input. Its last row holds the mean and a Schur complement
the covariance; the anchor only keeps the subtraction from cancelling.

    >>> import torch
    >>> components = fit_pca(torch.randn(100, 8), 3)
    >>> components.transform(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 3])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.sums import Total, in_turn
from fisherlayers.gram import gram_with_ones
from fisherlayers.information import DenseInformation

__all__ = ["PrincipalComponents", "RunningCovariance", "fit_pca"]

# Rows at a time: in float64 they should stay in the cache, which halves the time.
_CHUNK = 4096
# Directions with less than this share of the largest variance are rounding errors.
_NO_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """An affine map onto the directions of largest variance.

    Attributes:
        mean: What is subtracted first, (D0,).
        basis: Orthonormal directions as columns, by falling variance, (D0, D). The entry of largest magnitude of each
            is positive.
        variances: Variance along each direction, unbiased, (D,); with a floor, so much larger. In float64 where they
            come from a fit: the square of what ``basis`` can hold may be too much for its dtype.
        whiten: Whether outputs are divided by their standard deviation. Directions without variance then map to zero.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    whiten: bool = False

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: If they do not fit together.
        """
        features, directions = self.basis.shape if self.basis.ndim == 2 else (0, 0)
        if not features or self.mean.shape != (features,) or self.variances.shape != (directions,):
            raise ValueError(
                "mean, basis and variances must have shapes (D0,), (D0, D) and (D,), got "
                f"{tuple(self.mean.shape)}, {tuple(self.basis.shape)} and {tuple(self.variances.shape)}"
            )

    def transform(self, rows: Tensor) -> Tensor:
        """Project rows.

        Args:
            rows: (..., D0), in the dtype of ``basis``.

        Returns:
            (..., D).

        Raises:
            ValueError: If the last axis is not D0.
        """
        if rows.ndim == 0 or rows.shape[-1] != len(self.mean):
            raise ValueError(f"rows must have shape (..., {len(self.mean)}), got {tuple(rows.shape)}")
        projected = (rows - self.mean) @ self.basis
        return projected * self.gains() if self.whiten else projected

    def inverse_transform(self, projected: Tensor) -> Tensor:
        """Return the rows of the principal subspace that `transform` maps to ``projected``.

        Args:
            projected: (..., D).

        Returns:
            (..., D0).

        Raises:
            ValueError: If the last axis is not D.
        """
        if projected.ndim == 0 or projected.shape[-1] != len(self.variances):
            raise ValueError(f"projected must have shape (..., {len(self.variances)}), got {tuple(projected.shape)}")
        coordinates = projected * self.variances.sqrt().to(self.basis.dtype) if self.whiten else projected
        return coordinates @ self.basis.mT + self.mean

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state as tensors, for safetensors.

        Returns:
            Name -> tensor.
        """
        return {
            "mean": self.mean,
            "basis": self.basis,
            "variances": self.variances,
            "whiten": torch.tensor(self.whiten),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the map from what `to_tensors` returned.

        Args:
            tensors: Name -> tensor.

        Returns:
            The map.

        Raises:
            ValueError: If a name is missing or unknown.
        """
        names = {"mean", "basis", "variances", "whiten"}
        if set(tensors) != names:
            raise ValueError(f"tensors must hold {sorted(names)}, got {sorted(tensors)}")
        return cls(tensors["mean"], tensors["basis"], tensors["variances"], bool(tensors["whiten"]))

    def gains(self) -> Tensor:
        """Return the factors of the outputs.

        Returns:
            (D,), in the dtype of ``basis``: 1, or with ``whiten`` one over the standard deviation, 0 where there is
            none.
        """
        if not self.whiten:
            return self.basis.new_ones(len(self.variances))
        has_variance = self.variances > _NO_VARIANCE * self.variances.max()
        return torch.where(has_variance, self.variances.rsqrt(), 0.0).to(self.basis.dtype)


class RunningCovariance:
    """Mean and covariance of a stream of rows, in float64."""

    def __init__(self) -> None:
        self._anchor: Tensor | None = None
        self._information: DenseInformation | None = None

    def partial_fit(self, rows: Tensor, *, total: Total = in_turn) -> Self:
        """Add rows.

        Args:
            rows: (N, D0), at least one, finite. They are constants: no gradient flows back to them.
            total: Sums a function over chunks of rows: in threads, say.

        Returns:
            Itself.

        Raises:
            ValueError: If there is no row, a value is not finite or the number of columns changes.
        """
        columns = "D0" if self._anchor is None else str(len(self._anchor))
        if rows.ndim != 2 or rows.numel() == 0 or (self._anchor is not None and rows.shape[1] != len(self._anchor)):
            raise ValueError(f"rows must have shape (N, {columns}) and not be empty, got {tuple(rows.shape)}")
        chunks = torch.split(rows.detach(), _CHUNK)
        anchor = chunks[0].to(torch.float64).mean(dim=0) if self._anchor is None else self._anchor

        def moment(chunk: Tensor) -> Tensor:
            return gram_with_ones(chunk.to(torch.float64) - anchor)

        sums = total(moment, chunks)
        if not bool(torch.isfinite(sums).all()):
            raise ValueError("rows must be finite: found NaN or infinity")
        if self._information is None:
            self._information = DenseInformation(len(sums), dtype=torch.float64, device=sums.device)
        self._anchor = anchor
        self._information.update_from_moment(sums / len(rows), len(rows))
        return self

    def mean(self) -> Tensor:
        """Return the mean.

        Returns:
            (D0,), float64.
        """
        anchor, moment, _ = self._statistics()
        return anchor + moment[-1, :-1]

    def covariance(self) -> Tensor:
        """Return the unbiased covariance.

        Returns:
            (D0, D0), float64.

        Raises:
            RuntimeError: If fewer than two rows have been seen.
        """
        _, moment, count = self._statistics()
        if count < 2:
            raise RuntimeError("a covariance needs at least two rows: call partial_fit with more")
        drift = moment[-1, :-1]
        return (moment[:-1, :-1] - torch.outer(drift, drift)) * (count / (count - 1))

    def principal_components(
        self,
        num_components: int | None = None,
        *,
        whiten: bool = False,
        floor: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> PrincipalComponents:
        """Return the directions of largest variance.

        Args:
            num_components: D, from 1 to D0; all if None.
            whiten: Whether outputs are divided by their standard deviation.
            floor: Added to every variance, so that whitening does not blow up directions that hold noise; at least 0.
            dtype: Of mean and basis; the work is done in float64, which the variances keep.

        Returns:
            The affine map.

        Raises:
            ValueError: If ``num_components`` lies outside 1 .. D0, or ``floor`` is negative.
        """
        if not floor >= 0:
            raise ValueError(f"floor must be at least 0, got {floor}")
        covariance = self.covariance()
        directions = len(covariance) if num_components is None else num_components
        if not 1 <= directions <= len(covariance):
            raise ValueError(
                f"num_components must lie between 1 and the number of columns, {len(covariance)}; got {num_components}"
            )
        variances, basis = torch.linalg.eigh(covariance)
        variances = variances.flip(0)[:directions].clamp_min(0) + floor
        basis = basis.flip(1)[:, :directions]
        largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
        return PrincipalComponents(
            self.mean().to(dtype), (basis * largest.sign()).to(dtype).contiguous(), variances, whiten
        )

    def _statistics(self) -> tuple[Tensor, Tensor, float]:
        if self._anchor is None or self._information is None:
            raise RuntimeError("no rows have been seen: call partial_fit first")
        return self._anchor, self._information.value(), float(self._information.count)


def fit_pca(
    rows: Tensor,
    num_components: int | None = None,
    *,
    whiten: bool = False,
    floor: float = 0.0,
    total: Total = in_turn,
) -> PrincipalComponents:
    """Fit principal components to rows that are all in memory.

    Args:
        rows: (N, D0), N at least 2.
        num_components: D, from 1 to D0; all if None.
        whiten: Whether outputs are divided by their standard deviation.
        floor: Added to every variance; at least 0.
        total: As for `RunningCovariance.partial_fit`.

    Returns:
        The affine map, in the dtype of ``rows``.
    """
    dtype = rows.dtype if rows.dtype.is_floating_point else torch.float32
    statistics = RunningCovariance().partial_fit(rows, total=total)
    return statistics.principal_components(num_components, whiten=whiten, floor=floor, dtype=dtype)
