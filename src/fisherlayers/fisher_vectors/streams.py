"""The descriptors of one batch of images on their way through a network, each kind computed once and if it is wanted.

A stream is what ends in one global Fisher vector: a Fisher layer by its number from 0, the colour statistics, or the
raw patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.descriptors import DescriptorExtractor, DescriptorGrid
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.sift import DenseSift

if TYPE_CHECKING:
    from fisherlayers.fisher_vectors.network import FisherNetwork

__all__ = ["Recall", "Stream", "Streams", "grey_extractor", "views"]

Stream = int | Literal["colour", "colour patches", "grey patches"]
Recall = Callable[[Stream, Callable[[], list[DescriptorGrid]]], list[DescriptorGrid]]


class Streams:
    """Descriptors of a batch, of all streams below which the network has what it takes.

    Attributes:
        network: Whose descriptors they are.

    Args:
        network: Stages and projections below a stream must be there; its own stage need not.
        images: (B, C, H, W) in [0, 1], C = 1 or 3.
        fold: Which W to use; -1 for images that no W was learned on.
        recall: Called as ``recall(stream, compute)`` for streams that begin at the images: returns their descriptors,
            from ``compute`` or from elsewhere.
    """

    def __init__(self, network: FisherNetwork, images: Tensor, *, fold: int = -1, recall: Recall | None = None) -> None:
        self.network, self._images, self._fold, self._recall = network, images, fold, recall
        self._descriptors: dict[Stream, list[DescriptorGrid]] = {}
        self._prepared: dict[Stream, list[DescriptorGrid]] = {}

    def descriptors(self, stream: Stream) -> list[DescriptorGrid]:
        """Return the descriptors that enter a stream, before its PCA.

        Args:
            stream: Which one.

        Returns:
            One grid a view, scale and window; a single grid without positions where the images are too small.
        """
        if stream not in self._descriptors:

            def compute() -> list[DescriptorGrid]:
                return self._compute(stream)

            recall = self._recall if stream == 0 or isinstance(stream, str) else None
            self._descriptors[stream] = compute() if recall is None else recall(stream, compute)
        return self._descriptors[stream]

    def prepared(self, stream: Stream) -> list[DescriptorGrid]:
        """Return the descriptors of a stream as its stage pools them.

        Args:
            stream: One that the network has.

        Returns:
            The same grids after PCA, with coordinates.
        """
        if stream not in self._prepared:
            self._prepared[stream] = self.network.stage(stream).prepare(self.descriptors(stream))
        return self._prepared[stream]

    def _compute(self, stream: Stream) -> list[DescriptorGrid]:
        settings, images = self.network.settings, self._images
        if stream == "colour":
            extract = LocalColorStatistics(bin_sizes=settings.bin_sizes, step=settings.step)
            return _each_view(settings, images.expand(-1, 3, -1, -1), extract)
        if isinstance(stream, str):
            # Patches leave the continued border out.
            border = settings.padding
            inner = images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
            color = stream == "colour patches"
            extract_patches = RawPatches(side=settings.patch_side, step=settings.patch_step, color=color)
            return _each_view(settings, inner, extract_patches)
        if stream == 0:
            return _each_view(settings, images, grey_extractor(settings))
        return self.network.pool_windows(stream - 1, self.prepared(stream - 1), self._fold)


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


def _each_view(settings: NetworkSettings, images: Tensor, extract: DescriptorExtractor) -> list[DescriptorGrid]:
    return [grid for view in views(settings, images) for grid in extract(view)]
