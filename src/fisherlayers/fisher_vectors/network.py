"""A fitted Deep Fisher Network: pure functions of a batch of images, and nothing that learns.

    images -> descriptors -> [PCA, (x, y)] -> global Fisher vector 1 ─────────────┐
                                  └> semi-local layer -> [PCA, (x, y)] -> global 2 ┼> concatenation
    RGB    -> colour statistics -> [PCA, (x, y)] -> global Fisher vector ─────────┤
    pixels -> raw patches       -> [PCA, (x, y)] -> global Fisher vector ─────────┘

A `FisherStage` is the bracket together with its mixture. One stage is the shallow Fisher vector; each further stage
sits on a semi-local layer above the one before it. `fisherlayers.fisher_vectors.training` learns all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.fisher_vectors.streams import Stream, Streams

__all__ = ["FisherNetwork"]


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
    def streams(self) -> list[Stream]:
        """What ends in a global Fisher vector, in the order of the encoding: layers, colour, patches."""
        streams: list[Stream] = list(range(len(self.stages)))
        if self.color is not None:
            streams.append("colour")
        if self.patches is not None:
            channels = len(self.patches.components.mean) // self.settings.patch_side**2
            streams.append("colour patches" if channels == 3 else "grey patches")
        return streams

    def stage(self, stream: Stream) -> FisherStage:
        """Return the stage that pools a stream.

        Args:
            stream: One of `streams`.

        Returns:
            The stage.
        """
        if not isinstance(stream, str):
            return self.stages[stream]
        found = self.color if stream == "colour" else self.patches
        assert found is not None
        return found

    @property
    def num_features(self) -> int:
        """Length of an image's encoding."""
        return sum(self.stage(stream).num_outputs for stream in self.streams)

    @property
    def has_color(self) -> bool:
        """Whether colour was used: three equal channels have equal means."""
        if self.color is None:
            return "colour patches" in self.streams
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

    def grids(self, images: Tensor, *, stream: Stream, fold: int = -1) -> list[DescriptorGrid]:
        """Compute the descriptors that enter a stage, before its PCA.

        Args:
            images: (B, C, H, W) in [0, 1], C = 1 or 3.
            stream: Stages and projections below it must be there.
            fold: Which W to use; -1 for images that no W was learned on.

        Returns:
            One grid a view, scale and window; a single grid without positions where the images are too small.
        """
        return Streams(self, images, fold=fold).descriptors(stream)

    def encode(self, images: Tensor, *, fold: int = -1) -> Tensor:
        """Compute the multi-layer descriptor.

        Args:
            images: (B, C, H, W) in [0, 1], C = 1 or 3.
            fold: Which W to use; -1 for images that no W was learned on.

        Returns:
            (B, `num_features`): see `concatenate`.
        """
        return self.encode_streams(Streams(self, images, fold=fold))

    def encode_streams(self, streams: Streams) -> Tensor:
        """Compute the multi-layer descriptor of images whose descriptors may be known.

        Args:
            streams: Of this network.

        Returns:
            (B, `num_features`): see `concatenate`.
        """
        return self.concatenate([self.stage(stream).encode(streams.prepared(stream)) for stream in self.streams])

    def concatenate(self, encodings: Sequence[Tensor]) -> Tensor:
        """Make the multi-layer descriptor of the streams' normalised Fisher vectors.

        Args:
            encodings: (B, 2 K D) of each of `streams`.

        Returns:
            (B, `num_features`): the global Fisher vectors of all layers, of colour and of patches, each times the
            square root of its weight's share; of unit length unless some are zero.
        """
        weights = [self.stage(stream).weight for stream in self.streams]
        total = sum(weights)
        parts = [rows * (weight / total) ** 0.5 for rows, weight in zip(encodings, weights, strict=True)]
        return torch.cat(parts, dim=1)

    def pool_windows(self, level: int, prepared: list[DescriptorGrid], fold: int) -> list[DescriptorGrid]:
        """Pass descriptors through the semi-local layer above a stage.

        Args:
            level: Of the stage and of the projection.
            prepared: Its descriptors, as it pools them.
            fold: Which W to use.

        Returns:
            The descriptors that enter the next stage.
        """
        pooling = self.settings.pooling
        projection = self.projections[level][fold]
        grids = pooling(prepared, self.stages[level].mixture, projection)
        if grids:
            return grids
        width = (4 if pooling.stacking else 1) * len(projection)
        empty = prepared[0].descriptors.new_empty(len(prepared[0].descriptors), 0, 0, width)
        return [DescriptorGrid(empty, prepared[0].positions.new_empty(0, 0, 2), prepared[0].scale)]
