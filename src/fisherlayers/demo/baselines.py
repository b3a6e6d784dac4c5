"""The Deep Fisher Network's peers in the demo: a linear classifier on pixels, HOG + linear SVM, a small ConvNet.

All are scikit-learn classifiers of images: arrays (n, height, width) grey or (n, height, width, 3) RGB, uint8.
"""

import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from fisherlayers.fisher_vectors.selection import select_svm

Images = NDArray[Any]
COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Values of C among which cross-validation on the training images chooses."""


class LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear SVM on features of images, its C chosen by cross-validation.

    Features are standardised and divided by the square root of their number: rows have length 1 on average.

    Args:
        features: (n, height, width[, 3]) -> (n, features).
    """

    def __init__(self, features: Callable[[Images], NDArray[np.float32]]) -> None:
        self.features = features

    def fit(self, images: Images, labels: NDArray[Any]) -> Self:
        """Learn from labelled images.

        Args:
            images: (n, height, width) or (n, height, width, 3).
            labels: (n,).

        Returns:
            This classifier.
        """
        self.classes_, targets = np.unique(labels, return_inverse=True)
        rows = self.features(images)
        self.scaler_ = StandardScaler().fit(rows)
        self.svm_ = select_svm(self._scaled(rows), targets, COSTS)
        return self

    def _scaled(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = self.scaler_.transform(rows) / np.float32(np.sqrt(rows.shape[1]))
        return scaled

    def predict(self, images: Images) -> NDArray[Any]:
        """Return the class of each image.

        Args:
            images: as in `fit`.

        Returns:
            (n,): entries of `classes_`.
        """
        scores = self._scaled(self.features(images)) @ self.svm_.coef.T + self.svm_.intercept
        chosen = scores.argmax(1) if len(self.classes_) > 2 else np.int64(scores[:, 0] > 0)
        predicted: NDArray[Any] = self.classes_[chosen]
        return predicted


def pixel_features(images: Images) -> NDArray[np.float32]:
    """Return the pixels of each image as one row."""
    return np.float32(images).reshape(len(images), -1)


def hog_features(images: Images) -> NDArray[np.float32]:
    """Return the histograms of oriented gradients of each image (Dalal and Triggs, 2005).

    Args:
        images: (n, height, width) or (n, height, width, 3).

    Returns:
        (n, features): cells an eighth of the shorter side, at least 4 pixels, in blocks of 2 x 2; 9 orientations;
        L2-Hys.
    """
    cell = max(4, min(images.shape[1:3]) // 8)
    channel_axis = None if images.ndim == 3 else -1
    settings = {"orientations": 9, "pixels_per_cell": (cell, cell), "cells_per_block": (2, 2)}
    return np.array([hog(image, channel_axis=channel_axis, **settings) for image in images], dtype=np.float32)


class ConvNet(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A small ConvNet that trains for a given wall-clock time.

    Blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling until the maps are about 4 pixels
    wide, then global average pooling and a linear layer. AdamW with a one-cycle learning rate over the given time;
    training images are mirrored and shifted at random.

    Args:
        seconds: training time; the last step may exceed it.
        width: channels of the first block; they double up to four times that.
        learning_rate: highest of the cycle.
        batch_size: images a step.
        random_state: seed of the weights, batches and shifts.
        progress: called with the share of the time that has passed.
    """

    def __init__(
        self,
        seconds: float = 60.0,
        *,
        width: int = 16,
        learning_rate: float = 3e-3,
        batch_size: int = 32,
        random_state: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.seconds = seconds
        self.width = width
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.progress = progress

    def fit(self, images: Images, labels: NDArray[np.int64]) -> Self:
        """Train on labelled images.

        Args:
            images: (n, height, width) or (n, height, width, 3), uint8.
            labels: (n,).

        Returns:
            This classifier.
        """
        self.classes_, targets = np.unique(labels, return_inverse=True)
        inputs = _planes(images)
        self.mean_, self.deviation_ = inputs.mean().item(), inputs.std().item()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.network_ = self.network(inputs.shape, len(self.classes_))
            self._train((inputs - self.mean_) / self.deviation_, torch.from_numpy(targets))
        return self

    def network(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network with fresh weights; other architectures override this.

        Args:
            shape: (n, channels, height, width) of the inputs.
            classes: outputs.

        Returns:
            Images -> scores.
        """
        return convolutional_network(shape, classes, self.width)

    def _train(self, inputs: Tensor, targets: Tensor) -> None:
        optimizer = torch.optim.AdamW(self.network_.parameters(), lr=self.learning_rate, weight_decay=0.05)
        size = min(self.batch_size, len(inputs))
        self.steps_ = 0
        order = torch.randperm(len(inputs))
        start = time.perf_counter()
        self.network_.train()
        while (share := (time.perf_counter() - start) / self.seconds) < 1:
            if len(order) < size:
                order = torch.randperm(len(inputs))
            chosen, order = order[:size], order[size:]
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * one_cycle(share)
            loss = functional.cross_entropy(self.network_(augment(inputs[chosen])), targets[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.steps_ += 1
            if self.progress is not None:
                self.progress(share)

    @torch.no_grad()
    def decision_function(self, images: Images) -> NDArray[np.float32]:
        """Return the network's scores.

        Args:
            images: as in `fit`.

        Returns:
            (n, C), logits.
        """
        self.network_.eval()
        chunks = [images[start : start + 256] for start in range(0, len(images), 256)]
        scores = [self.network_((_planes(chunk) - self.mean_) / self.deviation_) for chunk in chunks]
        return torch.cat(scores).numpy()

    def predict(self, images: Images) -> NDArray[Any]:
        """Return the class of each image.

        Args:
            images: as in `fit`.

        Returns:
            (n,): entries of `classes_`.
        """
        predicted: NDArray[Any] = self.classes_[self.decision_function(images).argmax(1)]
        return predicted


def _planes(images: Images) -> Tensor:
    """Return images as float32 (n, channels, height, width) in [0, 1]."""
    planes = torch.from_numpy(np.float32(images) / 255)
    return planes.unsqueeze(1) if planes.ndim == 3 else planes.movedim(-1, 1)


def convolutional_network(shape: torch.Size, classes: int, width: int) -> nn.Sequential:
    """Return the network of `ConvNet`.

    Args:
        shape: (n, channels, height, width) of the inputs.
        classes: outputs.
        width: channels of the first block.

    Returns:
        The network with fresh weights.
    """
    layers: list[nn.Module] = []
    channels, side, block = shape[1], min(shape[2:]), 0
    while side >= 6 or block == 0:
        wider = min(width * 2**block, 4 * width)
        layers += [nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if side >= 2 else []
        channels, side, block = wider, side // 2, block + 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def one_cycle(share: float) -> float:
    """Return the learning rate's factor at a share of the training: up in the first fifth, then a cosine to zero."""
    if share < 0.2:
        return share / 0.2
    return 0.5 * (1 + float(np.cos(np.pi * (share - 0.2) / 0.8)))


def augment(inputs: Tensor) -> Tensor:
    """Return a batch mirrored at random and shifted by up to a sixteenth of its side, edges reflected.

    Args:
        inputs: (n, channels, height, width).

    Returns:
        The same shape.
    """
    mirrored = torch.where(torch.rand(len(inputs), 1, 1, 1) < 0.5, inputs.flip(-1), inputs)
    reach = max(1, min(inputs.shape[2:]) // 16)
    padded = functional.pad(mirrored, (reach,) * 4, mode="reflect")
    top, left = torch.randint(2 * reach + 1, (2,)).tolist()
    return padded[..., top : top + inputs.shape[2], left : left + inputs.shape[3]]
