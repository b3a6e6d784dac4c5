import json
import time

import pytest
import torch
from benchmarks import common
from benchmarks.common import Figure, Timing, check_results, data_folder, interleaved, ratio, write_results


@pytest.fixture
def record(tmp_path):
    path = write_results(
        "speed_example",
        [Figure("time", 1.5, "ms", (1.0, 2.0), [0, 1]), Figure("accuracy", 90.0, "%")],
        command="python -m benchmarks.speed_example",
        threads=1,
        details={"note": "two rounds"},
        folder=tmp_path,
    )
    return json.loads(path.read_text())


def test_a_result_file_says_what_made_it(record, tmp_path):
    assert record["figures"] == [
        {"name": "time", "value": 1.5, "unit": "ms", "spread": [1.0, 2.0], "seeds": [0, 1]},
        {"name": "accuracy", "value": 90.0, "unit": "%", "spread": None, "seeds": []},
    ]
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["details"] == {"note": "two rounds"}
    assert common.read_results("speed_example", folder=tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["speed_example.json"]


def test_a_result_that_was_never_measured_is_none(tmp_path):
    assert common.read_results("nothing", folder=tmp_path) is None


def test_a_bad_figure_leaves_the_old_file(record, tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        write_results("speed_example", [Figure("t", float("nan"), "s")], command="c", threads=1, folder=tmp_path)
    assert common.read_results("speed_example", folder=tmp_path) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": "two"}, "'threads' must be of type int"),
        ({"threads": True}, "'threads' must be of type int"),
        ({"threads": 0}, "'threads' must be at least 1"),
        ({"commit": "main"}, "40 hexadecimal digits"),
        ({"date": "2026-01-01T00:00:00"}, "time zone"),
        ({"figures": []}, "at least one figure"),
        ({"extra": 1}, "a result file holds"),
    ],
)
def test_a_record_against_the_schema_is_refused(record, change, message):
    with pytest.raises(ValueError, match=message):
        check_results(record | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": ""}, "a name and a unit"),
        ({"value": "fast"}, "finite number"),
        ({"value": float("inf")}, "finite number"),
        ({"spread": [2.0, 3.0]}, "must enclose"),
        ({"seeds": [0.5]}, "must be integers"),
        ({"colour": "red"}, "a figure holds"),
        ({"name": "accuracy"}, "must differ"),
    ],
)
def test_a_figure_against_the_schema_is_refused(record, change, message):
    record["figures"][0] |= change
    with pytest.raises(ValueError, match=message):
        check_results(record)


def test_interleaved_runs_alternate_and_the_slow_one_takes_longer():
    order = []

    def quick():
        order.append("quick")

    def slow():
        order.append("slow")
        time.sleep(0.004)

    timings = interleaved({"quick": quick, "slow": slow}, rounds=3, warmup=1)
    assert order == ["quick", "slow", "slow", "quick", "quick", "slow", "slow", "quick"]
    assert len(timings["slow"].wall) == len(timings["quick"].cpu) == 3
    assert min(timings["slow"].wall) >= 0.004


def test_interleaved_sets_the_threads_and_restores_them():
    before = torch.get_num_threads()
    seen = []
    interleaved({"it": lambda: seen.append(torch.get_num_threads())}, rounds=1, warmup=0, threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_interleaved_refuses_nothing_to_time():
    with pytest.raises(ValueError, match="contenders is empty"):
        interleaved({})
    with pytest.raises(ValueError, match="rounds >= 1"):
        interleaved({"it": list}, rounds=0)


def test_ratio_is_of_summaries_with_the_spread_of_rounds():
    timings = {"ours": Timing(wall=[2.0, 3.0, 9.0], cpu=[2.0, 2.0, 2.0]), "peer": Timing([4.0, 4.0, 6.0], [4.0] * 3)}
    assert ratio(timings, "ours", "peer") == (0.5, (0.5, 0.5))
    assert ratio(timings, "ours", "peer", clock="wall") == (0.75, (0.5, 1.5))
    assert ratio(timings, "ours", "peer", clock="wall", statistic="min") == (0.5, (0.5, 1.5))


def test_the_data_folder_is_the_argument_then_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("FISHERLAYERS_DATA", raising=False)
    with pytest.raises(ValueError, match="no data folder"):
        data_folder()
    monkeypatch.setenv("FISHERLAYERS_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(NotADirectoryError, match="does not exist"):
        data_folder(tmp_path / "absent")


def test_the_commit_is_marked_dirty_where_the_tree_differs(monkeypatch):
    answers = {"rev-parse": "a" * 40, "status": " M src/fisherlayers/layer.py"}
    monkeypatch.setattr(common, "_git", lambda *arguments: answers[arguments[0]])
    assert common.current_commit() == "a" * 40 + "+dirty"
    answers["status"] = ""
    assert common.current_commit() == "a" * 40


def test_the_commit_is_unknown_without_git(monkeypatch):
    def absent(*_):
        raise FileNotFoundError("git")

    monkeypatch.setattr(common, "_git", absent)
    assert common.current_commit() == "unknown"


def test_a_command_line_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/images.py", "--peers", "linear probe", "HOG + SVM"])
    assert common.command_line() == "python -m benchmarks.images --peers 'linear probe' 'HOG + SVM'"
    monkeypatch.setattr("sys.argv", ["images.py"])
    assert common.command_line() == "python -m benchmarks.images"
