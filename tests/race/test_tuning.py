import math
from dataclasses import replace

import pytest

from fisherlayers.race import (
    Point,
    Run,
    Trial,
    Tuning,
    draw_learning_rates,
    make_method,
    steps_to,
    train,
    tune,
    tune_to_target,
)
from fisherlayers.race.tuning import lowest_validation_loss
from race.small_task import small_task


def test_one_learning_rate_falls_into_each_part_of_the_logarithmic_range():
    rates = draw_learning_rates(1e-4, 1.0, trials=4, seed=0)
    assert [math.floor(math.log10(rate)) for rate in rates] == [-4, -3, -2, -1]
    assert rates == draw_learning_rates(1e-4, 1.0, trials=4, seed=0)
    assert rates != draw_learning_rates(1e-4, 1.0, trials=4, seed=1)


@pytest.mark.parametrize("limits", [(0.0, 1.0), (1.0, 1.0), (0.1, math.inf)])
def test_a_bad_range_is_refused(limits):
    with pytest.raises(ValueError, match="expected 0 < lowest < highest"):
        draw_learning_rates(*limits, trials=3, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be a whole number of at least 1; got 0"),
        ({"trials": 1.5}, "trials must be a whole number of at least 1; got 1.5"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1; got 2.5"),
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"seeds": 1000}, "seeds must hold one or more, such as a list; got 1000"),
    ],
)
def test_bad_arguments_of_a_search_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tune(small_task(), make_method("SGD"), **{"trials": 1, "steps": 2, **changes})


def test_tuning_tries_the_same_rates_for_plain_and_reconstructed():
    seen = []
    tunings = [
        tune(small_task(), make_method("Adam", reconstructed=flag), trials=3, steps=5, on_trial=seen.append)
        for flag in (False, True)
    ]
    rates = [[trial.learning_rate for trial in tuning.trials] for tuning in tunings]
    assert rates[0] == rates[1] == draw_learning_rates(1e-4, 3e-2, trials=3, seed=1000)
    assert seen == [*tunings[0].trials, *tunings[1].trials]


def test_a_trial_is_the_mean_over_its_seeds():
    method = make_method("SGD")
    tuning = tune(small_task(), method, trials=2, seeds=(7, 8), steps=5)
    assert tuning.seeds == (7, 8)
    for trial in tuning.trials:
        runs = [train(small_task(), method, learning_rate=trial.learning_rate, seed=seed, steps=5) for seed in (7, 8)]
        losses = [lowest_validation_loss(run) for run in runs]
        if None in losses:
            assert trial == Trial(trial.learning_rate, None, None)
        else:
            assert trial.validation_loss == pytest.approx(sum(losses) / 2)
            assert trial.train_loss == pytest.approx(sum(run.final.train_loss for run in runs) / 2)
    assert tuning.trials[0].validation_loss is not None


def test_tuning_needs_a_seed():
    with pytest.raises(ValueError, match="seeds must hold one or more; got none"):
        tune(small_task(), make_method("SGD"), trials=1, seeds=())


def test_the_best_learning_rate_has_the_lowest_loss():
    trials = (Trial(0.1, 0.5, 0.0), Trial(1.0, 0.0, 0.5), Trial(10.0, None, None))
    tuning = Tuning("SGD", (0,), trials)
    assert tuning.learning_rate == tuning.best("validation_loss") == 1.0
    assert tuning.best("train_loss") == 0.1
    with pytest.raises(RuntimeError, match="all 1 trials of SGD diverged"):
        Tuning("SGD", (0,), trials[2:]).best()
    with pytest.raises(ValueError, match="criterion must be one of"):
        tuning.best("accuracy")


def test_the_best_for_a_target_has_the_fewest_steps_or_else_the_lowest_loss():
    trials = (Trial(0.1, 0.5, 0.1, 40.0), Trial(1.0, 0.4, 0.0, 60.0), Trial(10.0, 0.1, 0.2, None))
    assert Tuning("SGD", (0,), trials).best("steps_to_target") == 0.1
    unreached = tuple(Trial(trial.learning_rate, 0.5, trial.train_loss) for trial in trials)
    assert Tuning("SGD", (0,), unreached).best("steps_to_target") == 1.0


def test_a_contender_is_tuned_for_the_steps_to_the_plain_methods_lowest_loss():
    task, plain_method = small_task(), make_method("SGD")
    contender_method = replace(plain_method, name="SGD again")
    plain, contender = tune_to_target(task, plain_method, contender_method, trials=4, seeds=(7,), steps=20)
    assert (plain.method, contender.method) == ("SGD", "SGD again")
    target = min(trial.train_loss for trial in plain.trials if trial.train_loss is not None)
    assert {trial.steps_to_target for trial in plain.trials} == {None}
    for trial in contender.trials:
        run = train(task, plain_method, learning_rate=trial.learning_rate, seed=7, steps=20, evaluate_every=1)
        steps = math.inf if run.diverged else steps_to(run, target)
        assert trial.steps_to_target == (steps if math.isfinite(steps) else None)
    assert contender.best("steps_to_target") == plain.best("train_loss")


def test_the_lowest_validation_loss_of_a_run():
    def run(losses, *, diverged=False):
        points = tuple(Point(i, 0.0, 1.0, loss, 0.0) for i, loss in enumerate(losses))
        return Run("SGD", "SGD", False, 0, 0.1, diverged, points)

    assert lowest_validation_loss(run([2.0, 0.5, 0.7])) == 0.5
    assert lowest_validation_loss(run([2.0, 0.5, math.nan], diverged=True)) is None
