"""What a pass over the training images leaves for the passes after it.

Every stage is learned in passes of its own, and each of them begins with the same descriptors. They are kept as far as
memory allows, image by image: their last bit does not depend on what stands beside an image in its batch, as that of a
window's does. The Fisher vectors from which the empirical information is taken are those of the encodings, but for the
normalisation. They are always kept, since the last bit of an encoding must not depend on the memory either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.images import Batch
from fisherlayers.fisher_vectors.streams import Recall, Stream

__all__ = ["Kept"]


class Kept:
    """Descriptors and pooled Fisher vectors of the images of one fit.

    Threads may share one. What pickle makes of it is empty and stays so: other processes compute for themselves.

    Args:
        limit: Bytes that the descriptors of one stream may take.
        folds: Fold of the W that each image of the fit is passed through, (n,).
    """

    def __init__(self, limit: int = 0, folds: Sequence[int] | np.ndarray = ()) -> None:
        self._limit = limit
        self.folds = np.asarray(folds, dtype=int)
        self._descriptors: dict[Stream, dict[int, list[DescriptorGrid]]] = {}
        self._sizes: dict[Stream, int] = {}
        self._pooled: dict[Stream, dict[int, Tensor]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        """Leave everything here.

        Returns:
            What makes an empty one.
        """
        return Kept, ()

    def recall(self, batch: Batch, *, add: bool = True) -> Recall:
        """Return what gives the descriptors of a batch: from here if all of them are kept, else computed.

        Args:
            batch: Images of the fit.
            add: Whether descriptors that are computed are kept, if there is room.

        Returns:
            The argument of `Streams`.
        """

        def recall(stream: Stream, compute: Callable[[], list[DescriptorGrid]]) -> list[DescriptorGrid]:
            known = self._descriptors.get(stream, {})
            found = [known[index] for index in batch.indices if index in known]
            if len(found) == len(batch.indices):
                return _side_by_side(found)
            grids = compute()
            if add:
                self._add(stream, batch.indices, grids)
            return grids

        return recall

    def keep_pooled(self, stream: Stream, indices: Sequence[int], pooled: Tensor) -> None:
        """Keep Fisher vectors of whole images.

        Args:
            stream: Which one.
            indices: n images.
            pooled: Before any normalisation, (n, 2 K D).
        """
        self._pooled[stream] = dict(zip(indices, pooled, strict=True))

    def has_pooled(self, stream: Stream) -> bool:
        """Return whether there are Fisher vectors of a stream.

        Args:
            stream: Which one.
        """
        return stream in self._pooled

    def pooled(self, streams: Sequence[Stream]) -> dict[int, list[Tensor]]:
        """Return the images whose Fisher vectors are known in all of some streams.

        Args:
            streams: At least one.

        Returns:
            Index -> Fisher vectors before any normalisation, (2 K D,) each, in the order of the streams.
        """
        rows = [self._pooled.get(stream, {}) for stream in streams]
        return {index: [known[index] for known in rows] for index in rows[0] if all(index in known for known in rows)}

    def _add(self, stream: Stream, indices: Sequence[int], grids: list[DescriptorGrid]) -> None:
        size = sum(grid.descriptors.nbytes for grid in grids)
        with self._lock:
            if self._sizes.get(stream, 0) + size > self._limit:
                return
            self._sizes[stream] = self._sizes.get(stream, 0) + size
            known = self._descriptors.setdefault(stream, {})
        for row, index in enumerate(indices):
            known[index] = [grid._replace(descriptors=grid.descriptors[row : row + 1]) for grid in grids]


def _side_by_side(images: list[list[DescriptorGrid]]) -> list[DescriptorGrid]:
    if len(images) == 1:
        return images[0]
    return [
        grids[0]._replace(descriptors=torch.cat([grid.descriptors for grid in grids]))
        for grids in zip(*images, strict=True)
    ]
