"""What the loaders return: a list of labelled files, or arrays already split into train and test."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageSet:
    """Labelled image files, not yet read.

    Attributes:
        paths: n files.
        labels: (n,), positions in `classes`.
        classes: the class names, sorted.
        notes: what the loader left out and why, one sentence each.
    """

    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def names(self) -> NDArray[np.str_]:
        """Return the class name of each file, (n,): the `y` that a classifier shows in its predictions."""
        return np.array(self.classes)[self.labels]

    def __len__(self) -> int:
        return len(self.paths)


class TrainTest(NamedTuple):
    """Labelled images in memory.

    Attributes:
        train_images: (n, height, width) grey or (n, height, width, 3) RGB.
        train_labels: (n,), positions in `classes`.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        classes: the class names.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]
    classes: list[str]


class DataNotFoundError(FileNotFoundError):
    """A standard data set that is not on this machine. The message says how to get it."""
