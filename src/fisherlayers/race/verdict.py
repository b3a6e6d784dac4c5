"""Who is ahead in a contest: steps and seconds to the reference's final loss, and the final validation metric."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fisherlayers.race.contest import Contest
from fisherlayers.race.results import Point, Run

Measure = Literal["validation_loss", "train_loss"]


@dataclass(frozen=True)
class Standing:
    """One method; ratios are medians over the seeds, infinite where fewer than half of the seeds arrive.

    Attributes:
        method: its name.
        horizon: of the runs that arrive soonest, as a share of the full run.
        arrived: seeds that reach the target.
        seeds: that were raced.
        seconds: to the target over the reference's, seed by seed.
        steps: to the target over the reference's, seed by seed.
        losses: the final validation loss of the full runs, seed by seed.
        metrics: the final validation metric of the full runs, seed by seed.
        diverged: full runs that diverged.
    """

    method: str
    horizon: float
    arrived: int
    seeds: int
    seconds: tuple[float, ...]
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: tuple[float, ...]
    diverged: int

    @property
    def seconds_ratio(self) -> float:
        """The median over the seeds."""
        return median(self.seconds)

    @property
    def steps_ratio(self) -> float:
        """The median over the seeds."""
        return median(self.steps)

    @property
    def metric(self) -> float:
        """The median over the seeds."""
        return statistics.median(self.metrics)


def standings(contest: Contest, *, measure: Measure = "validation_loss", floor: float = 0.0) -> dict[str, Standing]:
    """Return every raced method's standing, in the contest's order.

    The target of a seed is the final loss of the reference's full run; the reference's own seconds and steps are those
    at which that run first was as low. A method is judged on the horizon on which its median seconds are lowest.

    Args:
        contest: what was run.
        measure: the loss that counts.
        floor: the lowest target: below it a loss is no further progress.

    Returns:
        Method -> standing.

    Raises:
        ValueError: a reference run diverged.
    """
    full = contest.races[1.0]
    references = {run.seed: run for run in full.of(contest.plan.reference)}
    if any(run.diverged for run in references.values()):
        raise ValueError(f"the reference {contest.plan.reference} diverged: it sets no target")
    found = {}
    for method in full.methods:
        tried = []
        for share, race in contest.races.items():
            pairs = [_ratios(run, references[run.seed], measure, floor) for run in race.of(method)]
            tried.append((median([seconds for seconds, _ in pairs]), share, pairs))
        _, horizon, pairs = min(tried, key=lambda entry: (entry[0], -entry[1]))
        runs = full.of(method)
        found[method] = Standing(
            method,
            horizon,
            sum(math.isfinite(seconds) for seconds, _ in pairs),
            len(runs),
            tuple(seconds for seconds, _ in pairs),
            tuple(steps for _, steps in pairs),
            tuple(run.final.validation_loss for run in runs),
            tuple(run.final.validation_metric for run in runs),
            sum(run.diverged for run in runs),
        )
    return found


def _ratios(run: Run, reference: Run, measure: Measure, floor: float) -> tuple[float, float]:
    target = max(floor, getattr(reference.final, measure))
    own, other = _arrival(run, measure, target), _arrival(reference, measure, target)
    if own is None or other is None:
        return math.inf, math.inf
    if other.step == 0:
        raise ValueError(f"the reference (seed {reference.seed}) ends no lower than it began: it sets no target")
    return own.seconds / other.seconds, own.step / other.step


def _arrival(run: Run, measure: Measure, target: float) -> Point | None:
    return next((point for point in run.points if getattr(point, measure) <= target), None)


def best(entries: Sequence[Standing], by: Callable[[Standing], float]) -> Standing:
    """Return the entry with the lowest value; the first of equals.

    Args:
        entries: at least one.
        by: the value.

    Returns:
        One of the entries.
    """
    return min(entries, key=by)


def median(values: Sequence[float]) -> float:
    """Return the median, of two middle values the higher: infinities must not meet in a mean."""
    return statistics.median_high(values)
