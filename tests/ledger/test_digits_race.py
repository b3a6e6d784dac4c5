import math

from benchmarks.digits_race import figures_of, finite, validation_figure

from fisherlayers.race import Race, summarize
from race.hand_made import run


def summary(*losses):
    plain = [run([2.0, 1.0, 0.5], seed=seed) for seed in range(len(losses))]
    ours = [run(curve, seed=seed, reconstructed=True) for seed, curve in enumerate(losses)]
    (found,) = summarize(Race("small", "a small task", "accuracy", 8, 20, "linear", (*plain, *ours)))
    return found


def test_figures_are_medians_with_their_spread_and_seeds():
    figures = {figure.name: figure for figure in figures_of(summary([2.0, 0.1], [2.0, 1.0, 0.1], [2.0, 0.1]))}
    ratio = figures["steps ratio, SGD"]
    assert (ratio.value, ratio.spread, tuple(ratio.seeds), ratio.unit) == (0.5, (0.5, 1.0), (0, 1, 2), "x")
    assert figures["validation accuracy, SGD reconstructed"].value == 50.0


def test_a_seed_that_never_arrives_takes_the_spread_and_most_of_them_the_figure():
    figures = {figure.name: figure for figure in figures_of(summary([2.0, 0.1], [2.0, 0.1], [2.0, 1.0]))}
    assert figures["steps ratio, SGD"].spread is None
    names = [figure.name for figure in figures_of(summary([2.0, 0.1], [2.0, 1.0], [2.0, 1.0]))]
    assert "steps ratio, SGD" not in names
    assert "validation accuracy, SGD" in names


def test_infinity_becomes_none():
    from fisherlayers.race import Comparison

    assert finite(Comparison(0, 0.5, math.inf, 20, math.inf, 1.0))["steps"] is None


def test_the_validation_target_is_the_plain_runs_lowest_validation_loss():
    runs = (  # validation loss = training loss + 1
        run([2.0, 0.5, 0.4, 0.6]),
        run([2.0, 0.3, 0.1, 0.1], reconstructed=True),
        run([2.0, 0.5, 0.4, 0.3], seed=1),
        run([2.0, 0.5, 0.5, 0.4], seed=1, reconstructed=True),
    )
    figure = validation_figure(Race("small", "a small task", "accuracy", 8, 30, "linear", runs), "SGD", "")
    assert (figure.value, figure.spread, figure.seeds) == ((0.5 + 2.0) / 2, (0.5, 2.0), [0, 1])
