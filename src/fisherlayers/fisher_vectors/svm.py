"""Linear SVMs with squared hinge loss, one against the rest: liblinear's problem, solved with matrix products.

    minimise   1/2 |w|² + C sum_i max(0, 1 - y_i w·[x_i; bias])²

`fit_svm` solves many such problems on the same rows at once, `svm_path` for several C. `svm_solver` has the method and
its certificate, `linear_svm` the scikit-learn classifier on top.

Rows in single precision are solved in it. Rounding of a Gram matrix moves the solution: the certificate comes from the
rows, and where it says that something is missing, the next steps start from the rows' own scores, so that only the
correction is rounded. What that cannot bring within the tolerance is finished in double precision, and from a Gram
matrix, at last, on the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fisherlayers.fisher_vectors.rows import Rows, as_rows, row_blocks
from fisherlayers.fisher_vectors.svm_solver import Minimum, certify, minimize_squared_hinge
from fisherlayers.fisher_vectors.svm_spaces import GramSpace, RowSpace, WeightSpace, rows_precision

__all__ = ["SVMFit", "Solver", "fit_svm", "one_vs_rest", "svm_path", "svm_scores"]

Solver = Literal["auto", "gram", "primal"]

# A Gram matrix takes n^2 F operations, its solutions next to none; with more rows than this products with the rows are
# faster (benchmarks/README.md).
_LARGEST_GRAM = 10_000
# Below this many rows a first solution on every fourth row does not pay.
_SAMPLED_START = 20_000
_SAMPLE_STRIDE = 4
_ROUGH_TOLERANCE = 0.1
# Long rows and large C make Newton's steps many and short. With C |x|² above this, smaller C lead there sooner.
_DIRECT_START = 100.0
_MOST_STARTS = 16
# Going on from scores taken afresh from the rows must bring the largest gap down to this share.
_WORTH_REFRESHING = 0.5
# The share of the tolerance that is asked for then: what the Gram matrix and the rows make of a gap differs a little.
_REFRESHED_AIM = 0.5


class SVMFit(NamedTuple):
    """P linear functions x -> w·x + b.

    Attributes:
        weights: w, (P, F), in the precision of the rows (at least float32).
        intercepts: b, (P,).
        objectives: Values of the minimised function before weights are rounded to that precision, (P,).
        gaps: Duality gaps: no objective is further than this above its minimum, (P,). They come from the rows.
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
    starts = _starting_costs(ascending[0], float(factors.max()) * (largest_row**2 + bias**2))
    problems = _Problems(spaces, signs, precision)
    if len(matrix) > _SAMPLED_START and not problems.by_gram:
        first = [*starts, ascending[0]][0]
        problems.vector = _solve_sample(matrix, signs, first * factors, bias, block_rows, max_steps, n_jobs)
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
        space, signs, costs, start=start, tolerance=_ROUGH_TOLERANCE, max_steps=max_steps, until_stalled=True
    ).vector


class _Problems:
    """Problems on the same rows for one C after another, each from the solution before.

    Args:
        spaces: Make the spaces to work in: the next where rounding shows.
        signs: Targets, (n, P).
        dtype: Of the weights.
    """

    def __init__(self, spaces: Sequence[Callable[[], WeightSpace]], signs: Tensor, dtype: torch.dtype) -> None:
        self.vector: Tensor | None = None  # the start, zero if None
        self._spaces, self._signs, self._dtype = list(spaces), signs, dtype
        self._space = self._spaces.pop(0)()

    @property
    def by_gram(self) -> bool:
        return self._space is not self._space.row_space

    def approach(self, costs: Tensor, max_steps: int) -> None:
        self.vector = self._minimize(costs, _ROUGH_TOLERANCE, max_steps).vector

    def solve(self, costs: Tensor, tolerance: float, max_steps: int) -> SVMFit:
        steps, aim, last = 0, tolerance, float("inf")
        while True:
            found = self._minimize(costs, aim, max_steps - steps)
            steps += found.steps
            self.vector, weights, objectives, gaps = found.vector, found.vector, found.objectives, found.gaps
            if self.by_gram:
                weights, scores, objectives, gaps = certify(self._space, found.vector, self._signs, costs)
                # The next step is rounded in proportion to what is missing.
                self.vector = torch.stack([found.vector[0], scores])
            converged = bool((gaps <= tolerance * objectives).all())
            worst = float((gaps / objectives.clamp_min(torch.finfo(torch.float64).tiny)).max())
            pays = worst <= _WORTH_REFRESHING * last
            if converged or steps == max_steps or not (pays or self._spaces):
                weights, intercepts = self._space.row_space.weights(weights)
                return SVMFit(weights.to(self._dtype), intercepts.to(self._dtype), objectives, gaps, steps)
            aim, last = _REFRESHED_AIM * tolerance, worst
            if not pays:
                self._exchange_space()
                aim, last = tolerance, float("inf")

    def _minimize(self, costs: Tensor, tolerance: float, max_steps: int) -> Minimum:
        return minimize_squared_hinge(
            self._space,
            self._signs,
            costs,
            start=self.vector,
            tolerance=tolerance,
            max_steps=max_steps,
            until_stalled=bool(self._spaces),
        )

    def _exchange_space(self) -> None:
        by_gram, vector = self.by_gram, self.vector
        del self._space  # its Gram matrix should not lie beside the next
        self._space = self._spaces.pop(0)()
        if vector is not None and by_gram:
            vector = self._space.combine(vector[0])
        self.vector = vector if vector is not None and bool(torch.isfinite(vector).all()) else None


def _starting_costs(cost: float, squared_length: float) -> list[float]:
    """Return smaller C, ascending, of which the first is one that a few steps from zero solve."""
    starts: list[float] = []
    while cost * squared_length > _DIRECT_START and len(starts) < _MOST_STARTS:
        cost /= 10
        starts.insert(0, cost)
    return starts


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
