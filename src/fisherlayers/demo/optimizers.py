"""The optimizer half of the demo: SGD, Adam and Muon, each plain and reconstructed, on one task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from fisherlayers.race import BASES, Method, Progress, Race, Task, Tuning, make_method, run_race, tune_to_target

TUNING_SEEDS = (1000, 1001, 1002)
"""Of each trial: with one seed alone, chance picks learning rates at which other seeds fail."""


@dataclass(frozen=True)
class RacePlan:
    """How much is run.

    Attributes:
        seeds: of the runs.
        trials: learning rates tried a method; 0 takes the base optimizer's usual one.
        steps: of a run; the task's own if None.
        evaluate_every: steps between evaluations; a hundredth of a run if None.
        threads: of torch while it runs; None leaves them. One is best for small models.
    """

    seeds: Sequence[int]
    trials: int
    steps: int | None = None
    evaluate_every: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Raced:
    """A race with the searches before it: method name -> search; empty if nothing was searched."""

    race: Race
    tunings: Mapping[str, Tuning]


def contenders() -> list[tuple[Method, Method]]:
    """Return every base optimizer, plain and reconstructed."""
    return [(make_method(base), make_method(base, reconstructed=True)) for base in BASES]


def race_optimizers(task: Task, plan: RacePlan, on_progress: Callable[[str, float], None]) -> Raced:
    """Tune every method with the same number of trials, for the race to the plain optimizer's loss, then race them.

    Args:
        task: what to train.
        plan: how much of it.
        on_progress: called with what is being done and the share that is done, in [0, 1].

    Returns:
        The race and the searches.
    """
    with torch_threads(plan.threads):
        return _race(task, plan, on_progress)


def _race(task: Task, plan: RacePlan, on_progress: Callable[[str, float], None]) -> Raced:
    pairs = contenders()
    methods = [method for pair in pairs for method in pair]
    tuning_runs = plan.trials * len(TUNING_SEEDS)
    trainings = len(methods) * (tuning_runs + len(plan.seeds))
    tunings: dict[str, Tuning] = {}
    rates: dict[str, float] = {}
    for index, (plain, reconstructed) in enumerate(pairs if plan.trials else ()):
        on_progress(f"tuning {plain.name}, plain and reconstructed", 2 * index * tuning_runs / trainings)
        found = tune_to_target(task, plain, reconstructed, trials=plan.trials, seeds=TUNING_SEEDS, steps=plan.steps)
        tunings |= {tuning.method: tuning for tuning in found}
        rates |= {plain.name: found[0].best("train_loss"), reconstructed.name: found[1].best("steps_to_target")}
    listen = partial(_listen, on_progress, len(methods) * tuning_runs, trainings)
    race = run_race(
        task,
        methods,
        seeds=plan.seeds,
        steps=plan.steps,
        learning_rates=rates,
        evaluate_every=plan.evaluate_every,
        on_progress=listen,
    )
    return Raced(race, tunings)


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Give torch's operations so many threads inside the block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _listen(on_progress: Callable[[str, float], None], tuned: int, trainings: int, note: Progress) -> None:
    done = (tuned + note.run + note.point.step / note.steps) / trainings
    on_progress(f"{note.method}, seed {note.seed}, loss {note.point.train_loss:.3g}", done)
