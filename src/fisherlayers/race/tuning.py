"""Tune a method's learning rate by random search, with the same budget and range for every method of a base."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, get_args

import torch

from fisherlayers.race.arguments import distinct_seeds, whole_number
from fisherlayers.race.methods import Method, check_contenders, check_models
from fisherlayers.race.results import Run, steps_to
from fisherlayers.race.runner import train
from fisherlayers.race.tasks import Task

EVALUATIONS = 30
"""Evaluations of a trial's run: fewer than in a race, as they cost more than the steps of a small task."""

Criterion = Literal["validation_loss", "train_loss", "steps_to_target"]


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried; everything measured is a mean over the seeds, and None if a run diverged.

    Attributes:
        learning_rate: before the schedule.
        validation_loss: the lowest that a run passes through.
        train_loss: the last one.
        steps_to_target: until the training loss is as low as the search's target; None also if a run never gets there,
            or there is no target.
    """

    learning_rate: float
    validation_loss: float | None
    train_loss: float | None
    steps_to_target: float | None = None


@dataclass(frozen=True)
class Tuning:
    """The search of one method.

    Attributes:
        method: the method's name.
        seeds: of the runs of each trial.
        trials: in the order of the draw.
    """

    method: str
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    def best(self, criterion: Criterion = "validation_loss") -> float:
        """Return the learning rate with the lowest loss, or the fewest steps.

        Args:
            criterion: what counts. Where no trial reached the target, the training loss decides.

        Returns:
            A learning rate that was tried.

        Raises:
            RuntimeError: every trial diverged.
            ValueError: an unknown criterion.
        """
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion must be one of {sorted(get_args(Criterion))}; got {criterion!r}")
        measured = [(getattr(trial, criterion), trial.learning_rate) for trial in self.trials]
        finished = [(value, rate) for value, rate in measured if value is not None]
        if finished:
            return min(finished)[1]
        if criterion == "steps_to_target":
            return self.best("train_loss")
        raise RuntimeError(f"all {len(self.trials)} trials of {self.method} diverged: lower its range")

    @property
    def learning_rate(self) -> float:
        """The learning rate with the lowest validation loss."""
        return self.best()


def draw_learning_rates(lowest: float, highest: float, *, trials: int, seed: int) -> list[float]:
    """Draw learning rates at random, one from each of `trials` equal parts of the logarithmic range.

    Args:
        lowest: of the range, more than 0.
        highest: of the range, more than `lowest`.
        trials: how many, at least 1.
        seed: the same seed gives the same numbers.

    Returns:
        Ascending learning rates.

    Raises:
        ValueError: the range or `trials` is not as stated.
    """
    trials = whole_number("trials", trials, least=1)
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"expected 0 < lowest < highest, both finite; got {lowest}, {highest}")
    uniform = torch.rand(trials, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares = (torch.arange(trials) + uniform) / trials
    return [lowest * (highest / lowest) ** share for share in shares.tolist()]


def tune(
    task: Task,
    method: Method,
    *,
    trials: int,
    seeds: Sequence[int] = (1000,),
    steps: int | None = None,
    schedule: str = "linear",
    target: float | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuning:
    """Try learning rates.

    Plain and reconstructed methods of one base optimizer get the same learning rates.

    Args:
        task: what to train.
        method: whose learning rate is searched, over its base optimizer's range.
        trials: how many learning rates, at least 1.
        seeds: each trial runs with every one of them, and their mean counts; the first is also the draw's. Keep them
            apart from the race's seeds.
        steps: of a run; the task's own if not given.
        schedule: as in `train`.
        target: a training loss; trials then tell the steps to it.
        on_trial: called after each trial.

    Returns:
        The trials.
    """
    check_contenders(task, [method])
    seeds = distinct_seeds("seeds", seeds)
    length = whole_number("steps", task.steps if steps is None else steps, least=1)
    check_models(task)
    shared: dict[str, Any] = {"steps": length, "schedule": schedule, "evaluate_every": max(1, length // EVALUATIONS)}
    done: list[Trial] = []
    for learning_rate in draw_learning_rates(
        *method.optimizer.search_range(task.loss_scale), trials=trials, seed=seeds[0]
    ):
        runs = [train(task, method, learning_rate=learning_rate, seed=seed, **shared) for seed in seeds]
        done.append(_trial(learning_rate, runs, target))
        if on_trial is not None:
            on_trial(done[-1])
    return Tuning(method.name, seeds, tuple(done))


def _trial(learning_rate: float, runs: list[Run], target: float | None) -> Trial:
    lowest = [lowest_validation_loss(run) for run in runs]
    finite = [loss for loss in lowest if loss is not None]
    if len(finite) < len(runs):
        return Trial(learning_rate, None, None)
    steps = math.inf if target is None else fmean(steps_to(run, target) for run in runs)
    return Trial(
        learning_rate,
        validation_loss=fmean(finite),
        train_loss=fmean(run.final.train_loss for run in runs),
        steps_to_target=steps if math.isfinite(steps) else None,
    )


def lowest_validation_loss(run: Run) -> float | None:
    """Return the lowest validation loss over a run's evaluations, None if the run diverged."""
    losses = [point.validation_loss for point in run.points if math.isfinite(point.validation_loss)]
    return None if run.diverged or not losses else min(losses)


def tune_to_target(
    task: Task,
    plain: Method,
    contender: Method,
    *,
    trials: int,
    seeds: Sequence[int] = (1000,),
    steps: int | None = None,
) -> tuple[Tuning, Tuning]:
    """Tune two methods for the race to a training loss: the lowest that the plain one ends with.

    Both get the same learning rates. The plain one keeps the one with the lowest final training loss
    (``best("train_loss")``), which is the target; the contender the one that gets there in the fewest steps
    (``best("steps_to_target")``).

    Args:
        task: what to train.
        plain: whose loss is the target.
        contender: with the same base optimizer.
        trials: as in `tune`.
        seeds: as in `tune`.
        steps: as in `tune`.

    Returns:
        The search of each; where all plain trials diverged, the contender's has no target.
    """
    first = tune(task, plain, trials=trials, seeds=seeds, steps=steps)
    target = min((trial.train_loss for trial in first.trials if trial.train_loss is not None), default=None)
    return first, tune(task, contender, trials=trials, seeds=seeds, steps=steps, target=target)
