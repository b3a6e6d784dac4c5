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
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["SoftmaxFit", "softmax_objective", "softmax_regression"]

_HISTORY = 20


class SoftmaxFit(NamedTuple):
    """A softmax classifier.

    Attributes:
        weights: V, (C, r), columns of sum zero.
        intercepts: b, (C,), of sum zero.
    """

    weights: Tensor
    intercepts: Tensor


def softmax_objective(weights: Tensor, intercepts: Tensor, rows: Tensor, labels: Tensor, cost: float) -> Tensor:
    """Return the objective.

    Args:
        weights: V, (C, r).
        intercepts: b, (C,).
        rows: (n, r).
        labels: Class indices, (n,).
        cost: C.

    Returns:
        A scalar.
    """
    scores = torch.addmm(intercepts, rows, weights.T)
    return cost * cross_entropy(scores, labels, reduction="sum") + 0.5 * weights.square().sum()


def softmax_regression(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    *,
    cost: float = 1.0,
    tolerance: float = 1e-5,
    iterations: int = 500,
) -> SoftmaxFit:
    """Fit the classifier by L-BFGS: an iteration costs 4 n r C operations.

    Args:
        rows: (n, r), in float64 for tolerances far below the default.
        labels: Class indices, (n,).
        classes: C, at least 2.
        cost: Of a loss of 1, relative to the penalty; positive.
        tolerance: Largest entry of the gradient at which it stops, relative to that at the start; positive.
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
    point = torch.zeros(classes, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device, requires_grad=True)

    def objective() -> Tensor:
        return softmax_objective(point[:, :-1], point[:, -1], rows, labels, cost)

    (start,) = torch.autograd.grad(objective(), point)
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance * float(start.abs().max()),
        tolerance_change=0.0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = point.detach()
    fitted = fitted - fitted.mean(dim=0)
    return SoftmaxFit(fitted[:, :-1].contiguous(), fitted[:, -1].contiguous())
