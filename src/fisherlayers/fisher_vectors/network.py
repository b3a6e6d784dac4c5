"""A fitted Deep Fisher Network: pure functions of a batch of images, and nothing that learns.

    images -> descriptors -> [PCA, (x, y)] -> global Fisher vector 1 ─────────────┐
                                  └> semi-local layer -> [PCA, (x, y)] -> global 2 ┼> concatenation
    RGB    -> colour statistics -> [PCA, (x, y)] -> global Fisher vector ─────────┤
    pixels -> raw patches       -> [PCA, (x, y)] -> global Fisher vector ─────────┘

A `FisherStage` is the bracket together with its mixture. One stage is the shallow Fisher vector; each further stage
sits on a semi-local layer above the one before it. `fisherlayers.fisher_vectors.training` learns all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.descriptors import DescriptorExtractor, DescriptorGrid
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.sift import DenseSift
from fisherlayers.fisher_vectors.stage import FisherStage

__all__ = ["FisherNetwork", "color_grids", "grey_extractor", "patch_grids", "views"]


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
