"""A stage of the network: descriptors -> [PCA, (x, y)] -> the image's global Fisher vector by the stage's mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.encoding import Assignment, append_positions, fisher_vectors
from fisherlayers.fisher_vectors.generalised_pooling import generalised_max_pooling
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.information import DiagonalInformation
from fisherlayers.layer import root_of

__all__ = ["FisherStage", "join", "reduce_descriptors"]

# Relative to the mean second moment: entries that hardly vary, or are known from few images, are not blown up.
_DAMPING = 1e-3
_DAMPING_IMAGES = 4.0


@dataclass(frozen=True)
class FisherStage:
    """PCA, coordinates and mixture of one layer.

    Attributes:
        components: PCA, D0 -> D.
        position_weight: Factor of the appended (x, y); 0 appends nothing.
        mixture: Over D, or D + 2, dimensions.
        gains: Diagonal of F^(-1/2), (2 K D,), F the empirical information of whole images' Fisher vectors, which have
            the closed form's root already; None for the closed form alone.
        weight: Share of the stage in the inner product of two images' concatenated encodings, relative to the others.
        unit_length: Whether descriptors are L2-normalised after their PCA, as whitened patches are.
        pooling_damping: lambda of generalised max pooling; None for the mean.
    """

    components: PrincipalComponents
    position_weight: float
    mixture: DiagonalMixture
    gains: Tensor | None = None
    weight: float = 1.0
    unit_length: bool = False
    pooling_damping: float | None = None

    @property
    def num_outputs(self) -> int:
        """Length of the stage's Fisher vector."""
        return 2 * self.mixture.means.numel()

    def to(self, device: torch.device | str) -> FisherStage:
        """Return the stage on another device.

        Args:
            device: As for `torch.Tensor.to`.

        Returns:
            A stage; this one where it is there already.
        """
        if self.mixture.means.device == torch.device(device):
            return self
        pca = PrincipalComponents.from_tensors({
            name: tensor.to(device) for name, tensor in self.components.to_tensors().items()
        })
        gains = None if self.gains is None else self.gains.to(device)
        return replace(self, components=pca, mixture=self.mixture.to(device), gains=gains)

    def prepare(self, grids: Sequence[DescriptorGrid]) -> list[DescriptorGrid]:
        """Reduce descriptors by PCA and append their coordinates.

        Args:
            grids: Descriptors (B, rows, columns, D0).

        Returns:
            The same grids with descriptors (B, rows, columns, D or D + 2).
        """
        return [grid._replace(descriptors=self.reduce(grid.descriptors, grid.positions)) for grid in grids]

    def reduce(self, descriptors: Tensor, positions: Tensor) -> Tensor:
        """Reduce descriptors by PCA and append their coordinates.

        Args:
            descriptors: (..., N, D0).
            positions: (x, y), (N, 2) or with as many leading dimensions as the descriptors.

        Returns:
            (..., N, D or D + 2).
        """
        return reduce_descriptors(
            self.components, descriptors, positions, self.position_weight, unit_length=self.unit_length
        )

    def encode(self, grids: Sequence[DescriptorGrid], *, assignment: Assignment = "soft", power: bool = True) -> Tensor:
        """Pool prepared descriptors over the whole image.

        Args:
            grids: From `prepare`, at least one (it may hold no position).
            assignment: ``"soft"``, or ``"hard"`` as in the semi-local layer.
            power: Whether the signed square root comes before the L2 normalisation.

        Returns:
            (B, 2 K D), zero for images without a descriptor.
        """
        return self.normalize(self.pool(grids, assignment=assignment), power=power)

    def normalize(self, pooled: Tensor, *, power: bool = True) -> Tensor:
        """Give Fisher vectors of whole images the information of images, the signed square root and unit length.

        Args:
            pooled: From `pool`, (B, 2 K D).
            power: Whether the signed square root comes before the L2 normalisation; the information comes with it.

        Returns:
            (B, 2 K D); zero stays zero.
        """
        if not power:
            return l2_normalize(pooled)
        return l2_normalize(signed_power(pooled if self.gains is None else pooled * self.gains))

    def with_empirical_information(self, encodings: Tensor) -> FisherStage:
        """Return the stage with the root of what its Fisher vectors are found to be over images.

        The closed form holds for independent descriptors and components that do not overlap. Descriptors of one image
        are neither: whole images' Fisher vectors have very different second moments from entry to entry.

        Args:
            encodings: Fisher vectors of n images before any power or length, (n, 2 K D).

        Returns:
            A stage whose `gains` make the second moments of these encodings equal, but for a damping of 0.001 + 4 / n
            of their mean: few images say little about a single entry.
        """
        information = DiagonalInformation(encodings.shape[1], device=encodings.device, dtype=encodings.dtype)
        information.update(encodings)
        root = root_of(information, damping=_DAMPING + _DAMPING_IMAGES / len(encodings))
        return replace(self, gains=root.multiply(torch.ones_like(encodings[:1]))[0])

    def pool(self, grids: Sequence[DescriptorGrid], *, assignment: Assignment = "soft") -> Tensor:
        """Return Fisher vectors of whole images before any normalisation.

        Args:
            grids: From `prepare`, at least one (it may hold no position).
            assignment: ``"soft"``, or ``"hard"`` as in the semi-local layer.

        Returns:
            (B, 2 K D), zero for images without a descriptor.
        """
        descriptors = join(grids)
        if descriptors.shape[1] == 0:
            return descriptors.new_zeros(len(descriptors), self.num_outputs)
        if self.pooling_damping is None:
            return fisher_vectors(self.mixture, descriptors, assignment=assignment)
        return generalised_max_pooling(self.mixture, descriptors, damping=self.pooling_damping, assignment=assignment)


def reduce_descriptors(
    components: PrincipalComponents,
    descriptors: Tensor,
    positions: Tensor,
    position_weight: float,
    *,
    unit_length: bool = False,
) -> Tensor:
    """Reduce descriptors by PCA and append their weighted coordinates.

    Args:
        components: PCA, D0 -> D.
        descriptors: (..., N, D0).
        positions: (x, y), (N, 2) or with as many leading dimensions as the descriptors.
        position_weight: Factor of the coordinates; 0 appends nothing.
        unit_length: Whether the reduced descriptors are L2-normalised, before the coordinates.

    Returns:
        (..., N, D or D + 2).
    """
    reduced = components.transform(descriptors)
    if unit_length:
        reduced = l2_normalize(reduced)
    return append_positions(reduced, positions, weight=position_weight) if position_weight else reduced


def join(grids: Sequence[DescriptorGrid]) -> Tensor:
    """Gather the descriptors of all scales and positions.

    Args:
        grids: Descriptors (B, rows, columns, D).

    Returns:
        (B, N, D).
    """
    return torch.cat([grid.descriptors.flatten(1, 2) for grid in grids], dim=1)
