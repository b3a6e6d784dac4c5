"""Linear SVMs with squared hinge loss, one against the rest: liblinear's problem, solved with matrix products.

    minimise   1/2 |w|² + C sum_i max(0, 1 - y_i w·[x_i; bias])²

`fit_svm` solves many such problems on the same rows at once, `svm_path` for several C. `svm_solver` has the method and
its certificate, `linear_svm` the scikit-learn classifier on top.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fisherlayers.fisher_vectors.rows import Rows, as_rows, row_blocks
from fisherlayers.fisher_vectors.svm_solver import Minimum, minimize_squared_hinge
from fisherlayers.fisher_vectors.svm_spaces import GramSpace, RowSpace, WeightSpace

__all__ = ["SVMFit", "Solver", "fit_svm", "one_vs_rest", "svm_path", "svm_scores"]

Solver = Literal["auto", "gram", "primal"]

# A Gram matrix takes n^2 F operations, its solutions next to none; with more rows than this products with the rows are
# faster (benchmarks/README.md).
_LARGEST_GRAM = 10_000
# Below this many rows a first solution on every fourth row does not pay.
_SAMPLED_START = 20_000
_SAMPLE_STRIDE = 4
_SAMPLE_TOLERANCE = 0.1


class SVMFit(NamedTuple):
    """P linear functions x -> w·x + b.

    Attributes:
        weights: w, (P, F), in the precision of the rows (at least float32).
        intercepts: b, (P,).
        objectives: Values of the minimised function, (P,).
        gaps: Duality gaps: no objective is further than this above its minimum, (P,).
        steps: Newton steps taken.
    """

    weights: Tensor
    intercepts: Tensor
    objectives: Tensor
    gaps: Tensor
    steps: int


def one_vs_rest(labels: Tensor, num_classes: int) -> Tensor:
    """Return the targets of one problem a class.

    Args:
        labels: Class indices, (n,).
        num_classes: P.

    Returns:
        (n, P): 1 in the row's class, -1 elsewhere.
    """
    return 2.0 * torch.nn.functional.one_hot(labels, num_classes).double() - 1.0


def fit_svm(
    rows: Rows | np.ndarray,
    targets: Tensor,
    cost: float,
    *,
    sample_weight: Tensor | None = None,
    bias: float = 1.0,
    tolerance: float = 1e-6,
    max_steps: int = 100,
    solver: Solver = "auto",
    block_rows: int | None = None,
) -> SVMFit:
    """Solve P binary problems on the same rows.

    Args:
        rows: X, (n, F), of float16, float32 or float64; a memory-mapped array is read block by block.
        targets: y, (n, P), of -1, 0 and 1; 0 leaves a row out of a problem, so that one-vs-one is one call too.
        cost: C, positive.
        sample_weight: Factors of C, not negative, (n,) or (n, P); all 1 if None.
        bias: The constant appended to every row, whose weight is regularised like the others; 0 for no intercept.
        tolerance: Largest duality gap, relative to the objective; positive.
        max_steps: Largest number of Newton steps.
        solver: ``"gram"`` works on the n x n matrix of inner products, ``"primal"`` on blocks of rows; ``"auto"``
            takes the first for n up to 10,000 and up to twice F.
        block_rows: Rows a block; None chooses blocks that stay in the cache.

    Returns:
        The linear functions.
    """
    return svm_path(
        rows,
        targets,
        [cost],
        sample_weight=sample_weight,
        bias=bias,
        tolerance=tolerance,
        max_steps=max_steps,
        solver=solver,
        block_rows=block_rows,
    )[0]


def svm_path(
    rows: Rows | np.ndarray,
    targets: Tensor,
    costs: Sequence[float],
    *,
    sample_weight: Tensor | None = None,
    bias: float = 1.0,
    tolerance: float = 1e-6,
    max_steps: int = 100,
    solver: Solver = "auto",
    block_rows: int | None = None,
    largest_gram: int | None = None,
    n_jobs: int | None = None,
) -> list[SVMFit]:
    """Solve `fit_svm`'s problems for several C, each from the solution of the next smaller one.

    Args:
        rows: As in `fit_svm`.
        targets: As in `fit_svm`.
        costs: Values of C, positive, in any order.
        sample_weight: As in `fit_svm`.
        bias: As in `fit_svm`.
        tolerance: As in `fit_svm`.
        max_steps: As in `fit_svm`, for each C.
        solver: As in `fit_svm`.
        block_rows: As in `fit_svm`.
        largest_gram: Bytes that the Gram matrix may take with ``"auto"``; 400 MB if None, and never more.
        n_jobs: Threads over blocks, in joblib's meaning; the result does not depend on it.

    Returns:
        One result for each of ``costs``, in their order.

    Raises:
        ValueError: If an argument lies outside its range or has the wrong shape, or a row is not finite.
    """
    matrix = as_rows(rows)
    if len(costs) == 0 or not all(0 < cost < float("inf") for cost in costs):
        raise ValueError(f"costs must hold positive finite numbers, at least one, got {list(costs)}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if not 0 <= bias < float("inf"):
        raise ValueError(f"bias must be 0 or a positive number, got {bias}")
    if solver not in {"auto", "gram", "primal"}:
        raise ValueError(f"solver must be 'auto', 'gram' or 'primal', got {solver!r}")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, or None, got {block_rows}")
    signs = _checked_targets(targets, matrix)
    factors = _checked_factors(sample_weight, signs)
    _check_finite(matrix, block_rows)

    fits_memory = largest_gram is None or 4 * len(matrix) ** 2 <= largest_gram
    pays = fits_memory and len(matrix) <= min(_LARGEST_GRAM, 2 * matrix.shape[1])
    use_gram = solver == "gram" or (solver == "auto" and pays)
    space: WeightSpace = (
        GramSpace(matrix, bias=bias, n_jobs=n_jobs)
        if use_gram
        else RowSpace(matrix, bias=bias, block_rows=block_rows, n_jobs=n_jobs)
    )
    vector = None
    fits = {}
    for cost in sorted(set(costs)):
        if vector is None and not use_gram and len(matrix) > _SAMPLED_START:
            vector = _solve_sample(matrix, signs, cost * factors, bias, block_rows, max_steps, n_jobs)
        minimum = minimize_squared_hinge(
            space, signs, cost * factors, start=vector, tolerance=tolerance, max_steps=max_steps
        )
        if not minimum.converged:
            warnings.warn(
                f"the SVM with C = {cost:g} stopped after {max_steps} steps with a relative duality gap of "
                f"{float((minimum.gaps / minimum.objectives).max()):.1e} (tolerance {tolerance:.1e}): raise max_steps "
                "or tolerance, scale the rows to unit length, or give float64",
                ConvergenceWarning,
                stacklevel=2,
            )
        vector = minimum.vector
        fits[cost] = _as_fit(space, minimum, matrix)
    return [fits[cost] for cost in costs]


def svm_scores(
    rows: Rows | np.ndarray, weights: Tensor, intercepts: Tensor, *, block_rows: int | None = None
) -> Tensor:
    """Return x·w + b for all rows, block by block.

    Args:
        rows: (n, F).
        weights: (P, F).
        intercepts: (P,).
        block_rows: Rows a block; None chooses blocks that stay in the cache.

    Returns:
        (n, P), in the dtype of ``weights``.
    """
    matrix = as_rows(rows)
    scores = torch.empty(len(matrix), len(weights), dtype=weights.dtype, device=weights.device)
    for place, block in row_blocks(matrix, block_rows):
        scores[place] = (block @ weights.T.to(block.dtype) + intercepts.to(block.dtype)).to(weights.dtype)
    return scores


def _solve_sample(
    matrix: Rows,
    signs: Tensor,
    costs: Tensor,
    bias: float,
    block_rows: int | None,
    max_steps: int,
    n_jobs: int | None,
) -> Tensor:
    # Every fourth row, counted four times, and roughly: a start at a quarter of the price.
    matrix, signs, costs = matrix[::_SAMPLE_STRIDE], signs[::_SAMPLE_STRIDE], _SAMPLE_STRIDE * costs[::_SAMPLE_STRIDE]
    start = None
    if len(matrix) > _SAMPLED_START:
        start = _solve_sample(matrix, signs, costs, bias, block_rows, max_steps, n_jobs)
    space = RowSpace(matrix, bias=bias, block_rows=block_rows, n_jobs=n_jobs)
    return minimize_squared_hinge(
        space, signs, costs, start=start, tolerance=_SAMPLE_TOLERANCE, max_steps=max_steps
    ).vector


def _as_fit(space: WeightSpace, minimum: Minimum, matrix: Rows) -> SVMFit:
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    weights, intercepts = space.weights(minimum.vector)
    return SVMFit(weights.to(dtype), intercepts.to(dtype), minimum.objectives, minimum.gaps, minimum.steps)


def _checked_targets(targets: Tensor, matrix: Rows) -> Tensor:
    if targets.ndim != 2 or len(targets) != len(matrix) or targets.numel() == 0:
        raise ValueError(f"targets must have shape ({len(matrix)}, P), got {tuple(targets.shape)}")
    if not bool(((targets == 0) | (targets.abs() == 1)).all()):
        raise ValueError("targets must be -1, 0 (not part of the problem) or 1")
    return targets.to(matrix.device, torch.float64)


def _checked_factors(sample_weight: Tensor | None, signs: Tensor) -> Tensor:
    if sample_weight is None:
        return signs.abs()
    weight = sample_weight.to(signs)
    weight = weight[:, None] if weight.ndim == 1 else weight
    if weight.ndim != 2 or weight.shape[0] != signs.shape[0] or weight.shape[1] not in {1, signs.shape[1]}:
        raise ValueError(
            f"sample_weight must have shape ({signs.shape[0]},) or {tuple(signs.shape)}, "
            f"got {tuple(sample_weight.shape)}"
        )
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError("sample_weight must be finite and not negative")
    return signs.abs() * weight


def _check_finite(matrix: Rows, block_rows: int | None) -> None:
    for place, block in row_blocks(matrix, block_rows):
        # A sum is not finite if a term is not; it is far cheaper than looking at each.
        if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
            raise ValueError(f"rows must be finite: found NaN or infinity between rows {place.start} and {place.stop}")
