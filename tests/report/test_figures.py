import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from fisherlayers.report import Curve, bars, curves, evidence_grid, image_grid

LINES = [Curve("plain", [0, 1, 2], [1.0, 0.5, 0.2], "SGD"), Curve("ours", [0, 1, 2], [1.0, 0.1, 0.05], "SGD", True)]


@pytest.fixture(autouse=True)
def text_as_text(monkeypatch):
    """Letters stay letters in the SVG, so that a test can read them."""
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def words(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_curves_are_named_and_labelled():
    text = words(curves({"per step": LINES, "per second": LINES}, xlabel=["steps", "seconds"], ylabel="training loss"))
    for word in ("per step", "per second", "steps", "seconds", "training loss"):
        assert text.count(word) == 1
    assert text.count("plain") == text.count("ours") == 1  # one legend for both panels


def test_curves_of_one_group_share_their_colour_and_differ_in_dashes():
    svg = curves({"": [*LINES, Curve("other", [0, 1], [1, 2], "Adam")]}, xlabel="x", ylabel="y").decode()
    assert svg.count("stroke: #1f5f8b") >= 2
    assert "stroke: #c8553d" in svg
    assert "stroke-dasharray" in svg


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    named = [Curve("_mine", [0, 1], [1.0, 0.5], "SGD"), *LINES]
    text = words(curves({"": named}, xlabel="x", ylabel="y"))
    assert [word for word in text if word in {"_mine", "plain", "ours"}] == ["_mine", "plain", "ours"]


def test_values_that_are_not_finite_are_gaps():
    broken = [Curve("diverged", [0, 1, 2], [1.0, float("inf"), float("nan")], "SGD")]
    assert "diverged" in words(curves({"": broken}, xlabel="x", ylabel="y"))


def test_bars_carry_their_numbers_in_order():
    text = words(bars({"network": 91.25, "pixels": 40.5}, xlabel="accuracy (%)"))
    assert [word for word in text if word in ("network", "pixels", "91.25", "40.5")] == [
        "network",
        "pixels",
        "91.25",
        "40.5",
    ]
    assert "accuracy (%)" in text


def test_highlighted_bars_stand_out():
    svg = bars({"network": 91.0, "pixels": 40.0}, xlabel="%", highlight=["network"]).decode()
    assert svg.count("fill: #1f5f8b") == svg.count("fill: #a9b7c1") == 1


def test_a_grid_names_the_prediction_and_the_truth_where_they_differ():
    images = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.ones((4, 4))]
    text = words(image_grid(images, ["brick", "grass", "sand"], ["brick", "moss", "sand"], columns=2))
    assert [word for word in text if word] == ["brick", "grass", "(moss)", "sand"]


def test_names_are_no_formulas():
    """The names of classes are the user's: dollars made them formulas, or the figure fail."""
    names, image = ["$5 and $6", "a $\\bad{$ <b>"], [np.zeros((4, 4), np.uint8)]
    lines = [Curve(name, [0, 1], [1.0, 10.0], name) for name in names]
    for svg in (
        curves({names[0]: lines}, xlabel=names[1], ylabel=names[0]),
        bars(dict.fromkeys(names, 1.0), xlabel=names[1]),
        image_grid(image * 2, names, names),
        evidence_grid(image * 2, [np.zeros((4, 4))] * 2, names),
    ):
        assert set(names) <= set(words(svg))
    assert not any("mathdefault" in word for word in words(curves({"": lines}, xlabel="x", ylabel="y")))


def test_equal_figures_give_equal_bytes():
    assert bars({"a": 1.0}, xlabel="x") == bars({"a": 1.0}, xlabel="x")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curves({}, xlabel="x", ylabel="y"), "panels is empty"),
        (lambda: curves({"": LINES}, xlabel=["a", "b"], ylabel="y"), "one a panel"),
        (lambda: bars({}, xlabel="x"), "values is empty"),
        (lambda: bars({"a": 1.0}, xlabel="x", highlight=["b"]), "highlight names no bar"),
        (lambda: image_grid([], [], []), "got 0 images"),
        (lambda: image_grid([np.zeros((2, 2))], ["a"], []), "got 1 images, 1 and 0 names"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
