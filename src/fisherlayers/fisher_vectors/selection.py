"""The classifier's SVM: C by held-out images, and the temperature of its probabilities from the same scores.

The held-out problems are solved side by side with the final one on the same rows: an image that a problem does not see
has target 0 in it. So the folds cost no further pass, and in the space of images no further Gram matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.class_weights import ClassWeight, class_weights, problem_factors
from fisherlayers.fisher_vectors.rows import Rows, as_rows, row_blocks
from fisherlayers.fisher_vectors.svm import one_vs_rest, svm_path, svm_scores

__all__ = ["SelectedSVM", "select_svm", "two_columns"]

# With more images one held-out fold is precise enough.
_ONE_FOLD = 20_000
_TOLERANCE = 1e-4
# So many that the rows are read from memory in every step; the accuracy does not see the difference.
_ROUGH_TOLERANCE = 1e-3


class SelectedSVM(NamedTuple):
    """One-vs-rest separators of the best cost.

    Attributes:
        coef: (C, F), or (1, F) for two classes.
        intercept: (C,) or (1,).
        cost: The C that was chosen.
        temperature: Factor of the scores for probabilities.
        accuracies: Share of held-out images that each cost classifies rightly, weighted by class if weights were given;
            the share of right labels for several labels an image; empty where nothing could be held out.
    """

    coef: np.ndarray
    intercept: np.ndarray
    cost: float
    temperature: float
    accuracies: dict[float, float]


def select_svm(
    encodings: Rows | np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    *,
    folds: int = 3,
    groups: np.ndarray | None = None,
    seed: int = 0,
    class_weight: ClassWeight = None,
    **options: Any,
) -> SelectedSVM:
    """Fit one-vs-rest SVMs and choose C.

    Args:
        encodings: (n, F).
        labels: Class indices 0 .. C - 1, (n,); or for several labels an image 0 and 1, (n, C).
        costs: Candidates for C.
        folds: Folds of the cross-validation, fewer where a class has fewer images. With 0, or a single image in a
            class, nothing is held out: the middle cost is taken, and the temperature comes from the training scores.
        groups: Images of one group are held out together, such as an image and its mirror image, (n,); every image on
            its own if None. Members of a group have one label.
        seed: Of the folds.
        class_weight: ``"balanced"``, a factor of C for each class index, or None: see `class_weights`.
        **options: Further arguments of `svm_path`.

    Returns:
        The separators.
    """
    targets = _targets(labels)
    held_out = _held_out(labels, folds, groups, seed)
    seen = [np.full(len(labels), True), *(~fold for fold in held_out)]
    masks = [torch.as_tensor(rows)[:, None] for rows in seen]
    problems = torch.cat([targets * mask for mask in masks], dim=1)
    weights = [class_weights(class_weight, labels[rows]) for rows in seen]
    factors = torch.cat([problem_factors(targets, labels, weight) for weight in weights], dim=1)
    costs = sorted(set(costs))
    tolerance = _TOLERANCE if len(labels) <= _ONE_FOLD else _ROUGH_TOLERANCE
    fits = svm_path(encodings, problems, costs, sample_weight=factors, tolerance=tolerance, **options)
    width = targets.shape[1]
    if held_out:
        used = np.logical_or.reduce(held_out)
        scores = [_scores_of_held_out(encodings, fit.weights, fit.intercepts, held_out, width) for fit in fits]
        right = [_accuracy(rows[used], labels[used], weights[0]) for rows in scores]
        best = int(np.argmax(right))
        scored, accuracies = scores[best], dict(zip(costs, right, strict=True))
    else:
        used, best, accuracies = np.full(len(labels), True), (len(costs) - 1) // 2, {}
        scored = svm_scores(encodings, fits[best].weights[:width], fits[best].intercepts[:width]).numpy()
    fit = fits[best]
    temperature = fit_temperature(*_binary_or_multiclass(scored[used], labels[used]))
    return SelectedSVM(
        fit.weights[:width].numpy().copy(), fit.intercepts[:width].numpy().copy(), costs[best], temperature, accuracies
    )


def two_columns(scores: np.ndarray) -> np.ndarray:
    """Return (-s / 2, s / 2) for a single score s of the second class: its softmax is the sigmoid of s."""
    return np.concatenate([-scores / 2, scores / 2], axis=1) if scores.shape[1] == 1 else scores


def _targets(labels: np.ndarray) -> Tensor:
    if labels.ndim == 2:
        return 2 * torch.as_tensor(labels, dtype=torch.float64) - 1
    classes = int(labels.max()) + 1
    return one_vs_rest(torch.as_tensor(labels), classes)[:, classes == 2 :]


def _held_out(labels: np.ndarray, folds: int, groups: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """Return a mask of held-out images for each fold."""
    groups = np.arange(len(labels)) if groups is None else groups
    members, first = np.unique(groups, return_index=True)
    split: KFold | StratifiedKFold
    number = min(folds, int(np.bincount(labels[first]).min()) if labels.ndim == 1 else len(members))
    if number < 2:
        if folds >= 2 and len(members) > 1:
            warnings.warn(
                "a class has a single image, so that nothing can be held out: C is the middle one of those given, and "
                "probabilities come from the scores of the training images",
                stacklevel=2,
            )
        return []
    if len(members) > _ONE_FOLD:
        number = max(number, 6)
    split = (StratifiedKFold if labels.ndim == 1 else KFold)(number, shuffle=True, random_state=seed)
    masks = [np.isin(groups, members[test]) for _, test in split.split(members, labels[first])]
    return masks[:1] if len(members) > _ONE_FOLD else masks


def _scores_of_held_out(
    encodings: Rows | np.ndarray, weights: Tensor, intercepts: Tensor, held_out: list[np.ndarray], width: int
) -> np.ndarray:
    rows = as_rows(encodings)
    scores = np.zeros((len(rows), width), dtype=np.float32)
    for place, block in row_blocks(rows):
        for number, fold in enumerate(held_out, start=1):
            columns = slice(number * width, (number + 1) * width)
            part = torch.as_tensor(fold[place])
            if bool(part.any()):
                found = svm_scores(block[part], weights[columns], intercepts[columns])
                scores[place][part.numpy()] = found.numpy()
    return scores


def _binary_or_multiclass(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if labels.ndim == 1:
        return two_columns(scores), labels
    return two_columns(scores.reshape(-1, 1)), labels.reshape(-1)


def _accuracy(scores: np.ndarray, labels: np.ndarray, weight: Mapping[int, float] | np.ndarray | None) -> float:
    if labels.ndim == 2:
        return float(((scores > 0) == labels).mean())
    right = two_columns(scores).argmax(axis=1) == labels
    return float(np.average(right, weights=None if weight is None else np.asarray(weight)[labels]))
