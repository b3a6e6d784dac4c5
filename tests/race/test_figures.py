from fisherlayers.race import Race
from fisherlayers.race.figures import race_picture
from race.hand_made import run


def test_curves_are_medians_over_the_seeds(monkeypatch):
    drawn = {}
    monkeypatch.setattr("fisherlayers.race.figures.curves", lambda panels, **_: drawn.update(panels) or b"<svg/>")
    runs = tuple(run([2.0, loss], seed=seed, second=seed + 1.0) for seed, loss in enumerate([0.1, 0.4, 0.3]))
    diverged = run([2.0, 9.0], base="Adam", diverged=True)
    race_picture(Race("small", "a small task", "accuracy", 8, 10, "linear", (*runs, diverged)))
    (steps,), (seconds,) = drawn["by steps"], drawn["by time"]
    assert (steps.name, list(steps.x), list(steps.y), steps.dashed) == ("SGD", [0, 10], [2.0, 0.3], True)
    assert list(seconds.x) == [0, 2.0]
