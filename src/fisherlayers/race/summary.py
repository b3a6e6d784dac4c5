"""A race in a few numbers: for each base optimizer, the reconstructed runs against the plain ones."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fisherlayers.race.results import Comparison, Race, compare_pairs


@dataclass(frozen=True)
class Summary:
    """One base optimizer; every number is a median over the seeds, every pair the lowest and highest.

    Attributes:
        base: its name.
        seeds: those whose plain run ends lower than it began.
        loss: the plain optimizer's final training loss, the target.
        plain_steps: to the target, plain.
        steps: to the target, reconstructed; infinity if it is not reached.
        steps_ratio: reconstructed over plain.
        steps_spread: of that ratio.
        plain_seconds: as `plain_steps`, in training seconds.
        seconds: as `steps`, in training seconds.
        seconds_ratio: reconstructed over plain.
        seconds_spread: of that ratio.
        plain_metric: the plain run's last validation metric.
        metric: the reconstructed run's last validation metric.
    """

    base: str
    seeds: tuple[int, ...]
    loss: float
    plain_steps: float
    steps: float
    steps_ratio: float
    steps_spread: tuple[float, float]
    plain_seconds: float
    seconds: float
    seconds_ratio: float
    seconds_spread: tuple[float, float]
    plain_metric: float
    metric: float


def summarize(race: Race) -> list[Summary]:
    """Return the summary of each base optimizer that ran both plain and reconstructed, in the race's order.

    Args:
        race: its runs.

    Returns:
        The summaries; bases of whose plain runs none ends lower than it began are left out.
    """
    return [_summary(race, base, pairs) for base, pairs in compare_pairs(race).items()]


def _summary(race: Race, base: str, pairs: list[Comparison]) -> Summary:
    seeds = tuple(pair.seed for pair in pairs)
    runs = [run for run in race.runs if run.base == base and run.seed in seeds]
    steps_ratios, seconds_ratios = [pair.steps_ratio for pair in pairs], [pair.seconds_ratio for pair in pairs]
    return Summary(
        base=base,
        seeds=seeds,
        loss=_median(pair.loss for pair in pairs),
        plain_steps=_median(pair.reference_steps for pair in pairs),
        steps=_median(pair.steps for pair in pairs),
        steps_ratio=_median(steps_ratios),
        steps_spread=(min(steps_ratios), max(steps_ratios)),
        plain_seconds=_median(pair.reference_seconds for pair in pairs),
        seconds=_median(pair.seconds for pair in pairs),
        seconds_ratio=_median(seconds_ratios),
        seconds_spread=(min(seconds_ratios), max(seconds_ratios)),
        plain_metric=_median(run.final.validation_metric for run in runs if not run.reconstructed),
        metric=_median(run.final.validation_metric for run in runs if run.reconstructed),
    )


def _median(values: Iterable[float]) -> float:
    # The higher of the two middle values: infinities must not meet in a mean.
    return statistics.median_high(values)
