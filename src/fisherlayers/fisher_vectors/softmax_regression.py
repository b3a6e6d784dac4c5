"""Multinomial logistic regression, the softmax classifier whose weights are rows of the projection W.

    minimise   C sum_i -log softmax(V x_i + b)_{y_i}  +  1/2 |V|²

Low rank comes from its solution, not from a factorised V = A W: at most C - 1 rows can matter (the penalty makes the
columns of V sum to zero), the convex problem has one solution, whatever the start, and the leading right singular
directions of V, times their singular values, are the W of the best approximation A W of V of each rank. Trained
factors, with 1/2 |A|² + 1/2 |W|², would be a local minimum that knows rotations only, so that those of
cross-fitting folds could not be averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

__all__ = ["SoftmaxFit", "softmax_regression"]


class SoftmaxFit(NamedTuple):
    """A softmax classifier.

    Attributes:
        weights: V, (C, r), columns of sum zero.
        intercepts: b, (C,), of sum zero.
    """

    weights: Tensor
    intercepts: Tensor


def softmax_regression(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    *,
    cost: float = 1.0,
    tolerance: float = 1e-6,
    iterations: int = 500,
) -> SoftmaxFit:
    """Fit the classifier by scikit-learn's L-BFGS: an iteration costs 4 n r C operations.

    Args:
        rows: (n, r), in float64 for tolerances far below the default.
        labels: Class indices, (n,).
        classes: C, at least 2.
        cost: Of a loss of 1, relative to the penalty; positive.
        tolerance: Largest entry of the gradient, of the mean loss and its share of the penalty, at which it stops;
            positive.
        iterations: At most; at least 1.

    Returns:
        The fit, in the dtype of the rows.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if classes < 2 or iterations < 1 or not cost > 0 or not tolerance > 0:
        raise ValueError(
            "classes must be at least 2, iterations at least 1, cost and tolerance positive; "
            f"got {classes}, {iterations}, {cost} and {tolerance}"
        )
    # Two classes are one row w for scikit-learn, that is V = (-w / 2, w / 2) with twice the penalty.
    solver = LogisticRegression(C=2 * cost if classes == 2 else cost, tol=tolerance, max_iter=iterations)
    solver.fit(rows.cpu().numpy(), labels.cpu().numpy())
    weights, intercepts = (torch.as_tensor(part).to(rows) for part in (solver.coef_, solver.intercept_))
    if classes == 2:
        weights, intercepts = torch.cat([-weights, weights]) / 2, torch.cat([-intercepts, intercepts]) / 2
    return SoftmaxFit(weights - weights.mean(dim=0), intercepts - intercepts.mean())
