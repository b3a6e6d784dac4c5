import math

from fisherlayers.race import Race, summarize
from race.hand_made import run


def race(*runs):
    return Race("small", "a small task", "accuracy", 8, 40, "linear", runs)


def test_a_summary_holds_medians_and_spreads_over_the_seeds():
    plain = [run([2.0, 1.0, 0.8, 0.6, 0.5 + seed / 100], seed=seed) for seed in range(3)]
    ours = [
        run([2.0, 0.1], seed=0, second=3.0, reconstructed=True),
        run([2.0, 1.0, 0.1], seed=1, second=1.0, reconstructed=True),
        run([2.0, 1.0, 0.9], seed=2, reconstructed=True),
    ]
    (summary,) = summarize(race(*plain, *ours))
    assert (summary.base, summary.seeds, summary.loss) == ("SGD", (0, 1, 2), 0.51)
    assert (summary.plain_steps, summary.steps) == (40, 20)
    assert (summary.steps_ratio, summary.steps_spread) == (0.5, (0.25, math.inf))
    assert (summary.plain_seconds, summary.seconds) == (2.0, 3.0)
    assert (summary.seconds_ratio, summary.seconds_spread) == (1.5, (1.0, math.inf))
    assert (summary.plain_metric, summary.metric) == (50.0, 50.0)


def test_a_target_reached_by_half_of_the_seeds_is_not_called_reached():
    plain = [run([2.0, 0.5], seed=seed) for seed in (0, 1)]
    ours = [run([2.0, 0.1], seed=0, reconstructed=True), run([2.0, 1.0], seed=1, reconstructed=True)]
    (summary,) = summarize(race(*plain, *ours))
    assert summary.steps == summary.steps_ratio == math.inf


def test_bases_without_a_pair_are_left_out():
    assert summarize(race(run([2.0, 0.5]), run([2.0, 0.5], base="Adam", reconstructed=True))) == []
