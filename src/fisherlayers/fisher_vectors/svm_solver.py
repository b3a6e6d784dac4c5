"""Newton's method for the squared-hinge SVM, many problems side by side, with a certificate.

    minimise   P(w) = 1/2 |w|² + sum_i c_i max(0, 1 - y_i w·x_i)²

is strongly convex and piecewise quadratic: with the rows inside the margin (the active set) held fixed, its Hessian
I + 2 Xᵀ diag(c_active) X gives the minimum in one step (Keerthi and DeCoste, JMLR 6, 2005; liblinear's primal solver).
Steps are truncated conjugate gradients, then an exact line search.

The certificate: the loss's slope a_i = 2 c_i y_i max(0, 1 - y_i w·x_i) is dual feasible, and with the gradient
g = w - Xᵀ a the duality gap P(w) - D(a) is exactly 1/2 |g|². So 1/2 |g|² bounds how far P(w) lies above its minimum,
and |g| how far w lies from the solution. Of scores with errors e_i it is the gap up to sum_i c_i e_i²: `certify` takes
them from the rows, since those that follow from a Gram matrix in single precision may be far off.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.svm_spaces import WeightSpace

__all__ = ["Minimum", "certify", "minimize_squared_hinge"]

_MAX_PRODUCTS = 200
_LINE_SEARCH_STEPS = 20
# A line search may stop when the slope has fallen to this share.
_FLAT_ENOUGH = 0.05
# A step that lowers the objective by less than this share, while the gap is too large, is one of rounding errors.
_STALLED = torch.finfo(torch.float32).eps


class Minimum(NamedTuple):
    """Solutions of P problems.

    Attributes:
        vector: In the space, (..., P).
        objectives: P(w), (P,).
        gaps: Duality gaps: no solution lies further than this above its minimum, (P,).
        steps: Newton steps taken.
        converged: Whether every gap is within the tolerance.
    """

    vector: Tensor
    objectives: Tensor
    gaps: Tensor
    steps: int
    converged: bool


def minimize_squared_hinge(
    space: WeightSpace,
    targets: Tensor,
    costs: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float,
    max_steps: int,
    until_stalled: bool = False,
) -> Minimum:
    """Minimise P(w) for every column of targets.

    Args:
        space: Where w lives.
        targets: y, (n, P), of -1 and 1; any value where the cost is 0.
        costs: c, (n, P), not negative.
        start: First vector (..., P); zero if None.
        tolerance: Largest duality gap, relative to the objective.
        max_steps: Largest number of Newton steps.
        until_stalled: Whether to stop as well when a step has lowered no objective that it should have.

    Returns:
        The solutions.
    """
    vector = space.zeros(targets.shape[1]) if start is None else start.clone()
    scores = space.scores(vector)
    previous = torch.full_like(scores[0], torch.inf)
    for step in range(max_steps + 1):
        slack, objectives, gradient, gaps = _state(space, vector, scores, targets, costs)
        unsolved = (~(gaps <= tolerance * objectives)).nonzero()[:, 0]
        if len(unsolved) == 0 or step == max_steps:
            break
        if until_stalled and not bool((objectives < (1 - _STALLED) * previous)[unsolved].any()):
            break
        previous = objectives
        gradient, y, c = gradient[..., unsolved], targets[:, unsolved], costs[:, unsolved]
        curvature = torch.where(slack[:, unsolved] > 0, 2 * c, 0)
        # Half of what the tolerance asks is enough; far from the solution, a rough step is.
        norms = (2 * gaps[unsolved]).sqrt()
        enough = torch.maximum(_roughness(step) * norms, (0.5 * tolerance * objectives[unsolved]).sqrt())
        direction = _conjugate_gradients(space, curvature, -gradient, enough)
        slopes = space.scores(direction)
        old = vector[..., unsolved]
        length = _line_search(
            _Line(
                linear=space.dot(old, direction),
                quadratic=space.dot(direction, direction),
                margins=1 - y * scores[:, unsolved],
                slopes=y * slopes,
                costs=c,
            )
        )
        vector[..., unsolved] = old + length * direction
        scores[:, unsolved] += length * slopes
    return Minimum(vector, objectives, gaps, step, len(unsolved) == 0)


def certify(
    space: WeightSpace, vector: Tensor, targets: Tensor, costs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate P(w) and its gap from the rows, whatever led to w.

    Args:
        space: Where w lives.
        vector: w, (..., P).
        targets: As for `minimize_squared_hinge`.
        costs: As for `minimize_squared_hinge`.

    Returns:
        w in ``space.row_space``, (F + 1, P); its scores, (n, P); objectives and gaps, (P,).
    """
    rows = space.row_space
    weights = space.in_rows(vector)
    scores = rows.scores(weights)
    _, objectives, _, gaps = _state(rows, weights, scores, targets, costs)
    return weights, scores, objectives, gaps


def _state(
    space: WeightSpace, vector: Tensor, scores: Tensor, targets: Tensor, costs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Slack (n, P), objectives (P,), gradient (..., P) and gaps (P,).
    slack = (1 - targets * scores).clamp_min_(0)
    objectives = 0.5 * space.dot(vector, vector) + (costs * slack.square()).sum(dim=0)
    gradient = space.gradient(vector, 2 * costs * targets * slack)
    return slack, objectives, gradient, 0.5 * space.dot(gradient, gradient)


def _roughness(step: int) -> float:
    # The share of the gradient that a step's conjugate gradients may leave.
    return max(0.3 / 2**step, 0.01)


def _conjugate_gradients(space: WeightSpace, curvature: Tensor, rhs: Tensor, enough: Tensor) -> Tensor:
    # Solve (I + Xᵀ diag(curvature) X) d = rhs column by column, down to residual norms of `enough`.
    solution = torch.zeros_like(rhs)
    live = torch.arange(rhs.shape[-1], device=rhs.device)
    residual, search = rhs.clone(), rhs.clone()
    squared = space.dot(residual, residual)
    for _ in range(_MAX_PRODUCTS):
        unfinished = squared > enough.square()
        if not bool(unfinished.all()):
            if not bool(unfinished.any()):
                break
            live, enough, squared = live[unfinished], enough[unfinished], squared[unfinished]
            residual, search = residual[..., unfinished], search[..., unfinished]
            curvature = curvature[:, unfinished]
        product = search + space.curve(search, curvature)
        length = squared / space.dot(search, product)
        solution[..., live] += length * search
        residual = residual - length * product
        previous, squared = squared, space.dot(residual, residual)
        search = residual + (squared / previous) * search
    return solution


class _Line(NamedTuple):
    """P(w + t d) along d: t linear + t² / 2 quadratic + sum c max(0, margins - t slopes)², up to a constant."""

    linear: Tensor
    quadratic: Tensor
    margins: Tensor
    slopes: Tensor
    costs: Tensor

    def derivatives(self, length: Tensor) -> tuple[Tensor, Tensor]:
        slack = (self.margins - length * self.slopes).clamp_min_(0)
        weighted = 2 * self.costs * self.slopes
        first = self.linear + length * self.quadratic - (weighted * slack).sum(dim=0)
        second = self.quadratic + torch.where(slack > 0, weighted * self.slopes, 0).sum(dim=0)
        return first, second


def _line_search(line: _Line) -> Tensor:
    # The derivative only increases: Newton's method on it, within a shrinking bracket.
    length = torch.ones_like(line.linear)
    flat = _FLAT_ENOUGH * line.derivatives(torch.zeros_like(length))[0].abs()
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    for _ in range(_LINE_SEARCH_STEPS):
        first, second = line.derivatives(length)
        if bool((first.abs() <= flat).all()):
            break
        low, high = torch.where(first < 0, length, low), torch.where(first > 0, length, high)
        newton = length - first / second
        middle = torch.where(high.isinf(), 2 * length, 0.5 * (low + high))
        length = torch.where((newton > low) & (newton < high), newton, middle)
    return length
