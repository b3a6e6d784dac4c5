"""The classifier's SVM: C by held-out images, and the temperature of its probabilities from the same scores.

The held-out problems are solved side by side with the final one on the same rows: an image that a problem does not see
has target 0 in it. So the folds cost no further pass, and in the space of images no further Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.svm import one_vs_rest, svm_path, svm_scores

__all__ = ["SelectedSVM", "select_svm"]

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
        accuracies: Share of held-out images that each cost classifies rightly; empty where nothing could be held out.
    """

    coef: np.ndarray
    intercept: np.ndarray
    cost: float
    temperature: float
    accuracies: dict[float, float]


def select_svm(
    encodings: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    *,
    folds: int = 3,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> SelectedSVM:
    """Fit one-vs-rest SVMs and choose C.

    Args:
        encodings: (n, F).
        labels: Class indices 0 .. C - 1, (n,).
        costs: Candidates for C.
        folds: Folds of the cross-validation, fewer where a class has fewer images. With 0, or a single image in a
            class, nothing is held out: the middle cost is taken, and the temperature comes from the training scores.
        groups: Images of one group are held out together, such as an image and its mirror image, (n,); every image on
            its own if None. Members of a group have one label.
        seed: Of the folds.

    Returns:
        The separators.
    """
    classes = int(labels.max()) + 1
    targets = one_vs_rest(torch.as_tensor(labels), classes)[:, classes == 2 :]
    held_out = _held_out(labels, folds, groups, seed)
    problems = torch.cat([targets, *(targets * ~torch.as_tensor(fold)[:, None] for fold in held_out)], dim=1)
    costs = sorted(set(costs))
    tolerance = _TOLERANCE if len(labels) <= _ONE_FOLD else _ROUGH_TOLERANCE
    fits = svm_path(encodings, problems, costs, tolerance=tolerance)
    width = targets.shape[1]
    if held_out:
        seen = np.logical_or.reduce(held_out)
        scores = [_scores_of_held_out(encodings, fit.weights, fit.intercepts, held_out, width) for fit in fits]
        right = [_accuracy(rows[seen], labels[seen]) for rows in scores]
        best = int(np.argmax(right))
        scored, accuracies = scores[best], dict(zip(costs, right, strict=True))
    else:
        seen, best, accuracies = np.full(len(labels), True), (len(costs) - 1) // 2, {}
        scored = svm_scores(encodings, fits[best].weights, fits[best].intercepts).numpy()
    fit = fits[best]
    temperature = fit_temperature(_two_columns(scored[seen]), labels[seen])
    return SelectedSVM(
        fit.weights[:width].numpy().copy(), fit.intercepts[:width].numpy().copy(), costs[best], temperature, accuracies
    )


def _held_out(labels: np.ndarray, folds: int, groups: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """Return a mask of held-out images for each fold."""
    groups = np.arange(len(labels)) if groups is None else groups
    members, first = np.unique(groups, return_index=True)
    number = min(folds, int(np.bincount(labels[first]).min()))
    if number < 2:
        return []
    if len(members) > _ONE_FOLD:
        number = max(number, 6)
    split = StratifiedKFold(number, shuffle=True, random_state=seed).split(members, labels[first])
    masks = [np.isin(groups, members[test]) for _, test in split]
    return masks[:1] if len(members) > _ONE_FOLD else masks


def _scores_of_held_out(
    encodings: np.ndarray, weights: torch.Tensor, intercepts: torch.Tensor, held_out: list[np.ndarray], width: int
) -> np.ndarray:
    scores = np.zeros((len(encodings), width), dtype=np.float32)
    for number, fold in enumerate(held_out, start=1):
        columns = slice(number * width, (number + 1) * width)
        scores[fold] = svm_scores(encodings[fold], weights[columns], intercepts[columns]).numpy()
    return scores


def _two_columns(scores: np.ndarray) -> np.ndarray:
    """Return (-s / 2, s / 2) for a single score s of the second class: its softmax is the sigmoid of s."""
    return np.concatenate([-scores / 2, scores / 2], axis=1) if scores.shape[1] == 1 else scores


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((_two_columns(scores).argmax(axis=1) == labels).mean())
