"""What one pass over the images computes of each batch.

Instances of classes, not functions: other processes are sent them. Each holds what it needs of the network so far, and
what was kept of the passes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
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
        grids = self.streams(images, batch).descriptors(self.stream)
        counts = [grid.positions[..., 0].numel() for grid in grids]
        chosen = []
        for image, index in enumerate(batch.indices):
            # A generator an image: the sample depends neither on the batches nor on the order of the workers.
            rng = np.random.default_rng((*self.seed, index))
            places = torch.from_numpy(rng.permutation(sum(counts))[: self.per_image]).to(self.device)
            chosen.append(_rows_at(grids, counts, image, places).cpu().numpy())
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


def _rows_at(grids: Sequence[DescriptorGrid], counts: Sequence[int], image: int, places: Tensor) -> Tensor:
    # [descriptor, x, y] of an image, (places, D + 2), by the places in all grids one after the other: what is not drawn
    # is not copied.
    rows = grids[0].descriptors.new_empty(len(places), grids[0].descriptors.shape[-1] + 2)
    start = 0
    for grid, count in zip(grids, counts, strict=True):
        here = (places >= start) & (places < start + count)
        at = places[here] - start
        rows[here] = torch.cat([grid.descriptors[image].flatten(0, 1)[at], grid.positions.flatten(0, 1)[at]], dim=-1)
        start += count
    return rows
