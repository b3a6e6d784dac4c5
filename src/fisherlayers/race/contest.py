"""The official protocol: search each method's learning rate, then race all methods, with every run remembered.

All methods get the same number of learning rates, drawn by the same rule from a range around the recommended one; the
lowest validation loss decides. A run has the task's steps, or as many as fit into `Plan.most_seconds` times the
reference's seconds if its steps are dearer; its learning rate falls to zero over exactly those steps. As a user who
is content with the reference's loss would plan a shorter run, every method is also raced on the shorter horizons.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fisherlayers.natural_gradient import reconstruct
from fisherlayers.race.journal import Journal
from fisherlayers.race.methods import Method
from fisherlayers.race.results import Race, Run
from fisherlayers.race.runner import train
from fisherlayers.race.tasks import Task
from fisherlayers.race.tuning import Trial, Tuning, draw_learning_rates, lowest_validation_loss


@dataclass(frozen=True)
class Plan:
    """The budget of a contest.

    Attributes:
        steps: of a full run.
        reference: the name of the method whose loss is the target.
        trials: learning rates tried a method.
        seeds: of the raced runs.
        tuning_seed: of the trials; apart from `seeds`.
        horizons: shares of the full run that are raced; the first is 1.
        evaluations: of a run.
        most_seconds: of a run, over the reference's full run.
        timing_steps: on which the seconds of a step are estimated.
        schedule: of the learning rate.
    """

    steps: int
    reference: str = "AdamW"
    trials: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 1000
    horizons: tuple[float, ...] = (1.0, 1 / 3)
    evaluations: int = 20
    most_seconds: float = 3.0
    timing_steps: int = 40
    schedule: str = "linear"


@dataclass(frozen=True)
class Contest:
    """What a contest leaves.

    Attributes:
        task: its title.
        plan: the budget.
        steps: method -> steps of its full run.
        searches: method -> its search.
        races: horizon -> the runs.
    """

    task: str
    plan: Plan
    steps: Mapping[str, int]
    searches: Mapping[str, Tuning]
    races: Mapping[float, Race]


class Organizer:
    """Runs the parts of a contest; what the journal holds is not run again.

    Args:
        task: what is trained.
        plan: the budget.
        journal: where finished runs are kept.
        on_run: called with every run, new or remembered.
    """

    def __init__(
        self, task: Task, plan: Plan, journal: Journal, *, on_run: Callable[[Run], None] | None = None
    ) -> None:
        self.task = task
        self.plan = plan
        self.journal = journal
        self.on_run = on_run

    def steps_of(self, method: Method, reference: Method) -> int:
        """Return the steps of a method's full run.

        Args:
            method: a contender.
            reference: the method of the target.

        Returns:
            The plan's steps, or fewer if they would take more than `Plan.most_seconds` of the reference's seconds.
        """
        ratio = self._step_seconds(method) / self._step_seconds(reference)
        return min(self.plan.steps, max(1, round(self.plan.steps * self.plan.most_seconds / ratio)))

    def search(self, method: Method, reference: Method) -> Tuning:
        """Try the plan's number of learning rates on full runs of one seed.

        Args:
            method: a contender.
            reference: the method of the target.

        Returns:
            The trials.
        """
        steps, seed = self.steps_of(method, reference), self.plan.tuning_seed
        limits = method.optimizer.search_range(self.task.loss_scale)
        rates = draw_learning_rates(*limits, trials=self.plan.trials, seed=seed)
        trials = []
        for rate in rates:
            run = self._run(method, rate, seed, steps)
            loss = lowest_validation_loss(run)
            trials.append(Trial(rate, loss, None if loss is None else run.final.train_loss))
        return Tuning(method.name, (seed,), tuple(trials))

    def race(self, methods: Sequence[Method]) -> Contest:
        """Search, then run every method with every seed on every horizon, the methods in turn.

        Args:
            methods: the contenders, the reference among them. One whose every trial diverged is not raced.

        Returns:
            The contest.

        Raises:
            ValueError: the reference is not among the methods.
        """
        named = {method.name: method for method in methods}
        if self.plan.reference not in named:
            raise ValueError(f"methods must hold the reference {self.plan.reference!r}; got {list(named)}")
        reference = named[self.plan.reference]
        steps = {name: self.steps_of(method, reference) for name, method in named.items()}
        searches = {name: self.search(method, reference) for name, method in named.items()}
        able = [name for name in named if any(trial.validation_loss is not None for trial in searches[name].trials)]
        runs: dict[float, list[Run]] = {share: [] for share in self.plan.horizons}
        for seed in self.plan.seeds:
            for share in self.plan.horizons:
                for name in able:
                    length = max(1, round(share * steps[name]))
                    runs[share].append(self._run(named[name], searches[name].learning_rate, seed, length))
        task, plan = self.task, self.plan
        races = {
            share: Race(
                task.name,
                task.title,
                task.metric_name,
                task.batch_size,
                max(1, round(share * plan.steps)),
                plan.schedule,
                tuple(found),
            )
            for share, found in runs.items()
        }
        return Contest(task.title, plan, steps, searches, races)

    def _step_seconds(self, method: Method) -> float:
        rate, seed, steps = (
            method.optimizer.search_range(self.task.loss_scale)[0],
            self.plan.tuning_seed,
            self.plan.timing_steps,
        )
        run = self._run(method, rate, seed, steps, evaluations=1)
        return run.final.seconds / run.final.step

    def _run(self, method: Method, rate: float, seed: int, steps: int, *, evaluations: int | None = None) -> Run:
        every = max(1, round(steps / (evaluations or self.plan.evaluations)))
        shared: dict[str, Any] = {"seed": seed, "steps": steps, "schedule": self.plan.schedule, "evaluate_every": every}
        key = {
            "task": self.task.title,
            "batch_size": self.task.batch_size,
            "validation_size": self.task.validation_size,
            "method": method.name,
            "options": effective_options(method),
            "learning_rate": rate,
            **shared,
        }
        run = self.journal.run(key, lambda: train(self.task, method, learning_rate=rate, clock="cpu", **shared))
        if self.on_run is not None:
            self.on_run(run)
        return run


def effective_options(method: Method) -> dict[str, Any]:
    """Return the arguments of `reconstruct` that a method uses, defaults included; none for a plain method."""
    if not method.reconstructed:
        return {}
    parameters = inspect.signature(reconstruct).parameters.values()
    defaults = {found.name: found.default for found in parameters if found.default is not inspect.Parameter.empty}
    return {name: repr(value) for name, value in {**defaults, **method.options}.items()}
