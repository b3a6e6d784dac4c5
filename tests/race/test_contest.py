import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from fisherlayers.race import Journal, Organizer, Plan, make_method, train
from fisherlayers.race.contest import effective_options
from race.small_task import small_task

PLAN = Plan(
    steps=12,
    reference="Adam",
    trials=2,
    seeds=(0, 1),
    horizons=(1.0, 0.5),
    evaluations=3,
    most_seconds=1e9,
    most_trial_seconds=1e9,
)
METHODS = [make_method("Adam"), make_method("SGD"), make_method("Adam", reconstructed=True)]


@pytest.fixture
def even(monkeypatch):
    """Every step takes one second."""
    beat = iter(range(10**6))
    monkeypatch.setattr("fisherlayers.race.runner.Stopwatch._now", lambda self: next(beat))


def organizer(journal=None, task=None, **changes):
    return Organizer(task or small_task(), replace(PLAN, **changes), Journal() if journal is None else journal)


def test_every_method_runs_every_seed_and_horizon_at_its_best_rate(even):
    contest = organizer().race(METHODS)
    names = [method.name for method in METHODS]
    assert {share: race.methods for share, race in contest.races.items()} == {1.0: names, 0.5: names}
    for share, steps in ((1.0, 12), (0.5, 6)):
        runs = contest.races[share].runs
        assert [(run.seed, run.method) for run in runs] == [(seed, name) for seed in (0, 1) for name in names]
        assert {run.final.step for run in runs} == {steps}
        assert all(run.learning_rate == contest.searches[run.method].learning_rate for run in runs)
    assert [len(contest.searches[name].trials) for name in names] == [2, 2, 2]


def test_a_run_of_the_contest_is_a_run_of_train(even):
    contest = organizer().race(METHODS)
    run = contest.races[0.5].of("SGD")[1]
    again = train(
        small_task(), METHODS[1], learning_rate=run.learning_rate, seed=1, steps=6, evaluate_every=4, schedule="linear"
    )
    assert [point.validation_loss for point in run.points] == [point.validation_loss for point in again.points]


def test_dear_steps_are_fewer(monkeypatch):
    now = [0.0]
    dear = {"Adam": 1.0, "SGD": 1.5, "AdamW": 8.0}

    def slow(name):
        method = make_method(name)
        return replace(method, optimizer=replace(method.optimizer, make=lambda model, rate: [Slow(model, rate, name)]))

    class Slow(torch.optim.SGD):
        def __init__(self, model, rate, name):
            super().__init__(model.parameters(), lr=1e-3 * rate)
            self.name = name

        def step(self, closure=None):
            now[0] += dear[self.name]
            super().step(closure)

    monkeypatch.setattr("fisherlayers.race.runner.Stopwatch._now", lambda self: now[0])
    host = organizer(most_seconds=2.0)
    assert host.reference_seconds(slow("Adam")) == 12
    contest = host.race([slow(name) for name in dear])
    for share, steps in ((1.0, {"Adam": 12, "SGD": 12, "AdamW": 3}), (0.5, {"Adam": 6, "SGD": 6, "AdamW": 2})):
        assert {run.method: run.final.step for run in contest.races[share].runs} == steps


def test_a_rate_range_follows_the_loss(even):
    wide, narrow = (
        organizer(task=small_task(loss_scale=scale)).search(METHODS[1], METHODS[0]).trials for scale in (1.0, 784.0)
    )
    assert [trial.learning_rate for trial in narrow] == pytest.approx([trial.learning_rate / 784 for trial in wide])
    free = [organizer(task=small_task(loss_scale=scale)).search(METHODS[0], METHODS[0]) for scale in (1.0, 784.0)]
    assert free[0] == free[1]


def test_a_stopped_contest_goes_on_from_its_journal(tmp_path, even, monkeypatch):
    path = tmp_path / "new" / "journal.jsonl"
    whole = organizer(Journal(path)).race(METHODS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:40])  # killed while it wrote the eighth run
    done = []

    def counted(*arguments, **options):
        done.append(options["seed"])
        return train(*arguments, **options)

    monkeypatch.setattr("fisherlayers.race.contest.train", counted)
    again = organizer(Journal(path)).race(METHODS)
    assert len(done) == len(lines) - 7
    losses = [[run.final.validation_loss for run in contest.races[1.0].runs] for contest in (whole, again)]
    assert losses[0] == losses[1]
    assert [json.loads(line)["key"] for line in lines] == [
        json.loads(line)["key"] for line in path.read_text().splitlines()
    ]


def test_a_run_that_could_not_be_written_whole_spoils_no_other(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal, run = Journal(path), train(small_task(), METHODS[1], learning_rate=0.1, seed=0, steps=1)
    journal.run({"number": 1}, lambda: run)
    whole = path.read_bytes()

    def full(descriptor):
        os.truncate(path, len(whole) + 40)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.run({"number": 2}, lambda: run)
    assert len(Journal(path)) == 1  # reading changes nothing: a kill in between loses nothing
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes()) == len(whole) + 40
    journal.run({"number": 3}, lambda: run)
    assert len(Journal(path)) == len(journal) == 2


def test_a_damaged_journal_is_refused_with_its_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": {}}\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 1, is no finished run"):
        Journal(path)


def test_the_key_changes_with_the_options_of_reconstruct():
    plain, ours, other = METHODS[0], METHODS[2], make_method("Adam", reconstructed=True, damping=0.123)
    assert effective_options(plain) == {}
    assert effective_options(ours)["damping"] != effective_options(other)["damping"] == "0.123"
    assert effective_options(ours).keys() == effective_options(other).keys()


def test_the_reference_must_race():
    with pytest.raises(ValueError, match="must hold the reference 'Adam'"):
        organizer().race(METHODS[1:])
    with pytest.raises(ValueError, match="methods must have distinct names"):
        organizer().race([*METHODS, METHODS[1]])


def test_a_reference_without_a_target_ends_the_contest_before_the_others_search():
    task = small_task(loss=lambda outputs, targets: torch.nan * outputs.sum())
    journal = Journal()
    with pytest.raises(RuntimeError, match="all 2 trials of Adam diverged"):
        organizer(journal, task).race(METHODS[::-1])
    assert len(journal) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"trials": 0}, "trials must be a whole number of at least 1"),
        ({"evaluations": 0}, "evaluations must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1"),
        ({"trial_share": 0.0}, "trial_share must be a finite number of more than 0"),
        ({"seeds": ()}, "seeds must hold one or more"),
        ({"seeds": 3}, "seeds must hold one or more, such as a list; got 3"),
        ({"horizons": 1.0}, "horizons must hold one or more, such as a list; got 1.0"),
        ({"horizons": (1, 0)}, "every share of horizons must be a finite number of more than 0"),
        ({"seeds": (1, 1)}, "all different"),
        ({"horizons": (0.5,)}, "horizons must begin with 1"),
    ],
)
def test_a_plan_that_no_contest_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **changes)


def test_a_journal_may_be_named_by_text(tmp_path, even):
    journal = Journal(str(tmp_path / "journal.jsonl"))
    organizer(journal).search(METHODS[0], METHODS[0])
    assert len(journal) == len(Journal(str(tmp_path / "journal.jsonl"))) == 2
