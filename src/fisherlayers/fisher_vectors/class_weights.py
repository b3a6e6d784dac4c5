"""Class weights: factors of an SVM's cost for the images of each class, in scikit-learn's and liblinear's meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ClassWeight", "class_weights", "problem_factors"]

ClassWeight = Mapping[Any, float] | str | None


def class_weights(class_weight: ClassWeight, labels: np.ndarray) -> np.ndarray | None:
    """Return the factor of each class.

    Args:
        class_weight: ``"balanced"``: n / (C n_c) for the n_c images of a class; or class index -> factor, 1 for those
            that are not named; or None.
        labels: Class indices 0 .. C - 1, (n,); or 0 and 1, (n, C), for several labels an image, of which only
            ``"balanced"`` makes sense: each label's images weigh as much as the others.

    Returns:
        (C,); for several labels (C, 2), for images without and with the label; None for no weights.

    Raises:
        ValueError: If ``class_weight`` is anything else.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be 'balanced', a dictionary or None, got {class_weight!r}")
        counts = np.bincount(labels) if labels.ndim == 1 else np.stack([(1 - labels).sum(0), labels.sum(0)], axis=1)
        classes = len(counts) if labels.ndim == 1 else 2
        return len(labels) / (classes * np.maximum(counts, 1))
    if not isinstance(class_weight, Mapping):
        raise ValueError(f"class_weight must be 'balanced', a dictionary or None, got {class_weight!r}")
    if labels.ndim == 2:
        raise ValueError("class_weight must be 'balanced' or None for several labels an image, got a dictionary")
    classes = int(labels.max()) + 1
    try:
        weights = np.array([class_weight.get(index, 1.0) for index in range(classes)], dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"class_weight must hold a number for each label, got {class_weight!r}") from None
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"class_weight must hold factors that are finite and not negative, got {class_weight!r}")
    return weights


def problem_factors(targets: Tensor, labels: np.ndarray, weights: np.ndarray | None) -> Tensor:
    """Return each image's factor of C in each problem.

    With more than two classes a class's factor acts in its own problem only, as in liblinear.

    Args:
        targets: 1 and -1, (n, P); P = 1 for two classes.
        labels: As for `class_weights`.
        weights: From `class_weights`.

    Returns:
        (n, P).
    """
    if weights is None:
        return torch.ones_like(targets)
    factors = torch.as_tensor(weights, dtype=targets.dtype)
    if labels.ndim == 2:
        return torch.where(targets > 0, factors[:, 1], factors[:, 0])
    if targets.shape[1] == 1:
        return factors[torch.as_tensor(labels)][:, None]
    return torch.where(targets > 0, factors, 1.0)
