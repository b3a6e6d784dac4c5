"""Probabilities from scores: one temperature, fitted on scores of images that the classifier has not seen."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

__all__ = ["fit_temperature", "probabilities"]


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Find the factor a that gives softmax(a * scores) the highest likelihood (Guo et al., ICML 2017).

    As in Platt's method, the targets are not quite 1 and 0, so that separable scores do not give certainty: with m
    images a class each label counts as its class with probability (m + 1) / (m + 2).

    Args:
        scores: Held-out scores, (n, C).
        labels: Class indices, (n,).

    Returns:
        a, in [1e-3, 1e3].
    """
    scores = scores.astype(np.float64)
    classes = scores.shape[1]
    doubt = 1 / (len(labels) / classes + 2)
    targets = np.full(scores.shape, doubt / (classes - 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_factor: float) -> float:
        return -float((targets * log_softmax(np.exp(log_factor) * scores, axis=1)).sum(axis=1).mean())

    bound = np.log(1e3)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def probabilities(scores: np.ndarray, factor: float) -> np.ndarray:
    """Return softmax(factor * scores).

    Args:
        scores: (n, C).
        factor: From `fit_temperature`.

    Returns:
        (n, C), rows summing to one.
    """
    return np.asarray(softmax(factor * scores.astype(np.float64), axis=1))
