"""PyTorch networks beside the Fisher network: their features and their scores behind scikit-learn's methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from fisherlayers.fisher_vectors.images import ImageList, by_position
from fisherlayers.fisher_vectors.module_pixels import (
    check_pixels,
    check_size,
    resampled,
    standardised,
    with_channels,
)

__all__ = ["ModuleClassifier", "ModuleFeatures", "module_outputs"]


def module_outputs(
    module: nn.Module,
    images: Any,
    *,
    size: tuple[int, int] | None = None,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    channels: int = 3,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Run a network on images, in evaluation mode and without gradients.

    Args:
        module: Images (B, channels, H, W) to rows (B, F), or to maps (B, F, h, w), of which means over positions are
            taken.
        images: As for `DeepFisherNetwork.fit`.
        size: (H, W) to which images are resampled; None leaves them, and they must be of one size.
        mean: Subtracted from pixels in [0, 1], one number or one a channel.
        std: By which they are divided then. The defaults map to [-1, 1].
        channels: 1 or 3; grey images are given three equal channels, colour ones are averaged for one.
        batch_size: Images at a time, at least 1.
        device: Where the module is and the work is done.

    Returns:
        (n, F), float32.

    Raises:
        ValueError: If an argument lies outside its range or the outputs are of another shape.
    """
    check_pixels(channels, mean, std)
    check_size("size", size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 image, got {batch_size}")
    listed = ImageList(images)
    if size is None and len({shape[1:] for shape in listed.shapes}) > 1:
        raise ValueError("images are of several sizes: give the size (H, W) that the module takes")
    rows: np.ndarray | None = None
    was_training = module.training
    module.eval()
    try:
        for indices, batch in _batches(listed, size, channels, batch_size):
            with torch.inference_mode():
                outputs = module(standardised(batch, mean, std).to(device))
                outputs = outputs.mean(dim=(2, 3)) if outputs.ndim == 4 else outputs
            if outputs.ndim != 2 or len(outputs) != len(indices):
                raise ValueError(f"module must return (B, F) or (B, F, h, w), got shape {tuple(outputs.shape)}")
            if rows is None:
                rows = np.empty((len(listed), outputs.shape[1]), dtype=np.float32)
            rows[indices] = outputs.float().cpu().numpy()
    finally:
        module.train(was_training)
    assert rows is not None
    return rows


def _batches(
    images: ImageList, size: tuple[int, int] | None, channels: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    whole = images.prepared(max_pixels=max(h * w for _, h, w in images.shapes), upsample=1, padding=0)
    indices: list[int] = []
    waiting: list[Tensor] = []
    for batch in whole.batches():
        pixels = resampled(with_channels(whole.load(batch), channels), size)
        for index, image in zip(batch.indices, pixels, strict=True):
            indices.append(index)
            waiting.append(image)
            if len(waiting) == batch_size:
                yield indices, torch.stack(waiting)
                indices, waiting = [], []
    if waiting:
        yield indices, torch.stack(waiting)


class _ModuleEstimator(BaseEstimator):  # type: ignore[misc]
    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _outputs(self, images: Any) -> np.ndarray:
        options = {name: value for name, value in self.get_params(deep=False).items() if name not in {"classes", "l2"}}
        return module_outputs(options.pop("module"), images, **options)


class ModuleFeatures(TransformerMixin, _ModuleEstimator):  # type: ignore[misc]
    """Features of images by a network that is trained already: a transformer for pipelines.

    With `fisherlayers.fisher_vectors.linear_svm.LinearSVM` behind it, it is a linear probe, and a member of a
    `LateFusion`.

    Args:
        module: As for `module_outputs`.
        size: As for `module_outputs`.
        mean: As for `module_outputs`.
        std: As for `module_outputs`.
        channels: As for `module_outputs`.
        batch_size: As for `module_outputs`.
        device: As for `module_outputs`.
        l2: Whether every row is divided by its L2 norm.

    Attributes:
        n_features_out_: F, known after `fit`, which `transform` does not need.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: tuple[int, int] | None = None,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        channels: int = 3,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        l2: bool = True,
    ) -> None:
        self.module = module
        self.size = size
        self.mean = mean
        self.std = std
        self.channels = channels
        self.batch_size = batch_size
        self.device = device
        self.l2 = l2

    def fit(self, images: Any, y: Any = None) -> Self:
        """Count the features of the first image; the module is trained already.

        Args:
            images: As for `DeepFisherNetwork.fit`.
            y: Ignored.

        Returns:
            Itself.
        """
        self.n_features_out_ = self._outputs(by_position(images)[:1]).shape[1]
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the features, ``feature0`` and so on.

        Args:
            input_features: Not used; images have no feature names.

        Returns:
            (F,), strings.
        """
        check_is_fitted(self, "n_features_out_")
        return np.array([f"feature{index}" for index in range(self.n_features_out_)], dtype=object)

    def transform(self, images: Any) -> np.ndarray:
        """Compute features.

        Args:
            images: As for `DeepFisherNetwork.fit`.

        Returns:
            (n, F), float32.
        """
        rows = self._outputs(images)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) if self.l2 else rows


class ModuleClassifier(ClassifierMixin, _ModuleEstimator):  # type: ignore[misc]
    """A network that is trained already to these classes: its logits are its scores.

    Its scores of images that it was trained on are too sure: learn fusion weights on others.

    Args:
        module: Images (B, channels, H, W) to logits (B, C), C at least 2.
        classes: Labels in the order of the logits.
        size: As for `module_outputs`.
        mean: As for `module_outputs`.
        std: As for `module_outputs`.
        channels: As for `module_outputs`.
        batch_size: As for `module_outputs`.
        device: As for `module_outputs`.
    """

    def __init__(
        self,
        module: nn.Module,
        classes: Sequence[Any],
        *,
        size: tuple[int, int] | None = None,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        channels: int = 3,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = module
        self.classes = classes
        self.size = size
        self.mean = mean
        self.std = std
        self.channels = channels
        self.batch_size = batch_size
        self.device = device

    @property
    def classes_(self) -> np.ndarray:
        """Labels in the order of the scores' columns."""
        return np.asarray(self.classes)

    def fit(self, images: Any, y: Any) -> Self:
        """Do nothing but check the labels: the module is trained already.

        Args:
            images: Ignored.
            y: Labels, each one of ``classes``.

        Returns:
            Itself.

        Raises:
            ValueError: If a label is none of them.
        """
        if unknown := sorted({str(label) for label in np.setdiff1d(np.asarray(y), self.classes_)}):
            raise ValueError(f"y has labels that are not among classes: {', '.join(unknown)}")
        return self

    def decision_function(self, images: Any) -> np.ndarray:
        """Score images.

        Args:
            images: As for `DeepFisherNetwork.fit`.

        Returns:
            (n, C), or for two classes the difference of their logits, (n,).

        Raises:
            ValueError: If the module gives another number of logits.
        """
        logits = self._outputs(images)
        if logits.shape[1] != len(self.classes_):
            raise ValueError(f"module gives {logits.shape[1]} logits, expected {len(self.classes_)}, one a class")
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, images: Any) -> np.ndarray:
        """Classify images.

        Args:
            images: As for `DeepFisherNetwork.fit`.

        Returns:
            Labels, (n,).
        """
        scores = self.decision_function(images)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
