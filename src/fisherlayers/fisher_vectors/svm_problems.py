"""SVMs on the same rows for one C after another, each from the solution before, in as much precision as it takes.

Rows in single precision are solved in it. Rounding of a Gram matrix moves the solution: the certificate comes from the
rows, and where it says that something is missing, the next steps start from the rows' own scores, so that only the
correction is rounded. What that cannot bring within the tolerance is finished in double precision, and from a Gram
matrix, at last, on the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.rows import Rows
from fisherlayers.fisher_vectors.svm_solver import Minimum, certify, minimize_squared_hinge
from fisherlayers.fisher_vectors.svm_spaces import RowSpace, WeightSpace

__all__ = ["SVMFit", "SVMProblems", "sampled_start", "starting_costs"]

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


class SVMProblems:
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
        """Whether it is the Gram matrix that is worked with now."""
        return self._space is not self._space.row_space

    def approach(self, costs: Tensor, max_steps: int) -> None:
        """Solve the problems roughly, for the next start.

        Args:
            costs: Weights of the losses, (n, P).
            max_steps: Largest number of Newton steps.
        """
        self.vector = self._minimize(costs, _ROUGH_TOLERANCE, max_steps).vector

    def solve(self, costs: Tensor, tolerance: float, max_steps: int) -> SVMFit:
        """Solve the problems.

        Args:
            costs: Weights of the losses, (n, P).
            tolerance: Largest duality gap, relative to the objective.
            max_steps: Largest number of Newton steps.

        Returns:
            The solutions, with the gaps that the rows give.
        """
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


def starting_costs(cost: float, squared_length: float) -> list[float]:
    """Return smaller C, of which the first is one that a few steps from zero solve.

    Args:
        cost: C.
        squared_length: |x|² of the longest row, with its constant and times the largest weight of a loss.

    Returns:
        Ascending, below C; none where C itself is small enough.
    """
    starts: list[float] = []
    while cost * squared_length > _DIRECT_START and len(starts) < _MOST_STARTS:
        cost /= 10
        starts.insert(0, cost)
    return starts


def sampled_start(
    matrix: Rows,
    signs: Tensor,
    costs: Tensor,
    *,
    bias: float,
    block_rows: int | None,
    max_steps: int,
    n_jobs: int | None,
) -> Tensor | None:
    """Solve the problems roughly on every fourth row, counted four times: a start at a quarter of the price.

    Args:
        matrix: Rows, (n, F).
        signs: Targets, (n, P).
        costs: Weights of the losses, (n, P).
        bias: The constant appended to every row.
        block_rows: Rows a block.
        max_steps: Largest number of Newton steps.
        n_jobs: Threads over blocks.

    Returns:
        Vectors of `RowSpace`, (F + 1, P); None for so few rows that it does not pay.
    """
    if len(matrix) <= _SAMPLED_START:
        return None
    matrix, signs, costs = matrix[::_SAMPLE_STRIDE], signs[::_SAMPLE_STRIDE], _SAMPLE_STRIDE * costs[::_SAMPLE_STRIDE]
    start = sampled_start(matrix, signs, costs, bias=bias, block_rows=block_rows, max_steps=max_steps, n_jobs=n_jobs)
    space = RowSpace(matrix, bias=bias, block_rows=block_rows, n_jobs=n_jobs)
    return minimize_squared_hinge(
        space, signs, costs, start=start, tolerance=_ROUGH_TOLERANCE, max_steps=max_steps, until_stalled=True
    ).vector
