"""The image half of the demo: contenders fitted and tested on the same images, one after the other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data import TrainTest


class ImageClassifier(Protocol):
    """What takes part in a contest."""

    def fit(self, images: Any, labels: Any) -> Any:
        """Learn from labelled images."""
        ...

    def predict(self, images: Any) -> NDArray[Any]:
        """Return one label an image."""
        ...


@dataclass(frozen=True)
class Entry:
    """A contender's result.

    Attributes:
        name: of the contender.
        accuracy: on the test images, in percent.
        fit_seconds: wall-clock time of fit.
        predict_seconds: wall-clock time of predict on all test images.
        predicted: (n,): its label of each test image.
    """

    name: str
    accuracy: float
    fit_seconds: float
    predict_seconds: float
    predicted: NDArray[Any]


def enter(name: str, classifier: ImageClassifier, data: TrainTest) -> Entry:
    """Fit a classifier on the training images and test it once.

    Args:
        name: of the contender.
        classifier: not yet fitted.
        data: images and labels.

    Returns:
        Its result.
    """
    start = time.perf_counter()
    classifier.fit(data.train_images, data.train_labels)
    fitted = time.perf_counter()
    predicted = classifier.predict(data.test_images)
    done = time.perf_counter()
    accuracy = 100 * float(np.mean(predicted == data.test_labels))
    return Entry(name, accuracy, fitted - start, done - fitted, predicted)


def hold_contest(
    network: ImageClassifier,
    peers: Mapping[str, Callable[[float], ImageClassifier]],
    data: TrainTest,
    *,
    on_start: Callable[[str], None] | None = None,
    name: str = "Deep Fisher Network",
) -> list[Entry]:
    """Test the network, then each peer.

    Args:
        network: the Deep Fisher Network; its fit time is what timed peers may use.
        peers: name -> maker, given the network's fit time in seconds.
        data: images and labels.
        on_start: called with each contender's name before it is fitted.
        name: what the network is called.

    Returns:
        The network's entry, then the peers'.
    """
    announce = on_start or (lambda _: None)
    announce(name)
    entries = [enter(name, network, data)]
    for peer, make in peers.items():
        announce(peer)
        entries.append(enter(peer, make(entries[0].fit_seconds), data))
    return entries


def choose_shown(predicted: NDArray[Any], actual: NDArray[Any], *, shown: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose images to show: at most a quarter of them mistakes, the rest drawn from the right answers.

    Args:
        predicted: (n,).
        actual: (n,).
        shown: how many at most.
        seed: of the draw.

    Returns:
        Indices, the right answers first.
    """
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(np.flatnonzero(predicted != actual))
    right = generator.permutation(np.flatnonzero(predicted == actual))
    count = max(shown // 4, shown - len(right))
    wrong = wrong[:count]
    return np.concatenate([right[: shown - len(wrong)], wrong])
