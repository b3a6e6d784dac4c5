"""CIFAR-10: 60,000 colour pictures of ten kinds of things, 32 x 32 pixels (Krizhevsky, 2009), in its binary version."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data.image_sets import TrainTest
from fisherlayers.data.places import find_files

CIFAR10_CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_TRAIN: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_RECORD: Final = 1 + 3 * 32 * 32


def load_cifar10(root: str | Path | None = None) -> TrainTest:
    """Return CIFAR-10 from the six files of its binary version.

    Args:
        root: the only folder to search, it or its subfolder cifar-10-batches-bin; None searches $FISHERLAYERS_DATA
            and the user's cache.

    Returns:
        uint8 RGB images (n, 32, 32, 3), 50,000 to train and 10,000 to test, and labels 0..9. Missing files are a
        `DataNotFoundError`, damaged ones a ValueError.
    """
    *train, test = find_files(
        "CIFAR-10",
        [*_TRAIN, "test_batch.bin"],
        folders=("cifar-10-batches-bin", "cifar-10"),
        root=root,
        source="cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    parts = [parse_cifar(path.read_bytes(), source=str(path)) for path in train]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TrainTest(images, labels, *parse_cifar(test.read_bytes(), source=str(test)), [*CIFAR10_CLASSES])


def parse_cifar(raw: bytes, *, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return what a binary batch holds: records of a label and 3,072 pixels, channel by channel, row by row.

    Args:
        raw: the file's bytes.
        source: what error messages call it.

    Returns:
        uint8 images (n, 32, 32, 3) and int64 labels (n,).

    Raises:
        ValueError: the bytes are not whole records, or a label is not in 0..9.
    """
    if not raw or len(raw) % _RECORD:
        raise ValueError(f"{source} is damaged: {len(raw)} bytes are no whole records of {_RECORD}; fetch it again")
    records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CIFAR10_CLASSES):
        raise ValueError(f"{source} is no CIFAR-10 batch: it holds the label {labels.max()}, expected 0..9")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
