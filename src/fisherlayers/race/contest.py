"""The official protocol: search each method's learning rate, then race all methods, with every run remembered.

All methods get the same number of learning rates, drawn by the same rule from a range around the recommended one; the
lowest validation loss decides. A run has the plan's steps, or as many as fit into `Plan.most_seconds` times the seconds
of the reference's run of the same seed and length, made just before, if its steps are dearer; its learning rate falls
to zero over just those. As a user who is content with the reference's loss would plan a shorter run, every method is
also raced on the shorter horizons.
"""

import inspect
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fisherlayers.natural_gradient import reconstruct
from fisherlayers.race.arguments import distinct_seeds, positive_number, several, whole_number
from fisherlayers.race.journal import Journal
from fisherlayers.race.methods import Method, check_models
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
        trial_share: of a full run that a trial takes.
        seeds: of the raced runs.
        tuning_seed: of the trials; apart from `seeds`.
        horizons: shares of the full run that are raced; the first is 1.
        evaluations: of a full raced run; shorter ones have as many steps between them.
        trial_evaluations: the same of a trial, which only chooses.
        most_seconds: of a raced run, over the reference's of the same seed and share.
        most_trial_seconds: the same of a trial.
        schedule: of the learning rate.

    Raises:
        ValueError: steps, trials or evaluations are no whole number of at least 1, a share or limit is not more than 0,
            there are no or equal seeds, or the first horizon is not 1.
    """

    steps: int
    reference: str = "AdamW"
    trials: int = 4
    trial_share: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 1000
    horizons: tuple[float, ...] = (1.0, 1 / 3)
    evaluations: int = 20
    trial_evaluations: int = 20
    most_seconds: float = 1.0
    most_trial_seconds: float = 1.5
    schedule: str = "linear"

    def __post_init__(self) -> None:
        for name in ("steps", "trials", "evaluations", "trial_evaluations"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("trial_share", "most_seconds", "most_trial_seconds"):
            positive_number(name, getattr(self, name))
        whole_number("tuning_seed", self.tuning_seed)
        distinct_seeds("seeds", self.seeds)
        if several("horizons", self.horizons)[0] != 1:
            raise ValueError(f"horizons must begin with 1, the full run; got {self.horizons}")
        for share in self.horizons:
            positive_number("every share of horizons", share)


@dataclass(frozen=True)
class Contest:
    """What a contest leaves.

    Attributes:
        task: its title.
        plan: the budget.
        searches: method -> its search.
        races: horizon -> the runs.
    """

    task: str
    plan: Plan
    searches: Mapping[str, Tuning]
    races: Mapping[float, Race]


class Organizer:
    """Runs the parts of a contest; what the journal holds is not run again.

    Args:
        task: what is trained. Its title stands for data, model and loss in the journal: where they change, it must.
        plan: the budget.
        journal: where finished runs are kept.
        on_run: called with every new run.
    """

    def __init__(
        self, task: Task, plan: Plan, journal: Journal, *, on_run: Callable[[Run], None] | None = None
    ) -> None:
        self.task = task
        self.plan = plan
        self.journal = journal
        self.on_run = on_run

    def reference_seconds(self, reference: Method) -> float:
        """Return the seconds of a full run of the reference, from the seconds of a step in its search.

        Args:
            reference: the method of the target.

        Returns:
            CPU seconds.
        """
        finals = [run.final for run in self._trials(reference, None)]
        return self.plan.steps * statistics.median(point.seconds / point.step for point in finals if point.step)

    def search(self, method: Method, reference: Method) -> Tuning:
        """Try the plan's number of learning rates on runs of one seed.

        Args:
            method: a contender.
            reference: the method of the target.

        Returns:
            The trials.
        """
        trials = []
        limit = None
        if method.name != reference.name:
            limit = self.plan.most_trial_seconds * self.plan.trial_share * self.reference_seconds(reference)
        for run in self._trials(method, limit):
            loss = lowest_validation_loss(run)
            trials.append(Trial(run.learning_rate, loss, None if loss is None else run.final.train_loss))
        return Tuning(method.name, (self.plan.tuning_seed,), tuple(trials))

    def race(self, methods: Sequence[Method]) -> Contest:
        """Search, then run every method with every seed on every horizon, the methods in turn.

        Args:
            methods: the contenders, the reference among them. One whose every trial diverged is not raced.

        Returns:
            The contest.

        Raises:
            ValueError: the reference is not among the methods, or two have one name.
        """
        named = {method.name: method for method in methods}
        if self.plan.reference not in named:
            raise ValueError(f"methods must hold the reference {self.plan.reference!r}; got {list(named)}")
        if len(named) < len(methods):
            raise ValueError(f"methods must have distinct names; got {[method.name for method in methods]}")
        check_models(self.task)
        reference = named[self.plan.reference]
        self.search(reference, reference).best()  # raises where there will be no target, before the others search
        searches = {name: self.search(method, reference) for name, method in named.items()}
        able = [name for name in named if any(trial.validation_loss is not None for trial in searches[name].trials)]
        plan = self.plan
        runs: dict[float, list[Run]] = {share: [] for share in plan.horizons}
        for seed in plan.seeds:
            for share in plan.horizons:
                # The reference goes first: its seconds, on the machine as it is now, are what the others have.
                first = self._run(
                    reference, searches[reference.name].learning_rate, seed, share, None, plan.evaluations
                )
                limit = plan.most_seconds * first.final.seconds
                runs[share] += [
                    first
                    if name == reference.name
                    else self._run(named[name], searches[name].learning_rate, seed, share, limit, plan.evaluations)
                    for name in able
                ]
        task = self.task
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
        return Contest(task.title, plan, searches, races)

    def _trials(self, method: Method, limit: float | None) -> list[Run]:
        plan = self.plan
        limits = method.optimizer.search_range(self.task.loss_scale)
        rates = draw_learning_rates(*limits, trials=plan.trials, seed=plan.tuning_seed)
        evaluations = plan.trial_evaluations
        return [self._run(method, rate, plan.tuning_seed, plan.trial_share, limit, evaluations) for rate in rates]

    def _run(self, method: Method, rate: float, seed: int, share: float, limit: float | None, evaluations: int) -> Run:
        """Return the run of a share of the full length, which takes at most `limit` seconds."""
        steps = max(1, round(share * self.plan.steps))
        shared: dict[str, Any] = {
            "seed": seed,
            "steps": steps,
            "schedule": self.plan.schedule,
            "evaluate_every": max(1, round(self.plan.steps / evaluations)),
            "most_seconds": limit,
        }
        key = {
            "task": self.task.title,
            "batch_size": self.task.batch_size,
            "validation_size": self.task.validation_size,
            "method": method.name,
            "settings": method.optimizer.settings,
            "options": effective_options(method),
            "learning_rate": rate,
            **shared,
        }

        def compute() -> Run:
            run = train(self.task, method, learning_rate=rate, clock="cpu", **shared)
            if self.on_run is not None:
                self.on_run(run)
            return run

        return self.journal.run(key, compute)


def effective_options(method: Method) -> dict[str, Any]:
    """Return the arguments of `reconstruct` that a method uses, defaults but None included; none for a plain method."""
    if not method.reconstructed:
        return {}
    parameters = inspect.signature(reconstruct).parameters.values()
    defaults = {found.name: found.default for found in parameters if found.default is not inspect.Parameter.empty}
    return {name: repr(value) for name, value in {**defaults, **method.options}.items() if value is not None}
