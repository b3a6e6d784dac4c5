"""The races' figures and page, from a contest written by hand."""

from dataclasses import replace

import pytest
from benchmarks import race_page
from benchmarks.common import write_results
from benchmarks.race_common import describe, figures

from fisherlayers.race import Contest, Plan, Point, Race, Run, Trial, Tuning, make_method

METHODS = ["SGD", "AdamW", "SOAP", "SGD reconstructed", "AdamW reconstructed"]
LOSSES = {
    "SGD": [9, 8, 7, 6, 5],
    "AdamW": [9, 8, 6, 5, 4],
    "SOAP": [9, 6, 4, 3, 2],
    "SGD reconstructed": [9, 8, 8, 7, 6],
    "AdamW reconstructed": [9, 4, 3, 3, 3],
}


def run(method, seed, steps):
    metric = 90 + METHODS.index(method) + 0.1 * seed
    second = 2.0 if method == "SOAP" else 1.0
    points = tuple(Point(i, second * i, loss, loss, metric) for i, loss in enumerate(LOSSES[method][: steps + 1]))
    name = method.removesuffix(" reconstructed")
    return Run(method, name, name != method, seed, 0.1, False, points)


@pytest.fixture
def contest():
    plan = Plan(steps=4, horizons=(1.0, 0.5))
    races = {
        share: Race(
            "small",
            "a small task",
            "accuracy",
            8,
            steps,
            "linear",
            tuple(run(method, seed, steps) for seed in plan.seeds for method in METHODS),
        )
        for share, steps in ((1.0, 4), (0.5, 2))
    }
    searches = {method: Tuning(method, (1000,), (Trial(0.1, 3.0, 3.0), Trial(1.0, None, None))) for method in METHODS}
    searches["K-FAC"] = Tuning("K-FAC", (1000,), (Trial(0.1, None, None),))
    return Contest("a small task", plan, searches, races)


@pytest.fixture
def methods():
    bases = ("SGD", "AdamW", "SOAP")
    return [make_method(base) for base in bases] + [make_method(base, reconstructed=True) for base in bases[:2]]


def test_figures_compare_the_best_of_both_sides(contest):
    found = {figure.name: figure.value for figure in figures(contest)}
    assert found["seconds over AdamW"] == found["steps over AdamW"] == 1 / 4
    # SOAP arrives at step 2, after 4 seconds, as AdamW; so AdamW sets the best seconds, and SOAP the fewest steps.
    assert found["seconds over best peer"] == 1 / 4
    assert found["steps over best peer"] == found["steps over best peer, AdamW"] == 1 / 2
    assert "steps over best peer, SGD" not in found  # neither side arrives: nothing to compare
    assert (found["arrived, SGD reconstructed"], found["arrived, SOAP"]) == (0, 3)
    assert found["seconds over AdamW, SGD reconstructed"] is None
    assert found["validation margin"] == pytest.approx(94.1 - 92.1 + 0.2)


def test_where_only_the_peer_arrives_its_base_is_null(contest, monkeypatch):
    monkeypatch.setitem(LOSSES, "SGD", [9, 8, 6, 5, 4])
    races = {
        share: replace(race, runs=tuple(run(each.method, each.seed, len(each.points) - 1) for each in race.runs))
        for share, race in contest.races.items()
    }
    found = {figure.name: figure.value for figure in figures(replace(contest, races=races))}
    assert found["steps over best peer, SGD"] is None
    assert found["steps over best peer"] == found["steps over best peer, AdamW"] == 1 / 2


def test_where_the_rival_of_our_soonest_never_arrives_the_other_bases_count(contest):
    soonest = {"SGD reconstructed": [9, 3, 3, 3, 3]}
    races = {
        share: replace(
            race,
            runs=tuple(
                replace(
                    each,
                    points=tuple(
                        replace(point, train_loss=loss, validation_loss=loss)
                        for point, loss in zip(each.points, soonest[each.method], strict=False)
                    ),
                )
                if each.method in soonest
                else each
                for each in race.runs
            ),
        )
        for share, race in contest.races.items()
    }
    found = {figure.name: figure.value for figure in figures(replace(contest, races=races))}
    assert found["seconds over AdamW"] == found["seconds over AdamW, SGD reconstructed"]
    assert found["steps over best peer"] == found["steps over best peer, AdamW"] == 1 / 2


def test_a_side_that_never_arrives_is_null(contest):
    lost = {
        share: replace(race, runs=tuple(run for run in race.runs if run.method != "AdamW reconstructed"))
        for share, race in contest.races.items()
    }
    found = {figure.name: figure.value for figure in figures(replace(contest, races=lost))}
    assert found["seconds over AdamW"] is found["seconds over best peer"] is found["steps over best peer"] is None


def test_the_page_shows_wins_and_losses(contest, methods, tmp_path, monkeypatch):
    record = {"command": "python -m benchmarks.race_x", "threads": 1, "details": describe(contest, methods, "A note.")}
    write_results("race_mnist_mlp", figures(contest), folder=tmp_path, **record)
    monkeypatch.setattr(race_page, "read_results", lambda name: race_page_record(name, tmp_path))
    page = tmp_path / "race.md"
    assert race_page.main(["--check"], path=page) == 1
    assert race_page.main(["--figures", str(tmp_path / "figures")], path=page) == 0
    assert race_page.main(["--check"], path=page) == 0
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| MNIST, MLP | 0.25 | 0.25 | 0.25 | 0.5 | 2.2 |" in lines
    order = [line.split(" | ")[0].strip("|* ") for line in lines if line.split(" | ")[0].strip("|* ") in METHODS]
    assert order[0] == "AdamW reconstructed"
    assert set(order[-2:]) == {"SGD", "SGD reconstructed"}
    assert "| never | never | 0 of 3 |" in text
    assert "Diverged at every learning rate tried, and so not raced: K-FAC." in text
    assert "A note." in text
    assert "Not run yet" in text
    assert (tmp_path / "figures" / "race_mnist_mlp.svg").read_bytes().startswith(b"<?xml")


def race_page_record(name, folder):
    from benchmarks.common import read_results

    return read_results(name, folder=folder)
