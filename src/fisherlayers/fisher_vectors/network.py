"""A fitted Deep Fisher Network: pure functions of a batch of images, and nothing that learns.

    images -> descriptors -> [PCA, (x, y)] -> global Fisher vector 1 ─────────────┐
                                  └> semi-local layer -> [PCA, (x, y)] -> global 2 ┼> concatenation
    RGB    -> colour statistics -> [PCA, (x, y)] -> global Fisher vector ─────────┤
    pixels -> raw patches       -> [PCA, (x, y)] -> global Fisher vector ─────────┘

A stage is the bracket together with its mixture. One stage is the shallow Fisher vector; each further stage sits on a
semi-local layer above the one before it. `fisherlayers.fisher_vectors.training` learns all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.descriptors import DescriptorExtractor, DescriptorGrid
from fisherlayers.fisher_vectors.encoding import Assignment, append_positions, fisher_vectors
from fisherlayers.fisher_vectors.generalised_pooling import generalised_max_pooling
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.sift import DenseSift
from fisherlayers.information import DiagonalInformation
from fisherlayers.layer import root_of

__all__ = [
    "FisherNetwork",
    "FisherStage",
    "color_grids",
    "grey_extractor",
    "join",
    "patch_grids",
    "reduce_descriptors",
    "views",
]

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
        descriptors = join(grids)
        if descriptors.shape[1] == 0:
            return descriptors.new_zeros(len(descriptors), self.num_outputs)
        encodings = self._pooled(descriptors, assignment)
        if not power:
            return l2_normalize(encodings)
        return l2_normalize(signed_power(encodings if self.gains is None else encodings * self.gains))

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

    def pool(self, grids: Sequence[DescriptorGrid]) -> Tensor:
        """Return Fisher vectors of whole images with soft assignment, not yet normalised, for the information.

        Args:
            grids: From `prepare`, at least one (it may hold no position).

        Returns:
            (B, 2 K D), zero for images without a descriptor.
        """
        descriptors = join(grids)
        if descriptors.shape[1] == 0:
            return descriptors.new_zeros(len(descriptors), self.num_outputs)
        return self._pooled(descriptors, "soft")

    def _pooled(self, descriptors: Tensor, assignment: Assignment) -> Tensor:
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


def grey_extractor(settings: NetworkSettings) -> DescriptorExtractor:
    """Return the extractor below the first stage.

    Args:
        settings: Bin sizes and step are read.

    Returns:
        Dense SIFT.
    """
    return DenseSift(bin_sizes=settings.bin_sizes, step=settings.step)


def views(settings: NetworkSettings, images: Tensor) -> list[Tensor]:
    """Return the images whose descriptors are pooled together: the images, and their mirror images if asked for.

    Args:
        settings: Mirror is read.
        images: (B, C, H, W).

    Returns:
        One or two batches of the same shape.
    """
    return [images, images.flip(-1)] if settings.mirror else [images]


def color_grids(settings: NetworkSettings, images: Tensor) -> list[DescriptorGrid]:
    """Compute the descriptors of the colour stream: local colour statistics at the scales of SIFT.

    Args:
        settings: Bin sizes and step are read.
        images: (B, C, H, W), C = 1 (which counts as three equal channels) or 3.

    Returns:
        One grid a scale and view.
    """
    extract = LocalColorStatistics(bin_sizes=settings.bin_sizes, step=settings.step)
    return [grid for view in views(settings, images.expand(-1, 3, -1, -1)) for grid in extract(view)]


def patch_grids(settings: NetworkSettings, images: Tensor, *, color: bool) -> list[DescriptorGrid]:
    """Compute the descriptors of the stream of raw patches, which leaves the continued border out.

    Args:
        settings: Padding and the patches' side and step are read.
        images: (B, C, H, W), C = 1 or 3.
        color: Whether patches hold three channels.

    Returns:
        One grid a view.
    """
    border = settings.padding
    inner = images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
    extract = RawPatches(side=settings.patch_side, step=settings.patch_step, color=color)
    return [grid for view in views(settings, inner) for grid in extract(view)]


@dataclass(frozen=True)
class FisherNetwork:
    """The fitted stages and the projections between them.

    Attributes:
        settings: What the network was made of.
        stages: One a layer.
        projections: W of each semi-local layer, (F, h, 2 K D); the last of the F is for images that no W was
            learned on, the others are those of the cross-fitting folds and exist only while the network is fitted.
        color: The colour stage, or None.
        patches: The stage of raw patches, or None.
    """

    settings: NetworkSettings
    stages: tuple[FisherStage, ...]
    projections: tuple[Tensor, ...] = ()
    color: FisherStage | None = None
    patches: FisherStage | None = None

    @property
    def num_features(self) -> int:
        """Length of an image's encoding."""
        return sum(stage.num_outputs for stage in (*self.stages, self.color, self.patches) if stage is not None)

    @property
    def has_color(self) -> bool:
        """Whether colour was used: three equal channels have equal means."""
        if self.color is None:
            return self.patches is not None and len(self.patches.components.mean) == 3 * self.settings.patch_side**2
        means = self.color.components.mean.reshape(-1, 3)
        return not torch.allclose(means, means[:, :1].expand(-1, 3), rtol=1e-4, atol=1e-6)

    def check_mean_pooling(self, use: str) -> None:
        """Refuse a use that takes an image's Fisher vector to be the mean over its descriptors.

        Args:
            use: For the message.

        Raises:
            ValueError: If the network was fitted with another ``global_pooling``.
        """
        if self.settings.global_pooling != "mean":
            raise ValueError(
                f"{use} needs a network with global_pooling='mean', got {self.settings.global_pooling!r}: "
                "generalised max pooling solves a system of equations for every image"
            )

    def to(self, device: torch.device | str) -> FisherNetwork:
        """Return the network on another device.

        Args:
            device: As for `torch.Tensor.to`.

        Returns:
            A network; what is there already is not copied.
        """
        return FisherNetwork(
            self.settings,
            tuple(stage.to(device) for stage in self.stages),
            tuple(projection.to(device) for projection in self.projections),
            None if self.color is None else self.color.to(device),
            None if self.patches is None else self.patches.to(device),
        )

    def for_new_images(self) -> FisherNetwork:
        """Leave out the projections of the cross-fitting folds, which are of no use after training.

        Returns:
            A network with one W a layer.
        """
        return replace(self, projections=tuple(projection[-1:].clone() for projection in self.projections))

    def grids(self, images: Tensor, *, level: int, fold: int = -1) -> list[DescriptorGrid]:
        """Compute the descriptors that enter a stage, before its PCA.

        Args:
            images: (B, C, H, W) in [0, 1], C = 1 or 3.
            level: Stage, from 0; stages and projections below it must be there.
            fold: Which W to use; -1 for images that no W was learned on.

        Returns:
            One grid a view, scale and window; a single grid without positions where the images are too small.
        """
        extract = grey_extractor(self.settings)
        grids = [grid for view in views(self.settings, images) for grid in extract(view)]
        for below in range(level):
            grids = self._above(below, self.stages[below].prepare(grids), fold)
        return grids

    def encode(self, images: Tensor, *, fold: int = -1) -> Tensor:
        """Compute the multi-layer descriptor.

        Args:
            images: (B, C, H, W) in [0, 1], C = 1 or 3.
            fold: Which W to use; -1 for images that no W was learned on.

        Returns:
            (B, `num_features`): the global Fisher vectors of all layers, of colour and of patches, each times the
            square root of its weight's share; of unit length unless some are zero.
        """
        parts = []
        grids = self.grids(images, level=0)
        for level, stage in enumerate(self.stages):
            prepared = stage.prepare(grids)
            parts.append((stage.weight, stage.encode(prepared)))
            if level < len(self.projections):
                grids = self._above(level, prepared, fold)
        if self.color is not None:
            grids = color_grids(self.settings, images)
            parts.append((self.color.weight, self.color.encode(self.color.prepare(grids))))
        if self.patches is not None:
            grids = self.patch_grids(images)
            parts.append((self.patches.weight, self.patches.encode(self.patches.prepare(grids))))
        total = sum(weight for weight, _ in parts)
        return torch.cat([encoding * (weight / total) ** 0.5 for weight, encoding in parts], dim=1)

    def patch_grids(self, images: Tensor) -> list[DescriptorGrid]:
        """Compute the descriptors that enter the stage of raw patches, which must be there.

        Args:
            images: (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            One grid a view.
        """
        assert self.patches is not None
        channels = len(self.patches.components.mean) // self.settings.patch_side**2
        return patch_grids(self.settings, images, color=channels == 3)

    def _above(self, level: int, prepared: list[DescriptorGrid], fold: int) -> list[DescriptorGrid]:
        pooling = self.settings.pooling
        projection = self.projections[level][fold]
        grids = pooling(prepared, self.stages[level].mixture, projection)
        if grids:
            return grids
        width = (4 if pooling.stacking else 1) * len(projection)
        empty = prepared[0].descriptors.new_empty(len(prepared[0].descriptors), 0, 0, width)
        return [DescriptorGrid(empty, prepared[0].positions.new_empty(0, 0, 2), prepared[0].scale)]
