"""Tune a method's learning rate by random search, with the same budget and range for every method of a base."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch

from fisherlayers.race.methods import Method
from fisherlayers.race.results import Run
from fisherlayers.race.runner import train
from fisherlayers.race.tasks import Task

EVALUATIONS = 30
"""Evaluations of a trial's run: fewer than in a race, as they cost more than the steps of a small task."""

Criterion = Literal["validation_loss", "train_loss"]


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried; both losses are means over the seeds, and None if a run diverged.

    Attributes:
        learning_rate: before the schedule.
        validation_loss: the lowest that a run passes through.
        train_loss: the last one.
    """

    learning_rate: float
    validation_loss: float | None
    train_loss: float | None


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
        """Return the learning rate with the lowest loss.

        Args:
            criterion: which loss counts.

        Returns:
            A learning rate that was tried.

        Raises:
            RuntimeError: every trial diverged.
        """
        losses = [(getattr(trial, criterion), trial.learning_rate) for trial in self.trials]
        finished = [(loss, rate) for loss, rate in losses if loss is not None]
        if not finished:
            raise RuntimeError(f"all {len(self.trials)} trials of {self.method} diverged: lower its range")
        return min(finished)[1]

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
    if not 0 < lowest < highest or trials < 1:
        raise ValueError(f"expected 0 < lowest < highest and trials >= 1; got {lowest}, {highest}, {trials}")
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
        on_trial: called after each trial.

    Returns:
        The trials.

    Raises:
        ValueError: no seeds, or fewer than one trial.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    length = task.steps if steps is None else steps
    shared: dict[str, Any] = {"steps": length, "schedule": schedule, "evaluate_every": max(1, length // EVALUATIONS)}
    done: list[Trial] = []
    for learning_rate in draw_learning_rates(*method.optimizer.learning_rates, trials=trials, seed=seeds[0]):
        runs = [train(task, method, learning_rate=learning_rate, seed=seed, **shared) for seed in seeds]
        done.append(_trial(learning_rate, runs))
        if on_trial is not None:
            on_trial(done[-1])
    return Tuning(method.name, tuple(seeds), tuple(done))


def _trial(learning_rate: float, runs: list[Run]) -> Trial:
    lowest = [lowest_validation_loss(run) for run in runs]
    finite = [loss for loss in lowest if loss is not None]
    if len(finite) < len(runs):
        return Trial(learning_rate, None, None)
    return Trial(learning_rate, fmean(finite), fmean(run.final.train_loss for run in runs))


def lowest_validation_loss(run: Run) -> float | None:
    """Return the lowest validation loss over a run's evaluations, None if the run diverged."""
    losses = [point.validation_loss for point in run.points if math.isfinite(point.validation_loss)]
    return None if run.diverged or not losses else min(losses)
