"""Labels at the estimators' door: one or several an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

__all__ = ["check_labels"]


def check_labels(y: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Check labels and number their classes.

    Args:
        y: Labels, (n,); or 0 and 1, (n, C), for several labels an image, which may be sparse.
        count: n.

    Returns:
        The classes, and class indices (n,), or 0 and 1 (n, C).

    Raises:
        ValueError: If they are no labels, or of another number, or all the same.
    """
    if y is None:
        raise ValueError("labels are needed: this fit requires y to be passed, but the target y is None")
    labels = y.toarray() if issparse(y) else np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = column_or_1d(labels, warn=True)
    if labels.ndim not in {1, 2}:
        raise ValueError(f"y must be a list of labels, one an image, or a matrix of 0 and 1, got shape {labels.shape}")
    if len(labels) != count:
        raise ValueError(f"y must hold one label an image, got {len(labels)} labels for {count} images")
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("y with several columns must hold 0 and 1, a column a label; found other values")
        return np.arange(labels.shape[1]), labels.astype(np.int64)
    check_classification_targets(labels)
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y must hold at least two classes, got one class, {classes[0]}: there is nothing to tell apart"
        )
    return classes, indices
