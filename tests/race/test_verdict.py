import math
from dataclasses import replace

import pytest

from fisherlayers.race import Contest, Plan, Point, Race, Run, standings
from fisherlayers.race.verdict import median

PLAN = Plan(steps=4, horizons=(1.0, 0.5))


def run(method, losses, *, seed=0, second=1.0, diverged=False):
    points = tuple(Point(i, second * i, loss / 2, loss, 50 + i + seed) for i, loss in enumerate(losses))
    return Run(method, method, False, seed, 0.1, diverged, points)


def contest(full, short=()):
    races = {
        share: Race("small", "a small task", "accuracy", 8, 4, "linear", tuple(runs))
        for share, runs in ((1.0, full), (0.5, short))
        if runs
    }
    return Contest("a small task", PLAN, {}, races)


def test_ratios_are_to_the_first_visit_of_the_references_final_loss():
    table = standings(contest([run("AdamW", [9, 4, 3, 5, 4]), run("SOAP", [9, 8, 3, 2, 1], second=3.0)]))
    assert (table["AdamW"].seconds_ratio, table["AdamW"].steps_ratio) == (1, 1)
    assert (table["SOAP"].seconds_ratio, table["SOAP"].steps_ratio) == (6, 2)
    assert table["SOAP"].metric == 54


def test_each_seed_has_its_own_target_and_never_is_counted():
    full = [run("AdamW", [9, 5, 4], seed=0), run("AdamW", [9, 3, 2], seed=1), run("AdamW", [9, 8, 7], seed=2)]
    full += [run("SGD", [9, 5, 4], seed=0), run("SGD", [9, 5, 4], seed=1), run("SGD", [9, 5, 4], seed=2)]
    entry = standings(contest(full))["SGD"]
    assert entry.steps == (1, math.inf, 0.5)
    assert (entry.arrived, entry.seeds, entry.steps_ratio) == (2, 3, 1)


def test_the_horizon_that_arrives_soonest_counts():
    full = [run("AdamW", [9, 8, 7, 6, 4]), run("Muon", [9, 8, 7, 4, 3])]
    assert standings(contest(full, [run("AdamW", [9, 6, 5]), run("Muon", [9, 6, 4])]))["Muon"].horizon == 0.5
    entry = standings(contest(full, [run("AdamW", [9, 6, 5]), run("Muon", [9, 6, 5])]))["Muon"]
    assert (entry.horizon, entry.steps) == (1.0, (0.75,))


def test_the_training_loss_and_a_floor_set_other_targets():
    full = [run("AdamW", [9, 4, 3, 0.1]), run("Muon", [9, 2, 0.5, 0.5])]
    assert standings(contest(full))["Muon"].arrived == 0
    assert standings(contest(full), floor=1.0)["Muon"].steps_ratio == pytest.approx(2 / 3)
    assert standings(contest(full), measure="train_loss", floor=1.0)["Muon"].steps_ratio == pytest.approx(1 / 3)


def test_a_loss_that_is_not_a_number_arrives_nowhere():
    entry = standings(contest([run("AdamW", [9, 4]), run("Muon", [9, math.nan], diverged=True)]))["Muon"]
    assert (entry.arrived, entry.diverged, entry.seconds_ratio) == (0, 1, math.inf)


def test_a_reference_that_sets_no_target_is_refused():
    diverged = replace(run("AdamW", [9, 4]), diverged=True)
    with pytest.raises(ValueError, match="the reference AdamW diverged"):
        standings(contest([diverged]))
    with pytest.raises(ValueError, match="ends no lower than it began"):
        standings(contest([run("AdamW", [9, 10])]))


def test_the_median_of_an_even_number_is_the_higher():
    assert median([1.0, math.inf]) == math.inf
    assert median([3.0, 1.0, 2.0]) == 2
