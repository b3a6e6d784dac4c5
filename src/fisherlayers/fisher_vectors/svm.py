"""Linear SVMs with squared hinge loss, one against the rest: liblinear's problem, solved with matrix products.

    minimise   1/2 |w|² + C sum_i max(0, 1 - y_i w·[x_i; bias])²

`fit_svm` solves many such problems on the same rows at once, `svm_path` for several C. `svm_solver` has the method and
its certificate, `svm_problems` the precision it takes, `linear_svm` the scikit-learn classifier on top.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fisherlayers.fisher_vectors.rows import Rows, as_rows, row_blocks
from fisherlayers.fisher_vectors.svm_problems import SVMFit, SVMProblems, sampled_start, starting_costs
from fisherlayers.fisher_vectors.svm_spaces import GramSpace, RowSpace, WeightSpace, rows_precision

__all__ = ["SVMFit", "Solver", "fit_svm", "one_vs_rest", "svm_path", "svm_scores"]

Solver = Literal["auto", "gram", "primal"]

# A Gram matrix takes n^2 F operations, its solutions next to none; with more rows than this products with the rows are
# faster (benchmarks/README.md).
_LARGEST_GRAM = 10_000


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
            takes the first for n up to 10,000 and up to twice F. Either is done in the precision of the rows, at least
            float32, and goes on in float64 where that does not suffice.
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
        largest_gram: Bytes that the Gram matrix may take with ``"auto"``; for None all that pay, 400 MB in float32 and
            800 MB in float64.
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
    largest_row = _largest_row(matrix, block_rows)

    precision = rows_precision(matrix)
    spaces: list[Callable[[], WeightSpace]] = []
    for each in dict.fromkeys([precision, torch.float64]):
        in_rows = partial(RowSpace, matrix, bias=bias, block_rows=block_rows, n_jobs=n_jobs, precision=each)
        bytes_taken = torch.finfo(each).bits // 8 * len(matrix) ** 2
        fits_memory = largest_gram is None or bytes_taken <= largest_gram
        pays = fits_memory and len(matrix) <= min(_LARGEST_GRAM, 2 * matrix.shape[1])
        if solver == "gram" or (solver == "auto" and pays):
            spaces.append(partial(GramSpace, matrix, bias=bias, n_jobs=n_jobs, precision=each))
            if each == torch.float64:
                spaces.append(in_rows)
        else:
            spaces.append(in_rows)

    ascending = sorted(set(costs))
    starts = starting_costs(ascending[0], float(factors.max()) * (largest_row**2 + bias**2))
    problems = SVMProblems(spaces, signs, precision)
    if not problems.by_gram:
        first = [*starts, ascending[0]][0] * factors
        problems.vector = sampled_start(
            matrix, signs, first, bias=bias, block_rows=block_rows, max_steps=max_steps, n_jobs=n_jobs
        )
    for cost in starts:
        problems.approach(cost * factors, max_steps)
    fits = {}
    for cost in ascending:
        fit = problems.solve(cost * factors, tolerance, max_steps)
        if not bool((fit.gaps <= tolerance * fit.objectives).all()):
            warnings.warn(
                f"the SVM with C = {cost:g} stopped after {fit.steps} steps with a relative duality gap of "
                f"{float((fit.gaps / fit.objectives).max()):.1e} (tolerance {tolerance:.1e}): allow more steps or a "
                "larger tolerance, lower C, or scale the rows to unit length",
                ConvergenceWarning,
                stacklevel=2,
            )
        fits[cost] = fit
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


def _largest_row(matrix: Rows, block_rows: int | None) -> float:
    # Refuses rows that are not finite: a length is not if an entry is not, and takes no longer than looking at each.
    largest = 0.0
    for place, block in row_blocks(matrix, block_rows):
        lengths = torch.linalg.vector_norm(block, dim=1)
        if not bool(torch.isfinite(lengths).all()):
            if not bool(torch.isfinite(block).all()):
                raise ValueError(
                    f"rows must be finite: found NaN or infinity between rows {place.start} and {place.stop}"
                )
            lengths = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
        largest = max(largest, float(lengths.max()))
    return largest
