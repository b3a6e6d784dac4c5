"""``race`` through the command line: the table, the figure, the results file."""

import errno
import io
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from fisherlayers.cli.console import Stages
from fisherlayers.cli.race import Optimizer, TaskName
from fisherlayers.cli.standings import Standings
from fisherlayers.race import BASES, CONTENDERS, TASKS, Point, Progress, Race, Run, Trial, Tuning, race_from_json
from race.small_task import small_task


@pytest.fixture(scope="module")
def raced(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("race")
    result = run(
        "race", "--optimizer", "sgd", "--seeds", 2, "--steps", 10, "-o", root / "new/r.svg", "--json", root / "r.json"
    )
    assert result.code == 0, result.err
    return root, result


def test_table_and_figure(raced):
    root, result = raced
    assert "medians of 2 seeds" in result.out
    assert "SGD" in result.out
    assert " -> " in result.out
    assert "run 4 of 4: SGD reconstructed, seed 1" in result.err
    text = ElementTree.parse(root / "new/r.svg").getroot()
    assert text.tag.endswith("svg")


def test_results_hold_every_evaluation(raced, load_json):
    race = race_from_json(load_json((raced[0] / "r.json").read_text()))
    assert race.methods == ["SGD", "SGD reconstructed"]
    assert [(run.seed, run.final.step) for run in race.runs] == [(0, 10), (0, 10), (1, 10), (1, 10)]


def test_tuning_chooses_a_learning_rate_for_each_method(run, tmp_path, load_json):
    arguments = (
        "--optimizer",
        "SGD",
        "--seeds",
        1,
        "--steps",
        5,
        "-o",
        tmp_path / "r.svg",
        "--json",
        tmp_path / "r.json",
    )
    result = run("race", *arguments, "--tune", 2)
    assert result.code == 0, result.err
    assert "tune SGD reconstructed ..." in result.err
    rates = [record["learning_rate"] for record in load_json((tmp_path / "r.json").read_text())["runs"]]
    assert all(rate != BASES["SGD"].learning_rate for rate in rates)


def test_tuning_that_finds_nothing(refused, tmp_path, monkeypatch):
    def fail(task, method, *, trials, steps, on_trial):
        return Tuning(method.name, (0,), (Trial(0.1, None, None),) * trials)

    monkeypatch.setattr("fisherlayers.race.tune", fail)
    message = refused("race", "--optimizer", "SGD", "--tune", 2, "-o", tmp_path / "r.svg")
    assert "all 2 trials of SGD diverged: give more by --tune" in message


def test_a_place_that_cannot_be_written_is_found_before_the_race(refused, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fisherlayers.race.run_race", lambda *_, **__: pytest.fail("the race began"))
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "No space left on device" in refused("race", "-o", tmp_path / "r.svg")


def test_places_that_are_no_files_or_the_same_are_found_before_the_race(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a folder: the name of a file is needed" in refused("race", "-o", str(tmp_path))
    assert "is a folder" in refused("race", "--json", ".")
    assert "both name a.svg" in refused("race", "-o", "a.svg", "--json", "a.svg")
    (tmp_path / "link.svg").symlink_to("a.json")
    assert "both name link.svg" in refused("race", "-o", "link.svg", "--json", "a.json")
    assert "both name b/../a.svg" in refused("race", "-o", "b/../a.svg", "--json", "a.svg")


def test_a_figure_of_another_format_is_refused_before_the_race(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("fisherlayers.race.run_race", lambda *_, **__: pytest.fail("the race began"))
    assert "a.png: the figure is an SVG document, give a name that ends in .svg" in refused("race", "-o", "a.png")


def test_what_is_never_reached_is_said_in_words(run, tmp_path, monkeypatch):
    def run_race(task, methods, *, seeds, **_):
        def trained(method, losses):
            points = tuple(Point(step, 0.5 * step, loss, loss, 90.0) for step, loss in enumerate(losses))
            return Run(method.name, method.base, method.reconstructed, 0, 0.1, False, points)

        runs = (trained(methods[0], [1.0, 0.5]), trained(methods[1], [1.0, 0.7]))
        return Race("digits", "Digits", "accuracy", 50, 1, "linear", runs)

    monkeypatch.setattr("fisherlayers.race.run_race", run_race)
    result = run("race", "--optimizer", "SGD", "--seeds", 1, "-o", tmp_path / "r.svg")
    assert "; medians of 1 seed\n" in result.out
    [row] = [line.split() for line in result.out.splitlines() if line.startswith(" SGD")]
    assert row == ["SGD", "0.5", "1", "->", "never", "-", "0.50", "->", "never", "-", "90.0", "->", "90.0"]


def test_a_disk_that_fills_up_leaves_no_half_figure(refused, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    refused("race", "--optimizer", "SGD", "--seeds", 1, "--steps", 2, "-o", tmp_path / "r.svg")
    assert list(tmp_path.iterdir()) == []


def test_fashion_mnist_when_absent_states_the_three_ways(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("fisherlayers.data.idx._find", lambda folder, name: None)
    message = refused("race", "--task", "fashion-mnist", "-o", tmp_path / "r.svg")
    assert "Fashion-MNIST is not on this machine" in message
    assert "in one of 3 ways" in message


def test_names_are_those_of_the_library():
    assert {name.value for name in TaskName} == set(TASKS)
    assert {name.value for name in Optimizer} == set(CONTENDERS)


def test_the_race_needs_the_report_extra_only(run, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("fisherlayers.demo")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "skimage", None)
    result = run("race", "--optimizer", "SGD", "--seeds", 1, "--steps", 2, "-o", tmp_path / "r.svg")
    assert result.code == 0, result.err


@pytest.mark.parametrize("trials", [0, 2])
def test_a_missing_package_is_named_before_the_race(refused, tmp_path, monkeypatch, trials):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    arguments = ("--optimizer", "SGD", "--optimizer", "SOAP", "--tune", trials, "--steps", 2)
    message = refused("race", *arguments, "-o", tmp_path / "r.svg")
    assert "python -m pip install 'fisherlayers[bench]'" in message
    assert "run 1" not in message
    assert "tune SGD" not in message


def test_an_optimizer_whose_plain_run_goes_nowhere_is_named(run, tmp_path, monkeypatch):
    still = small_task(loss=lambda outputs, targets: 1 + 0 * outputs.sum())
    monkeypatch.setattr("fisherlayers.race.load_task", lambda name: still)
    result = run("race", "--optimizer", "SGD", "--steps", 3, "-o", tmp_path / "r.svg")
    assert result.code == 0, result.err
    assert "no target, as no plain run ends lower than it began: SGD\n" in result.out


@pytest.mark.parametrize("kind", [Stages, lambda: Standings("accuracy")])
def test_a_dumb_terminal_gets_lines_instead_of_bars(kind, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # then rich takes any stream for a terminal
    monkeypatch.setenv("TERM", "dumb")
    with kind() as shown:
        if isinstance(shown, Stages):
            shown("encode", 1, 2)
        else:
            shown(Progress("SGD", 7, 0, 1, 9, Point(9, 0.5, 0.25, 1.0, 90.0)))
    expected = "encode ...\n" if isinstance(shown, Stages) else "run 1 of 1: SGD, seed 7: training loss 0.25\n"
    assert capsys.readouterr().err == expected


def test_the_live_table_shows_the_latest_evaluation_of_each_method():
    standings = Standings("accuracy")
    for step in (1, 2):
        for method in ("SGD", "Adam"):
            standings(Progress(method, 7, 0, 2, 9, Point(step, 0.5 * step, 1 / step, 1.0, 90.0 + step)))
    stream = io.StringIO()
    Console(file=stream, width=100).print(standings.table())
    rows = [line.split() for line in stream.getvalue().splitlines() if line.startswith((" SGD", " Adam"))]
    assert rows == [["SGD", "7", "2/9", "0.5", "92.00", "1.00"], ["Adam", "7", "2/9", "0.5", "92.00", "1.00"]]
