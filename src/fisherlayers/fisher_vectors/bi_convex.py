"""The bi-convex large-margin objective for the projection W (Simonyan, Vedaldi and Zisserman, NIPS 2013).

W and one vector v_c a class are learned together, so that an image's own class wins by a margin:

    minimise   C sum_i sum_{c != y_i} max(0, 1 + (v_c - v_{y_i})·W x_i)²  +  1/2 |V|²  +  1/2 |W|²

With W held fixed it is convex in V, and with V held fixed convex in W: the two are minimised in turn, and no turn
raises the objective. W starts as the whitened principal directions, and V is thrown away in the end. The hinge is
squared here, which makes each half smooth. Scaling W up and V down by one factor changes only the sum of the two
penalties, so that one constant C stands for both of the paper's.

Every solution W has its rows in the span of the encodings. With X Xᵀ = R Rᵀ the problem for R is the same and small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BiConvexFit", "bi_convex_rows", "margin_objective"]

# Coordinates beyond so many principal ones cost more than they add.
_MOST_COORDINATES = 1024
_NEGLIGIBLE = 1e-10


class BiConvexFit(NamedTuple):
    """A local minimum.

    Attributes:
        projection: W, (h, E).
        class_vectors: V, (C, h).
        objectives: The objective at the start and after every half turn; they never rise.
    """

    projection: Tensor
    class_vectors: Tensor
    objectives: list[float]


def margin_objective(
    projection: Tensor, class_vectors: Tensor, encodings: Tensor, labels: Tensor, cost: float
) -> Tensor:
    """Return the objective.

    Args:
        projection: W, (h, E).
        class_vectors: V, (C, h).
        encodings: X, (n, E).
        labels: Class indices, (n,).
        cost: C.

    Returns:
        A scalar.
    """
    scores = encodings @ projection.T @ class_vectors.T
    own = scores.gather(1, labels[:, None])
    slack = (1 + scores - own).clamp_min(0)
    # A class against itself has slack 1 always.
    losses = slack.square().sum() - len(labels)
    return cost * losses + 0.5 * class_vectors.square().sum() + 0.5 * projection.square().sum()


def bi_convex_rows(
    encodings: Tensor, labels: Tensor, size: int, *, cost: float = 1.0, turns: int = 10, iterations: int = 30
) -> BiConvexFit:
    """Learn W.

    Args:
        encodings: X, (n, E).
        labels: Class indices 0 .. C - 1, (n,).
        size: h, the rows of W; fewer where the encodings span fewer dimensions.
        cost: C, positive.
        turns: Times that V and then W are minimised.
        iterations: Of L-BFGS in each half turn.

    Returns:
        The projection in the dtype of the encodings.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if size < 1 or turns < 1 or iterations < 1 or not cost > 0:
        raise ValueError(
            "size, turns and iterations must be at least 1 and cost positive; "
            f"got {size}, {turns}, {iterations} and {cost}"
        )
    values, vectors = torch.linalg.eigh((encodings @ encodings.T).double())
    kept = values > _NEGLIGIBLE * values[-1]
    values = values[kept].flip(0)[:_MOST_COORDINATES]
    vectors = vectors[:, kept].flip(1)[:, :_MOST_COORDINATES]
    rows = vectors * values.sqrt()
    size = min(size, len(values))
    # Whitened principal directions, of unit variance together, so that margins start in reach.
    projection = torch.zeros(size, len(values), dtype=torch.float64)
    projection[:, :size] = torch.diag((len(rows) / values[:size]).sqrt()) / size**0.5
    class_vectors = torch.zeros(int(labels.max()) + 1, size, dtype=torch.float64)

    objectives = [float(margin_objective(projection, class_vectors, rows, labels, cost))]
    for _ in range(turns):
        outputs = rows @ projection.T
        weight = 0.5 * projection.square().sum()
        identity = torch.eye(size, dtype=torch.float64)
        class_vectors = _minimized(
            lambda v, z=outputs, i=identity, w=weight: margin_objective(i, v, z, labels, cost) + w - 0.5 * size,  # type: ignore[misc]
            class_vectors,
            iterations,
        )
        objectives.append(float(margin_objective(projection, class_vectors, rows, labels, cost)))
        projection = _minimized(
            lambda w, v=class_vectors: margin_objective(w, v, rows, labels, cost),  # type: ignore[misc]
            projection,
            iterations,
        )
        objectives.append(float(margin_objective(projection, class_vectors, rows, labels, cost)))
    # W = A Xᵀ-coordinates back to the encodings: row r of R is x_r in the basis X^T U / sqrt(values).
    basis = (encodings.T.double() @ vectors) / values.sqrt()
    return BiConvexFit((projection @ basis.T).to(encodings), class_vectors.to(encodings), objectives)


def _minimized(function: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """Return a point no higher than the start."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = function(point)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return point.detach() if bool(function(point) <= function(start)) else start
