"""The labelled image sets of the benchmarks, read from the data folder (`common.data_folder`)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data import TrainTest, load_folder, load_mnist
from fisherlayers.data.cifar10 import load_cifar10
from fisherlayers.data.fashion_mnist import load_fashion_mnist
from fisherlayers.data.images import read_image, to_grey


class Split(NamedTuple):
    """Labelled images in memory.

    Attributes:
        images: (n, height, width[, 3]) in one array, or a list where sizes differ; uint8.
        labels: (n,), positions in the class list.
    """

    images: Any
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> "Split":
        """Return the chosen images in the order of `indices`."""
        if isinstance(self.images, list):
            return Split([self.images[index] for index in indices], self.labels[indices])
        return Split(self.images[indices], self.labels[indices])


class LabelledSet(NamedTuple):
    """A data set with its own split.

    Attributes:
        name: as people call it.
        train: to learn from.
        test: to be scored once.
        classes: names.
        note: what a reader of the figures must know.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    note: str = ""


def fifteen_scenes(folder: Path) -> LabelledSet:
    """Return 15-Scenes: grey photographs of about 256 x 256 pixels, 100 a class to train, 2,985 to test."""
    note = (
        "The standard split: 100 training images a class, all others to test; accuracy is the mean over classes. "
        "18 files are duplicates byte for byte; 11 of those pairs straddle the split (0.4 % of the test images)."
    )
    return _folders("15-Scenes", folder / "scene15", ("train", "test"), note, color=False)


def flowers_12(folder: Path) -> LabelledSet:
    """Return Flowers-12: colour photographs of 224 x 224 pixels, 60 a class to train, 20 to test."""
    note = "240 test images: one image is 0.42 points."
    return _folders("Flowers-12", folder / "flowers12", ("train", "test"), note, color=True)


def tiny_imagenet_20(folder: Path) -> LabelledSet:
    """Return Tiny-ImageNet-20: colour images of 64 x 64 pixels, 500 a class to train, 50 to test."""
    note = "Every tenth class of Tiny ImageNet in the order of names; its validation images are the test set."
    return _folders("Tiny-ImageNet-20", folder / "tiny-imagenet-20", ("train", "val"), note, color=True)


def cifar_10(folder: Path) -> LabelledSet:
    """Return CIFAR-10: colour images of 32 x 32 pixels, 50,000 to train, 10,000 to test."""
    return _of("CIFAR-10", load_cifar10(folder))


def mnist(folder: Path) -> LabelledSet:
    """Return MNIST: digits of 28 x 28 pixels, 60,000 to train, 10,000 to test."""
    return _of("MNIST", load_mnist(folder / "mnist"))


def fashion_mnist(folder: Path) -> LabelledSet:
    """Return Fashion-MNIST: grey clothes of 28 x 28 pixels, 60,000 to train, 10,000 to test."""
    return _of("Fashion-MNIST", load_fashion_mnist(folder / "fashion-mnist"))


def _of(name: str, data: TrainTest) -> LabelledSet:
    train, test = Split(data.train_images, data.train_labels), Split(data.test_images, data.test_labels)
    return LabelledSet(name, train, test, tuple(data.classes), "The standard split.")


def per_class(labels: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `number` indices of each class, drawn at random, in rising order."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([rng.permutation(entries)[:number] for entries in members]))


def held_out(split: Split, share: float, rng: np.random.Generator) -> tuple[Split, Split]:
    """Divide a split in two, class by class.

    Args:
        split: labelled images.
        share: of each class's images in the second part.
        rng: draws them.

    Returns:
        The larger part to learn from, and the part to score.
    """
    second = np.concatenate([
        rng.permutation(members)[: round(share * len(members))]
        for members in (np.flatnonzero(split.labels == label) for label in np.unique(split.labels))
    ])
    first = np.setdiff1d(np.arange(len(split.labels)), second)
    return split.take(first), split.take(np.sort(second))


def _folders(name: str, root: Path, parts: tuple[str, str], note: str, *, color: bool) -> LabelledSet:
    splits = []
    for part in parts:
        files = load_folder(root / part)
        images: Any = [_channels(read_image(path), color=color) for path in files.paths]
        if len({image.shape for image in images}) == 1:
            images = np.stack(images)
        splits.append(Split(images, files.labels))
    return LabelledSet(name, *splits, tuple(files.classes), note)


def _channels(image: NDArray[np.uint8], *, color: bool) -> NDArray[np.uint8]:
    if not color:
        return to_grey(image)
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
