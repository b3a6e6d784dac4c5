"""Train methods on a task: same initial weights and batches per seed, evaluations outside the clock."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fisherlayers.race.arguments import distinct_seeds, positive_number, several, whole_number
from fisherlayers.race.methods import Method, check_contenders, rehearse
from fisherlayers.race.results import Point, Race, Run
from fisherlayers.race.tasks import Examples, Task

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
EVALUATION_CHUNK = 5000
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Progress:
    """Where a race stands; given to its callback at every evaluation.

    Attributes:
        method: the method's name.
        seed: of the run.
        run: index of the run, from 0.
        runs: how many runs the race has.
        steps: steps of each run.
        point: the evaluation just made.
    """

    method: str
    seed: int
    run: int
    runs: int
    steps: int
    point: Point


def run_race(
    task: Task,
    methods: Sequence[Method],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    learning_rates: Mapping[str, float] | None = None,
    schedule: str = "linear",
    evaluate_every: int | None = None,
    clock: Clock = "wall",
    on_progress: Callable[[Progress], None] | None = None,
) -> Race:
    """Train every method with every seed.

    Seeds are the outer loop, so that other load on the machine meets all methods alike.

    Args:
        task: what to train.
        methods: with distinct names.
        seeds: each gives the initial weights and the batches of one run of each method.
        steps: optimizer steps of a run; the task's own if not given.
        learning_rates: method name -> learning rate; the base optimizer's usual one for methods not named.
        schedule: of the learning rate over the steps: "constant", "linear" or "cosine".
        evaluate_every: steps between evaluations; a hundredth of the run if not given.
        clock: as in `train`.
        on_progress: called at every evaluation.

    Returns:
        All runs.

    Raises:
        ValueError: no or equal methods, no or equal seeds, a learning rate of no method, or an argument of `train` out
            of range.
    """
    methods, seeds = several("methods", methods), distinct_seeds("seeds", seeds)
    check_contenders(task, methods)
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods must have distinct names; got {names}")
    if not isinstance(learning_rates, Mapping | None):
        raise ValueError(f"learning_rates must be a mapping, method name -> learning rate; got {learning_rates!r}")
    if unknown := set(learning_rates or {}) - set(names):
        raise ValueError(f"learning_rates names no method: {sorted(unknown)}; the methods are {names}")
    steps = whole_number("steps", task.steps if steps is None else steps, least=1)
    rates = {method.name: method.optimizer.usual_rate(task.loss_scale) for method in methods}
    for name, rate in (learning_rates or {}).items():
        rates[name] = positive_number(f"the learning rate of {name}", rate)
    rehearse(task, methods, rates)
    contests = [(seed, method) for seed in seeds for method in methods]
    runs = []
    for index, (seed, method) in enumerate(contests):
        listen = _listener(on_progress, method.name, seed, index, len(contests), steps)
        runs.append(
            train(
                task,
                method,
                learning_rate=rates[method.name],
                seed=seed,
                steps=steps,
                schedule=schedule,
                evaluate_every=evaluate_every,
                clock=clock,
                on_point=listen,
            )
        )
    return Race(task.name, task.title, task.metric_name, task.batch_size, steps, schedule, tuple(runs))


def _listener(
    on_progress: Callable[[Progress], None] | None, method: str, seed: int, run: int, runs: int, steps: int
) -> Callable[[Point], None] | None:
    if on_progress is None:
        return None
    return lambda point: on_progress(Progress(method, seed, run, runs, steps, point))


def train(
    task: Task,
    method: Method,
    *,
    learning_rate: float,
    seed: int,
    steps: int,
    schedule: str = "linear",
    evaluate_every: int | None = None,
    most_seconds: float | None = None,
    clock: Clock = "wall",
    on_point: Callable[[Point], None] | None = None,
) -> Run:
    """Train one method once; torch's global generator is left as it was.

    Args:
        task: what to train.
        method: how to train it.
        learning_rate: at the first step, more than 0.
        seed: of the initial weights and of the batches.
        steps: at least 1.
        schedule: of the learning rate: "constant", "linear" or "cosine", the last two down to zero.
        evaluate_every: steps between evaluations; a hundredth of the run, at least 1, if not given.
        most_seconds: of training: where they end before the steps do, the run ends with them, and schedule and
            evaluations are spread over them; more than 0.
        clock: "wall", or "cpu" for this process's CPU seconds, which other load on the machine changes less.
        on_point: called with every evaluation.

    Returns:
        The run. It ends early, as diverged, when a loss is not finite.

    Raises:
        ValueError: an argument is out of range.
    """
    check_contenders(task, [method])
    steps, seed = whole_number("steps", steps, least=1), whole_number("seed", seed)
    learning_rate = positive_number("learning_rate", learning_rate)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {sorted(SCHEDULES)}; got {schedule!r}")
    if most_seconds is not None:
        most_seconds = positive_number("most_seconds", most_seconds)
    if clock not in get_args(Clock):
        raise ValueError(f"clock must be one of {sorted(get_args(Clock))}; got {clock!r}")
    every = max(1, steps // 100) if evaluate_every is None else whole_number("evaluate_every", evaluate_every, least=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, optimizers = method.prepare(task.make_model(), learning_rate)
        length = Length(steps, every, most_seconds, Stopwatch(clock))
        points, finished = _steps(task, model, optimizers, seed, SCHEDULES[schedule], length, on_point)
    losses = [point.train_loss for point in points]
    diverged = not finished or not math.isfinite(losses[-1]) or losses[-1] > losses[0]
    return Run(method.name, method.base, method.reconstructed, seed, learning_rate, diverged, tuple(points))


def _steps(
    task: Task,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    seed: int,
    shape: Callable[[float], float],
    length: "Length",
    on_point: Callable[[Point], None] | None,
) -> tuple[list[Point], bool]:
    """Return the evaluations, and whether the run came to its end.

    Raises:
        ValueError: the batches end before the run.
    """
    schedulers = [LambdaLR(optimizer, lambda step: shape(length.share(step))) for optimizer in optimizers]
    points: list[Point] = []

    def evaluate(step: int) -> None:
        points.append(_evaluate(task, model, step, length.stopwatch.seconds))
        if on_point is not None:
            on_point(points[-1])

    evaluate(0)
    step = 0
    for step, (inputs, targets) in zip(range(1, length.steps + 1), task.batches(seed), strict=False):
        with length.stopwatch.running():
            loss = task.loss(model(inputs), targets)
            if not math.isfinite(loss.item()):
                return points, False
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
        if length.to_evaluate(step):
            evaluate(step)
            if not math.isfinite(points[-1].train_loss):
                return points, False
        if length.share(step) >= 1:
            return points, True
    raise ValueError(
        f"the batches of {task.title!r} ended after {step} of {length.steps} steps: `Task.batches` must never end"
    )


@dataclass
class Stopwatch:
    """Adds up the seconds inside its `running` blocks, of the wall's clock or of this process's CPU time."""

    clock: Clock = "wall"
    seconds: float = field(default=0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds += self._now() - start

    def _now(self) -> float:
        return time.perf_counter() if self.clock == "wall" else time.process_time()


@dataclass
class Length:
    """How long a run is: in steps, or in seconds where those end first.

    Attributes:
        steps: at most.
        every: steps between evaluations, or the same share of the seconds.
        most_seconds: at most; None for no limit.
        stopwatch: counts the seconds.
        evaluated: evaluations after the first that were due so far.
    """

    steps: int
    every: int
    most_seconds: float | None
    stopwatch: Stopwatch
    evaluated: int = 0

    def share(self, step: int) -> float:
        """Return the share of the run that is over after `step` steps, in [0, 1]."""
        spent = 0.0 if self.most_seconds is None else self.stopwatch.seconds / self.most_seconds
        return min(1.0, max(step / self.steps, spent))

    def to_evaluate(self, step: int) -> bool:
        """Return whether an evaluation is due after `step` steps; true once for each that is."""
        share = self.share(step)
        due = math.floor(share * self.steps / self.every + 1e-9)
        before, self.evaluated = self.evaluated, due
        return due > before or share >= 1


def _evaluate(task: Task, model: nn.Module, step: int, seconds: float) -> Point:
    train_loss, _ = _means(task, model, task.evaluated_train())
    validation_loss, metric = _means(task, model, task.evaluated_validation())
    return Point(step, seconds, train_loss, validation_loss, metric)


@torch.no_grad()
def _means(task: Task, model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return the mean loss and metric over the examples, in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    loss = metric = 0.0
    try:
        for start in range(0, len(examples.inputs), EVALUATION_CHUNK):
            targets = examples.targets[start : start + EVALUATION_CHUNK]
            outputs = model(examples.inputs[start : start + EVALUATION_CHUNK])
            share = len(targets) / len(examples.targets)
            loss += share * _one_number("loss", task.loss(outputs, targets))
            metric += share * _one_number("metric", task.metric(outputs, targets))
    finally:
        model.train(training)
    return loss, metric


def _one_number(name: str, value: Tensor | float) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} of a task must return one number, a mean over examples; got {tuple(value.shape)}")
    return float(value)
