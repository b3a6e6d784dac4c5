"""What one pass over the images computes of each batch.

Instances of classes, not functions: other processes are sent them. Each holds what it needs of the network so far, and
what was kept of the passes before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.images import Batch
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.fisher_vectors.streams import Stream, Streams

__all__ = ["Draw", "Encode", "Pool", "Whole"]


@dataclass(frozen=True)
class _Pass:
    """What all passes hold.

    Attributes:
        network: As far as it is learned.
        kept: Of the passes before.
        device: On which it is computed.
    """

    network: FisherNetwork
    kept: Kept
    device: str

    def streams(self, images: Tensor, batch: Batch, *, add: bool = True) -> Streams:
        """Return the descriptors of a batch.

        Args:
            images: (B, C, H, W).
            batch: Which ones; its key is the fold of W.
            add: Whether they are kept for the passes to come.

        Returns:
            Streams on the device.
        """
        network = self.network.to(self.device)
        return Streams(network, images.to(self.device), fold=batch.key, recall=self.kept.recall(batch, add=add))


@dataclass(frozen=True)
class Encode(_Pass):
    """The multi-layer descriptors of a batch."""

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the encodings.

        Args:
            images: (B, C, H, W).
            batch: Which ones.

        Returns:
            (B, features).
        """
        streams = self.streams(images, batch, add=False)
        return streams.network.encode_streams(streams).cpu().numpy()


@dataclass(frozen=True)
class Pool(_Pass):
    """Global Fisher vectors of one layer, made as the windows' are: what W is learned on."""

    level: int

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the Fisher vectors.

        Args:
            images: (B, C, H, W).
            batch: Which ones.

        Returns:
            (B, 2 K D).
        """
        streams = self.streams(images, batch)
        # Windows are means, whatever whole images are.
        stage = replace(streams.network.stages[self.level], pooling_damping=None)
        settings, grids = streams.network.settings, streams.prepared(self.level)
        return stage.encode(grids, assignment=settings.window_assignment, power=settings.window_power).cpu().numpy()


@dataclass(frozen=True)
class Draw(_Pass):
    """Random descriptors, with their positions, of each image."""

    stream: Stream
    seed: tuple[int, ...]
    per_image: int

    def __call__(self, images: Tensor, batch: Batch) -> list[np.ndarray]:
        """Return the descriptors.

        Args:
            images: (B, C, H, W).
            batch: Which ones.

        Returns:
            For each image up to `per_image` rows [descriptor, x, y].
        """
        rows = torch.cat(
            [
                torch.cat([g.descriptors, g.positions.expand(*g.descriptors.shape[:-1], 2)], dim=-1).flatten(1, 2)
                for g in self.streams(images, batch).descriptors(self.stream)
            ],
            dim=1,
        )
        chosen = []
        for image, index in zip(rows.cpu().numpy(), batch.indices, strict=True):
            # A generator an image: the sample depends neither on the batches nor on the order of the workers.
            rng = np.random.default_rng((*self.seed, index))
            chosen.append(image[rng.permutation(len(image))[: self.per_image]])
        return chosen


@dataclass(frozen=True)
class Whole(_Pass):
    """Fisher vectors of whole images before any normalisation, by a stage that the network does not have yet."""

    stream: Stream
    stage: FisherStage

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the Fisher vectors.

        Args:
            images: (B, C, H, W).
            batch: Which ones.

        Returns:
            (B, 2 K D).
        """
        stage = self.stage.to(self.device)
        descriptors = self.streams(images, batch).descriptors(self.stream)
        return stage.pool(stage.prepare(descriptors)).cpu().numpy()
