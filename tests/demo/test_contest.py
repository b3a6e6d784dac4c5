import numpy as np
import pytest

from fisherlayers.data import TrainTest
from fisherlayers.demo import enter, hold_contest
from fisherlayers.demo.contest import choose_shown

DATA = TrainTest(
    train_images=np.arange(4).reshape(4, 1, 1),
    train_labels=np.array([0, 1, 0, 1]),
    test_images=np.arange(5).reshape(5, 1, 1),
    test_labels=np.array([0, 1, 0, 1, 1]),
    classes=["a", "b"],
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Parity:
    """Predicts the parity of the pixel; fitting and predicting take the given times."""

    def __init__(self, clock, fit_time=3.0):
        self.clock, self.fit_time = clock, fit_time

    def fit(self, images, labels):
        assert np.array_equal(images, DATA.train_images)
        assert np.array_equal(labels, DATA.train_labels)
        self.clock.now += self.fit_time

    def predict(self, images):
        self.clock.now += 2
        return images[:, 0, 0] % 2


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fisherlayers.demo.contest.time", clock)
    return clock


def test_an_entry_holds_accuracy_and_times(clock):
    entry = enter("parity", Parity(clock), DATA)
    assert (entry.name, entry.accuracy, entry.fit_seconds, entry.predict_seconds) == ("parity", 80.0, 3.0, 2.0)
    assert entry.predicted.tolist() == [0, 1, 0, 1, 0]


def test_peers_are_given_the_networks_fit_time(clock):
    given, started = [], []

    def make(seconds):
        given.append(seconds)
        return Parity(clock, 1.0)

    entries = hold_contest(Parity(clock, 7.0), {"quick": make, "other": make}, DATA, on_start=started.append)
    assert given == [7.0, 7.0]
    assert started == [entry.name for entry in entries] == ["Deep Fisher Network", "quick", "other"]
    assert [entry.fit_seconds for entry in entries] == [7.0, 1.0, 1.0]


def test_shown_images_are_mostly_right_answers_and_end_with_mistakes():
    actual = np.arange(40) % 4
    predicted = np.where(np.arange(40) < 20, actual, actual + 1)
    chosen = choose_shown(predicted, actual, shown=12)
    assert len(set(chosen.tolist())) == 12
    assert (predicted[chosen] == actual[chosen]).tolist() == [True] * 9 + [False] * 3


def test_few_right_answers_leave_room_for_mistakes():
    actual, predicted = np.zeros(10), np.array([0] * 2 + [1] * 8)
    chosen = choose_shown(predicted, actual, shown=8)
    assert (predicted[chosen] == 0).tolist() == [True] * 2 + [False] * 6
    assert len(choose_shown(actual, actual, shown=24)) == 10
