import math

import numpy as np

from fisherlayers.data import TrainTest
from fisherlayers.demo import Entry
from fisherlayers.demo.figures import accuracy_picture, prediction_picture
from fisherlayers.demo.optimizers import Raced
from fisherlayers.demo.pages import contest_section, contest_table, footer, race_section, race_table
from fisherlayers.race import Race, Trial, Tuning
from fisherlayers.race.figures import race_picture
from fisherlayers.report import render
from race.hand_made import run

RUNS = (
    run([2.0, 1.0, 0.25], second=0.125),
    run([2.0, 0.25, 0.1], second=0.25, reconstructed=True),
    run([2.0, 1.0, 0.5], base="Adam"),
    run([2.0, 1.0, 0.75], base="Adam", reconstructed=True),
    run([2.0, math.nan], base="Muon", diverged=True),
)
RACED = Raced(
    Race("small", "a small task", "accuracy", 8, 20, "linear", RUNS),
    {"SGD": Tuning("SGD", (0,), (Trial(0.1, 0.5, 0.4),))},
)
IMAGES = np.zeros((6, 8, 8), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])
DATA = TrainTest(IMAGES, LABELS, IMAGES, LABELS, ["brick", "grass"])
ENTRIES = [
    Entry("Deep Fisher Network", 83.3333, 12.34, 1.26, np.array([0, 1, 0, 1, 0, 0])),
    Entry("ConvNet", 50.0, 12.5, 0.5, np.zeros(6, np.int64)),
]


def test_the_race_table_holds_steps_seconds_and_ratios():
    assert race_table(RACED).rows == [
        ["SGD", "0.25", "20 → 10", "0.50", "0.25 → 0.25", "1.00", "50.0 → 50.0"],
        ["Adam", "0.5", "20 → never", "-", "1.00 → never", "-", "50.0 → 50.0"],
    ]


def test_the_contest_table_puts_the_network_first_and_marks_it():
    table = contest_table(ENTRIES)
    assert table.rows == [["Deep Fisher Network", "83.3", "12.3", "1.3"], ["ConvNet", "50.0", "12.5", "0.5"]]
    assert table.highlight == {0}


def test_the_report_holds_both_halves():
    sections = [race_section(RACED), contest_section("Textures", ENTRIES, DATA, ["Cut from photographs."])]
    html = render("A demo", sections, footer=footer())
    for text in (
        "a small task",
        "20 → never",
        "of 1 tried, the plain optimizer&#39;s with the lowest final loss",
        "SGD reconstructed 0.1",
        "83.3",
        "Cut from photographs.",
        "6 training images, 6 test images",
        "torch ",
    ):
        assert text in html
    assert html.count("<img") == 3


def test_without_a_search_the_report_says_so():
    assert "the optimizer&#39;s usual one" in render("t", [race_section(Raced(RACED.race, {}))])


def test_pictures_describe_what_they_show():
    assert "SGD reconstructed" in race_picture(RACED.race).alt
    assert "Deep Fisher Network 83.3, ConvNet 50.0" in accuracy_picture(ENTRIES).alt
    assert "6 test images" in prediction_picture(ENTRIES[0], DATA).alt
