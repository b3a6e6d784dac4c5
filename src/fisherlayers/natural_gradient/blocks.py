"""Very wide inputs in blocks: a block-diagonal root, and only the statistics that it needs.

The information of D inputs has D² entries: 2.5 GB for the 25,088 inputs of a classifier on 7 x 7 x 512 features. With B
blocks of k inputs, each treated as the input of a layer of its own (mean, covariance, damping, scale), it has D k.
The bias takes up the means of all blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fisherlayers.information import DenseInformation
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.natural_gradient.following import Settings
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.parametrization import FisherWeight
from fisherlayers.natural_gradient.readers import Reader
from fisherlayers.natural_gradient.roots import input_coordinates
from fisherlayers.root import BlockRoot, DenseRoot, Root, blocks_of

__all__ = ["BlockWeight"]


class BlockWeight(FisherWeight):
    """The parametrization W = W' S with a block-diagonal S; ``settings.block_size`` is the most that a block may hold.

    The blocks are as even as they can be; the last one may be filled up with inputs that are always zero.
    """

    def __init__(self, reader: Reader, layout: Layout, settings: Settings) -> None:
        super().__init__(reader, layout, settings)
        self.origin = torch.zeros_like(self.information.second_moment[..., 0, :-1])

    @override
    def _start(self, size: int, shape: tuple[int, ...], like: dict[str, Any]) -> tuple[DenseInformation, Root]:
        assert self.settings.block_size is not None
        blocks = math.ceil(size / self.settings.block_size)
        width = math.ceil(size / blocks)
        information = DenseInformation(width + 1, decay=self.settings.decay, batch_shape=(blocks,), **like)
        return information, BlockRoot(torch.eye(width, **like).repeat(blocks, 1, 1), size)

    @override
    def _arranged(self, rows: Tensor) -> Tensor:
        return blocks_of(rows, *self.origin.shape)

    @override
    def refreshed(self) -> Coordinates | None:
        blocks, width = self.origin.shape
        eye = torch.eye(width, dtype=self.origin.dtype, device=self.origin.device)
        dense = DenseRoot(eye.expand(blocks, -1, -1))
        found = input_coordinates(
            self.information.value(), self.origin, centred=self.centred, damping=self.damping, previous=dense
        )
        if found is None:
            return None
        root = BlockRoot(found.root.dense(), self.mean.shape[-1])
        return Coordinates(root, found.mean.flatten()[: self.mean.shape[-1]])
