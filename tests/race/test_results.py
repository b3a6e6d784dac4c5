import json
import math
from dataclasses import replace

import pytest

from fisherlayers.race import (
    Race,
    compare,
    compare_pairs,
    race_from_json,
    race_to_json,
    seconds_to,
    steps_to,
    summarize,
)
from race.hand_made import run


def test_the_target_is_reached_at_the_first_evaluation_at_or_below_it():
    curve = run([2.0, 1.0, 0.5, 0.7, 0.4])
    assert (steps_to(curve, 1.0), seconds_to(curve, 1.0)) == (10, 0.5)
    assert (steps_to(curve, 0.6), seconds_to(curve, 0.6)) == (20, 1.0)
    assert (steps_to(curve, 0.45), seconds_to(curve, 0.45)) == (40, 2.0)
    assert (steps_to(curve, 2.0), seconds_to(curve, 2.0)) == (0, 0.0)
    assert (steps_to(curve, 0.3), seconds_to(curve, 0.3)) == (math.inf, math.inf)


def test_a_loss_that_is_not_a_number_reaches_nothing():
    assert steps_to(run([math.nan, math.nan]), 1.0) == math.inf


def test_compare_takes_the_reference_runs_final_loss_and_its_first_visit_there():
    plain = run([2.0, 1.0, 0.4, 0.6, 0.5])
    quick = run([2.0, 0.5, 0.2], second=2.0, reconstructed=True)
    found = compare(quick, plain)
    assert (found.loss, found.steps, found.reference_steps) == (0.5, 10, 20)
    assert (found.steps_ratio, found.seconds_ratio) == (0.5, 2.0)
    assert compare(run([2.0, 1.9]), plain).steps_ratio == math.inf


def test_compare_refuses_other_seeds_and_diverged_references():
    with pytest.raises(ValueError, match="one seed: got 1 and 0"):
        compare(run([1.0], seed=1), run([1.0]))
    with pytest.raises(ValueError, match="it sets no target"):
        compare(run([1.0]), run([1.0], diverged=True))
    with pytest.raises(ValueError, match="ends no lower than it began: it sets no target"):
        compare(run([1.0, 0.5]), run([1.0, 0.9, 1.0]))


@pytest.fixture
def race():
    runs = (
        run([2.0, 1.0, 0.5]),
        run([2.0, 0.5, 0.1], reconstructed=True),
        run([2.0, 1.0, 0.6], seed=1),
        run([2.0, 0.7, 0.6], seed=1, reconstructed=True),
        run([2.0, math.nan], base="Adam", diverged=True),
        run([2.0, 0.7], base="Adam", reconstructed=True),
        run([2.0, 0.7], base="Muon"),
    )
    return Race("small", "a small task", "accuracy", 8, 20, "linear", runs)


def test_pairs_are_of_one_base_and_seed(race):
    pairs = compare_pairs(race)
    assert list(pairs) == ["SGD"]
    assert [(pair.seed, pair.steps_ratio) for pair in pairs["SGD"]] == [(0, 0.5), (1, 1.0)]


def test_a_plain_run_that_stays_where_it_began_is_in_no_pair():
    """Of a model whose outputs do not move, say."""
    runs = (run([2.0, 2.0]), run([2.0, 2.0], reconstructed=True), run([2.0, 1.0], seed=1))
    still = Race(
        "small", "a small task", "accuracy", 8, 20, "linear", (*runs, run([2.0, 1.0], seed=1, reconstructed=True))
    )
    assert [pair.seed for pair in compare_pairs(still)["SGD"]] == [1]
    assert summarize(replace(still, runs=runs[:2])) == []


def test_a_race_knows_its_methods_and_their_runs(race):
    assert race.methods == ["SGD", "SGD reconstructed", "Adam", "Adam reconstructed", "Muon"]
    assert [found.seed for found in race.of("SGD reconstructed")] == [0, 1]


def test_json_brings_back_the_race(race):
    text = json.dumps(race_to_json(race), allow_nan=False)
    again = race_from_json(json.loads(text))
    assert again.runs[:4] == race.runs[:4]
    assert (again.title, again.steps, again.methods) == (race.title, race.steps, race.methods)
    assert math.isnan(again.runs[4].final.train_loss)
    assert again.runs[4].final.step == 10
