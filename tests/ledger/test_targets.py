import io

import pytest
from benchmarks import targets
from benchmarks.common import Figure, write_results
from benchmarks.targets import AREAS, Reference, State, Target, judge, load_targets, main
from rich.console import Console


def target(**changes):
    fields = {"area": "images", "text": "deep", "result": "photos", "figure": "deep", "comparison": ">", "unit": "%"}
    return Target(**{**fields, "bound": 90.0, **changes})


@pytest.fixture
def folder(tmp_path):
    figures = [Figure("deep", 91.0, "%", (90.5, 91.5)), Figure("shallow", 89.0, "%")]
    write_results("photos", figures, command="c", threads=1, folder=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("comparison", "bound", "state"),
    [
        (">", 90.0, State.MET),
        (">", 91.0, State.SHORT),
        (">=", 91.0, State.MET),
        ("<=", 91.0, State.MET),
        ("<", 91.0, State.SHORT),
        ("<", 91.1, State.MET),
    ],
)
def test_a_figure_is_compared_with_its_bound(folder, comparison, bound, state):
    assert judge(target(comparison=comparison, bound=bound), folder=folder).state is state


@pytest.mark.parametrize(("plus", "state"), [(0.0, State.MET), (1.5, State.MET), (2.5, State.SHORT)])
def test_a_bound_may_be_another_figure(folder, plus, state):
    verdict = judge(target(bound=Reference("photos", "shallow", plus)), folder=folder)
    assert (verdict.state, verdict.bound, verdict.value, verdict.spread) == (state, 89.0 + plus, 91.0, [90.5, 91.5])


@pytest.mark.parametrize(
    "changes",
    [{"result": "nothing"}, {"figure": "nothing"}, {"bound": Reference("photos", "nothing")}],
)
def test_what_was_never_measured_is_not_met(folder, changes):
    assert judge(target(**changes), folder=folder).state is State.NOT_MEASURED


def test_a_figure_in_another_unit_is_refused(folder):
    with pytest.raises(ValueError, match="its target is in 'points'"):
        judge(target(unit="points"), folder=folder)


def test_an_unknown_area_or_comparison_is_refused():
    with pytest.raises(ValueError, match="area must be one of"):
        target(area="speed")
    with pytest.raises(ValueError, match="comparison must be one of"):
        target(comparison="==")


def test_the_table_of_targets_covers_every_area_and_names_each_row_once():
    rows = load_targets()
    assert {row.area for row in rows} == set(AREAS)
    assert len({(row.result, row.figure, row.comparison, row.bound) for row in rows}) == len(rows)
    assert len({row.text for row in rows}) == len(rows)


def test_a_bound_on_another_figure_defaults_to_the_same_file():
    deep = next(row for row in load_targets() if row.result == "fashion_mnist_images" and row.comparison == ">")
    assert deep.bound == Reference("fashion_mnist_images", "test accuracy, shallow", 0.0)


def run(arguments, folder):
    output = io.StringIO()
    code = main(arguments, folder=folder, console=Console(file=output, width=200))
    return code, output.getvalue()


def test_the_command_shows_one_area_and_fails_while_something_is_missing(tmp_path):
    code, text = run(["core"], tmp_path)
    assert code == 1
    rows = sum(target.area == "core" for target in load_targets())
    assert f"core: 0 of {rows} met" in text
    assert "not measured" in text
    assert "images:" not in text


def test_the_command_succeeds_when_all_are_met(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "load_targets", lambda: [target(text="deep network above ninety")])
    write_results("photos", [Figure("deep", 91.25, "%")], command="c", threads=1, folder=tmp_path)
    code, text = run([], tmp_path)
    assert code == 0
    for part in ("deep network above ninety", "> 90 %", "91.25 %", "met", "images: 1 of 1 met", "1 targets: 1 met"):
        assert part in text


def test_a_short_figure_fails_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "load_targets", lambda: [target()])
    write_results("photos", [Figure("deep", 80.0, "%")], command="c", threads=1, folder=tmp_path)
    code, text = run([], tmp_path)
    assert code == 1
    assert "0 met, 1 short, 0 not measured" in text


def test_what_was_never_reached_falls_short(tmp_path):
    write_results("photos", [Figure("deep", None, "%")], command="c", threads=1, folder=tmp_path)
    assert judge(target(), folder=tmp_path).state is State.SHORT
    assert judge(target(comparison="<="), folder=tmp_path).state is State.SHORT
