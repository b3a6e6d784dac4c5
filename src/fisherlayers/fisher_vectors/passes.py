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
class Encode:
    """The multi-layer descriptors of a batch."""

    network: FisherNetwork
    kept: Kept
    device: str

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the encodings.

        Args:
            images: (B, C, H, W).
            batch: Which ones; its key is the fold of W.

        Returns:
            (B, features).
        """
        network = self.network.to(self.device)
        streams = _streams(network, self.kept, self.device, images, batch, add=False)
        return network.encode_streams(streams).cpu().numpy()


@dataclass(frozen=True)
class Pool:
    """Global Fisher vectors of one layer, made as the windows' are: what W is learned on."""

    network: FisherNetwork
    kept: Kept
    level: int
    device: str

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the Fisher vectors.

        Args:
            images: (B, C, H, W).
            batch: Which ones; its key is the fold of the W below.

        Returns:
            (B, 2 K D).
        """
        network = self.network.to(self.device)
        # Windows are means, whatever whole images are.
        stage = replace(network.stages[self.level], pooling_damping=None)
        grids = _streams(network, self.kept, self.device, images, batch).prepared(self.level)
        settings = network.settings
        return stage.encode(grids, assignment=settings.window_assignment, power=settings.window_power).cpu().numpy()


@dataclass(frozen=True)
class Draw:
    """Random descriptors, with their positions, of each image."""

    network: FisherNetwork
    kept: Kept
    stream: Stream
    device: str
    seed: tuple[int, ...]
    per_image: int

    def __call__(self, images: Tensor, batch: Batch) -> list[np.ndarray]:
        """Return the descriptors.

        Args:
            images: (B, C, H, W).
            batch: Which ones; its key is the fold of W.

        Returns:
            For each image up to `per_image` rows [descriptor, x, y].
        """
        streams = _streams(self.network.to(self.device), self.kept, self.device, images, batch)
        rows = torch.cat(
            [
                torch.cat([g.descriptors, g.positions.expand(*g.descriptors.shape[:-1], 2)], dim=-1).flatten(1, 2)
                for g in streams.descriptors(self.stream)
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
class Whole:
    """Fisher vectors of whole images before any normalisation, by a stage that the network does not have yet."""

    network: FisherNetwork
    kept: Kept
    stream: Stream
    device: str
    stage: FisherStage

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        """Return the Fisher vectors.

        Args:
            images: (B, C, H, W).
            batch: Which ones; its key is the fold of W.

        Returns:
            (B, 2 K D).
        """
        stage = self.stage.to(self.device)
        streams = _streams(self.network.to(self.device), self.kept, self.device, images, batch)
        return stage.pool(stage.prepare(streams.descriptors(self.stream))).cpu().numpy()


def _streams(
    network: FisherNetwork, kept: Kept, device: str, images: Tensor, batch: Batch, *, add: bool = True
) -> Streams:
    return Streams(network, images.to(device), fold=batch.key, recall=kept.recall(batch, add=add))
