import copy
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fisherlayers.race import (
    Journal,
    Method,
    Organizer,
    Plan,
    Task,
    make_method,
    race_from_json,
    race_to_json,
    run_race,
    train,
    tune,
)
from fisherlayers.race.runner import SCHEDULES, Stopwatch, _means
from race.small_task import small_task

SGD = make_method("SGD")


def losses(run):
    return [point.train_loss for point in run.points]


def test_a_run_is_the_loop_that_one_would_write():
    task = small_task()
    run = train(task, SGD, learning_rate=0.1, seed=4, steps=7, schedule="linear", evaluate_every=1)

    torch.manual_seed(4)
    model = task.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = [task.loss(model(task.train.inputs), task.train.targets).item()]
    for step, batch in zip(range(7), task.batches(4), strict=False):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 7)
        optimizer.zero_grad()
        task.loss(model(batch.inputs), batch.targets).backward()
        optimizer.step()
        expected.append(task.loss(model(task.train.inputs), task.train.targets).item())
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert [point.step for point in run.points] == list(range(8))
    assert run.final.validation_loss == pytest.approx(
        task.loss(model(task.validation.inputs), task.validation.targets).item(), rel=1e-5
    )


def test_equal_seeds_give_equal_runs_and_leave_the_global_generator():
    state = torch.get_rng_state()
    arguments = {"learning_rate": 0.05, "steps": 20}
    first, again, other = (train(small_task(), SGD, seed=seed, **arguments) for seed in (0, 0, 1))
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_methods_start_from_the_same_weights():
    methods = [make_method(base, reconstructed=flag) for base in ("SGD", "Adam", "Muon") for flag in (False, True)]
    race = run_race(small_task(), methods, seeds=[0, 1], steps=2)
    for seed in (0, 1):
        starts = [run.points[0].train_loss for run in race.runs if run.seed == seed]
        assert starts == pytest.approx([starts[0]] * 6, rel=1e-6)


def test_seeds_are_the_outer_loop():
    methods = [SGD, make_method("Adam")]
    race = run_race(small_task(), methods, seeds=[5, 6], steps=1)
    assert [(run.seed, run.method) for run in race.runs] == [(5, "SGD"), (5, "Adam"), (6, "SGD"), (6, "Adam")]
    assert (race.task, race.steps, race.batch_size, race.schedule) == ("small", 1, 8, "linear")


def test_learning_rates_are_the_given_ones_or_the_usual_ones():
    race = run_race(small_task(), [SGD, make_method("Adam")], seeds=[0], steps=1, learning_rates={"Adam": 0.02})
    assert [run.learning_rate for run in race.runs] == [SGD.optimizer.learning_rate, 0.02]


def test_the_last_step_is_always_evaluated():
    run = train(small_task(), SGD, learning_rate=0.1, seed=0, steps=10, evaluate_every=4)
    assert [point.step for point in run.points] == [0, 4, 8, 10]


def test_a_diverged_run_ends_early_and_says_so():
    run = train(small_task(), SGD, learning_rate=1e6, seed=0, steps=200)
    assert run.diverged
    assert run.final.step < 200
    assert not train(small_task(), SGD, learning_rate=0.05, seed=0, steps=20).diverged


def test_a_run_that_ends_above_its_start_diverged():
    run = train(small_task(), SGD, learning_rate=2.0, seed=0, steps=6, evaluate_every=1)
    assert math.isfinite(run.final.train_loss)
    assert run.diverged


class Clock:
    """Stands for the module `time`: only what moves it takes time."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def test_evaluation_is_outside_the_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fisherlayers.race.runner.time", clock)

    class Slow(nn.Linear):
        def forward(self, x):
            clock.now += 2 if self.training else 1000
            return super().forward(x)

    run = train(small_task(make_model=lambda: Slow(5, 2)), SGD, learning_rate=0.1, seed=0, steps=4, evaluate_every=2)
    assert [point.seconds for point in run.points] == [0, 4, 8]


def test_a_limit_of_seconds_ends_the_run_and_its_schedule(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fisherlayers.race.runner.time", clock)
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            clock.now += 2
            super().step(closure)

    method = replace(
        SGD, optimizer=replace(SGD.optimizer, make=lambda model, rate: [Watched(model.parameters(), rate)])
    )
    run = train(small_task(), method, learning_rate=1.0, seed=0, steps=100, evaluate_every=25, most_seconds=16.0)
    assert [(point.step, point.seconds) for point in run.points] == [(0, 0), (2, 4), (4, 8), (6, 12), (8, 16)]
    # The schedule learns of a step's seconds after it.
    assert rates == pytest.approx([1.0, 0.99, *(1 - 2 * done / 16 for done in range(1, 7))])
    assert not run.diverged or run.final.train_loss > run.points[0].train_loss
    with pytest.raises(ValueError, match="most_seconds must be a finite number of more than 0"):
        train(small_task(), SGD, learning_rate=1.0, seed=0, steps=1, most_seconds=0.0)


def test_the_stopwatch_adds_up_its_blocks(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fisherlayers.race.runner.time", clock)
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.running():
            clock.now += 3
        clock.now += 50
    assert stopwatch.seconds == 6


def test_evaluation_in_chunks_is_the_mean_over_all_and_restores_the_mode(monkeypatch):
    monkeypatch.setattr("fisherlayers.race.runner.EVALUATION_CHUNK", 7)
    task = small_task()
    model = task.make_model().train()
    loss, metric = _means(task, model, task.train)
    with torch.no_grad():
        outputs = model(task.train.inputs)
    assert loss == pytest.approx(task.loss(outputs, task.train.targets).item(), rel=1e-5)
    assert metric == pytest.approx(task.metric(outputs, task.train.targets).item(), rel=1e-5)
    assert model.training


def test_progress_tells_where_the_race_stands():
    seen = []
    race = run_race(small_task(), [SGD], seeds=[0, 1], steps=4, evaluate_every=2, on_progress=seen.append)
    assert [(note.run, note.runs, note.seed, note.point.step) for note in seen] == [
        (run, 2, run, step) for run in (0, 1) for step in (0, 2, 4)
    ]
    assert [note.point for note in seen] == [point for run in race.runs for point in run.points]


def test_schedules_begin_at_one_and_fall_to_zero():
    assert [shape(0.0) for shape in SCHEDULES.values()] == [1, 1, 1]
    assert [shape(1.0) for shape in SCHEDULES.values()] == pytest.approx([1, 0, 0])
    assert SCHEDULES["linear"](0.25) == 0.75
    assert SCHEDULES["cosine"](0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1; got 2.5"),
        ({"steps": True}, "steps must be a whole number of at least 1; got True"),
        ({"seed": "a"}, "seed must be a whole number; got 'a'"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number of more than 0; got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate must be a finite number"),
        ({"most_seconds": "1"}, "most_seconds must be a finite number of more than 0"),
        ({"evaluate_every": 0.5}, "evaluate_every must be a whole number of at least 1; got 0.5"),
        ({"clock": "sun"}, "clock must be one of"),
        ({"schedule": "stairs"}, "schedule must be one of"),
        ({"evaluate_every": 0}, "evaluate_every must be a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train(small_task(), SGD, **{"learning_rate": 0.1, "seed": 0, "steps": 2, **changes})


def test_a_race_needs_distinct_methods_and_a_seed():
    with pytest.raises(ValueError, match="distinct names"):
        run_race(small_task(), [SGD, replace(SGD)])
    with pytest.raises(ValueError, match="methods must hold one or more; got none"):
        run_race(small_task(), [])
    with pytest.raises(ValueError, match="methods must hold one or more, such as a list; got Method"):
        run_race(small_task(), SGD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds must hold one or more; got none"),
        ({"seeds": 3}, "seeds must hold one or more, such as a list; got 3"),
        ({"seeds": [0, 1, 0]}, "seeds must be all different"),
        ({"seeds": [0.5]}, "every seed of seeds must be a whole number; got 0.5"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1; got 2.5"),
        ({"learning_rates": 0.1}, "learning_rates must be a mapping, method name -> learning rate; got 0.1"),
        ({"learning_rates": {"SGD": "x"}}, "the learning rate of SGD must be a finite number of more than 0; got 'x'"),
        ({"learning_rates": {"SGD": -1.0}}, "the learning rate of SGD must be a finite number of more than 0"),
    ],
)
def test_bad_arguments_of_a_race_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        run_race(small_task(), [SGD], **changes)


def test_names_in_place_of_tasks_and_methods_are_refused():
    for raced in (run_race, lambda task, methods: tune(task, methods[0], trials=1)):
        with pytest.raises(ValueError, match=r"task must be a Task, such as load_task\('digits'\); got 'mnist'"):
            raced("mnist", [SGD])
        with pytest.raises(ValueError, match=r"must be a Method, such as make_method\('SGD'\); got 'Adam'"):
            raced(small_task(), ["Adam"])


def test_numbers_of_numpy_leave_a_race_that_json_can_hold():
    race = run_race(
        small_task(), [SGD], seeds=np.arange(2), steps=np.int64(2), learning_rates={"SGD": np.float32(0.125)}
    )
    assert race_from_json(json.loads(json.dumps(race_to_json(race)))) == race


def test_a_learning_rate_of_no_method_is_refused():
    with pytest.raises(ValueError, match=r"learning_rates names no method: \['sgd'\]; the methods are \['SGD'\]"):
        run_race(small_task(), [SGD], learning_rates={"sgd": 0.1})


def test_a_method_that_cannot_be_built_is_found_before_others_run():
    def fail(model, learning_rate):
        raise ImportError("no such package")

    absent = Method("absent", "SGD", replace(SGD.optimizer, make=fail))
    state = torch.get_rng_state()
    with pytest.raises(ImportError, match="no such package"):
        run_race(small_task(), [SGD, absent], on_progress=lambda _: pytest.fail("the race began"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_not_new_is_refused():
    """A run would begin where the one before ended, without a word."""
    kept = nn.Linear(5, 2)
    with pytest.raises(ValueError, match=r"must build a new model at every call.*deepcopy"):
        run_race(small_task(make_model=lambda: kept), [SGD], seeds=[0], steps=1)
    with pytest.raises(ValueError, match="must build a new model at every call"):
        tune(small_task(make_model=lambda: kept), SGD, trials=2, steps=1)
    with pytest.raises(ValueError, match="must build a new model at every call"):
        Organizer(small_task(make_model=lambda: kept), Plan(steps=1, reference="SGD"), Journal()).race([SGD])
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module; got NoneType"):
        run_race(small_task(make_model=lambda: None), [SGD], seeds=[0], steps=1)
    run_race(small_task(make_model=lambda: copy.deepcopy(kept)), [SGD], seeds=[0], steps=1)


def test_batches_that_end_before_the_run_are_refused():
    """The run would be reported as a whole one that stands where it began."""

    class Short(Task):
        def batches(self, seed):
            return itertools.islice(super().batches(seed), 3)

    short = Short(**vars(small_task()))
    assert train(short, SGD, learning_rate=0.1, seed=0, steps=3).final.step == 3
    with pytest.raises(ValueError, match=r"ended after 3 of 10 steps: `Task\.batches` must never end"):
        train(short, SGD, learning_rate=0.1, seed=0, steps=10)


def test_batches_may_be_those_of_a_loader():
    class Loaded(Task):
        def batches(self, seed):
            loader = DataLoader(TensorDataset(*self.train), batch_size=8)
            return itertools.chain.from_iterable(itertools.repeat(loader))

    run = train(Loaded(**vars(small_task())), SGD, learning_rate=0.1, seed=0, steps=12)
    assert run.final.step == 12
    assert run.final.train_loss < run.points[0].train_loss


def test_the_metric_may_be_a_number_of_python_and_losses_an_example_are_refused():
    run = train(small_task(metric=lambda outputs, targets: 5), SGD, learning_rate=0.1, seed=0, steps=1)
    assert run.final.validation_metric == 5.0
    several = small_task(loss=lambda outputs, targets: (outputs - targets).square().mean(1))
    with pytest.raises(ValueError, match=r"loss of a task must return one number, a mean over .*; got \(40,\)"):
        train(several, SGD, learning_rate=0.1, seed=0, steps=1)
