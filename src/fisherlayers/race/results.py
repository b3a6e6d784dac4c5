"""What a race leaves: runs made of evaluated points, and how soon one run reaches the other's loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """An evaluation during training.

    Attributes:
        step: optimizer steps taken so far.
        seconds: wall-clock seconds of training so far, evaluations excluded.
        train_loss: mean loss over the training examples.
        validation_loss: mean loss over the validation examples.
        validation_metric: the task's metric over the validation examples, higher is better.
    """

    step: int
    seconds: float
    train_loss: float
    validation_loss: float
    validation_metric: float


@dataclass(frozen=True)
class Run:
    """One method trained once.

    Attributes:
        method: the method's name.
        base: its base optimizer's name.
        reconstructed: whether the model was reconstructed.
        seed: of the initial weights and of the batches.
        learning_rate: before the schedule.
        diverged: whether a loss was not finite, or the training loss ended above where it began.
        points: the evaluations in order; the first is of the initial weights.
    """

    method: str
    base: str
    reconstructed: bool
    seed: int
    learning_rate: float
    diverged: bool
    points: tuple[Point, ...]

    @property
    def final(self) -> Point:
        """The last evaluation."""
        return self.points[-1]


@dataclass(frozen=True)
class Race:
    """All runs of one task.

    Attributes:
        task: the task's name.
        title: the task in words.
        metric_name: what the validation metric is called.
        batch_size: examples a step.
        steps: optimizer steps of a run that did not diverge.
        schedule: of the learning rate: "constant", "linear" or "cosine", the last two down to zero.
        runs: method by method within each seed.
    """

    task: str
    title: str
    metric_name: str
    batch_size: int
    steps: int
    schedule: str
    runs: tuple[Run, ...]

    def of(self, method: str) -> list[Run]:
        """Return the runs of one method, in the order of the seeds."""
        return [run for run in self.runs if run.method == method]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in the order in which they first ran."""
        return list(dict.fromkeys(run.method for run in self.runs))


def first_reaching(run: Run, loss: float) -> Point | None:
    """Return the first evaluation with a training loss of at most `loss`, None if there is none."""
    return next((point for point in run.points if point.train_loss <= loss), None)


def steps_to(run: Run, loss: float) -> float:
    """Return the steps to the first evaluated training loss <= `loss`; infinity if it is never reached."""
    point = first_reaching(run, loss)
    return math.inf if point is None else point.step


def seconds_to(run: Run, loss: float) -> float:
    """Return the training seconds to the first evaluated training loss <= `loss`; infinity if never reached."""
    point = first_reaching(run, loss)
    return math.inf if point is None else point.seconds


@dataclass(frozen=True)
class Comparison:
    """How soon a run reaches the reference run's final training loss.

    Attributes:
        seed: of both runs.
        loss: the reference's final training loss.
        steps: to that loss; infinity if it is never reached.
        reference_steps: the reference's own steps until its loss first was that low.
        seconds: training seconds to that loss; infinity if it is never reached.
        reference_seconds: the reference's own.
    """

    seed: int
    loss: float
    steps: float
    reference_steps: float
    seconds: float
    reference_seconds: float

    @property
    def steps_ratio(self) -> float:
        """Steps over the reference's steps."""
        return self.steps / self.reference_steps

    @property
    def seconds_ratio(self) -> float:
        """Seconds over the reference's seconds."""
        return self.seconds / self.reference_seconds


def sets_target(reference: Run) -> bool:
    """Return whether a run ends with a training loss that others can race to: finite, and lower than it began."""
    return not reference.diverged and steps_to(reference, reference.final.train_loss) > 0


def compare(run: Run, reference: Run) -> Comparison:
    """Return how soon `run` reaches the final training loss of `reference`.

    Args:
        run: the contender.
        reference: whose final training loss is the target.

    Returns:
        Steps and seconds of both.

    Raises:
        ValueError: the runs have different seeds, or the reference diverged or ended no lower than it began.
    """
    if run.seed != reference.seed:
        raise ValueError(f"compare runs of one seed: got {run.seed} and {reference.seed}")
    if reference.diverged:
        raise ValueError(f"the reference run ({reference.method}, seed {reference.seed}) diverged: it sets no target")
    loss = reference.final.train_loss
    if not sets_target(reference):
        raise ValueError(
            f"the reference run ({reference.method}, seed {reference.seed}) ends no lower than it began: "
            "it sets no target"
        )
    return Comparison(
        seed=run.seed,
        loss=loss,
        steps=steps_to(run, loss),
        reference_steps=steps_to(reference, loss),
        seconds=seconds_to(run, loss),
        reference_seconds=seconds_to(reference, loss),
    )


def compare_pairs(race: Race) -> dict[str, list[Comparison]]:
    """Compare each base optimizer's reconstructed runs with its plain ones.

    Args:
        race: with plain and reconstructed runs; bases that lack either are left out.

    Returns:
        Base optimizer -> one comparison a seed whose plain run ends lower than it began.
    """
    pairs: dict[str, list[Comparison]] = {}
    for run in race.runs:
        for reference in race.runs:
            same = (run.base, run.seed) == (reference.base, reference.seed)
            if same and run.reconstructed and not reference.reconstructed and sets_target(reference):
                pairs.setdefault(run.base, []).append(compare(run, reference))
    return pairs


def race_to_json(race: Race) -> dict[str, Any]:
    """Return the race as JSON's types; losses that are not finite become None."""
    return asdict(race) | {"runs": [run_to_json(run) for run in race.runs]}


def run_to_json(run: Run) -> dict[str, Any]:
    """Return the run as JSON's types; losses that are not finite become None."""
    record = asdict(run)
    record["points"] = [[_finite(value) for value in point.values()] for point in record["points"]]
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def race_from_json(record: Mapping[str, Any]) -> Race:
    """Return the race that `race_to_json` wrote; None becomes not-a-number.

    Args:
        record: decoded JSON.

    Returns:
        The race.
    """
    return Race(**{**record, "runs": tuple(run_from_json(run) for run in record["runs"])})


def run_from_json(record: Mapping[str, Any]) -> Run:
    """Return the run that `run_to_json` wrote; None becomes not-a-number.

    Args:
        record: decoded JSON.

    Returns:
        The run.
    """
    return Run(**{**record, "points": tuple(_point(values) for values in record["points"])})


def _point(values: Sequence[float | None]) -> Point:
    step, *rest = (math.nan if value is None else value for value in values)
    return Point(int(step), *rest)
