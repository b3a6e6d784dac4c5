"""``demo`` through the command line: what it hands on, and what it refuses before any work."""

import errno

import pytest

from fisherlayers.cli.demo import Data
from fisherlayers.data import FASHION_MNIST
from fisherlayers.data.idx import IdxSet
from fisherlayers.demo import SUBJECTS


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr("fisherlayers.demo.run_demo", lambda output, **options: calls.append((output, options)))
    return calls


def test_the_options_are_handed_on(run, calls, tmp_path):
    assert run("demo", "--quick", "-o", tmp_path / "report").code == 0
    assert run("demo", "--data", "fashion-mnist", "-o", tmp_path).code == 0
    assert calls == [
        (tmp_path / "report", {"data": "textures", "quick": True}),
        (tmp_path, {"data": "fashion-mnist", "quick": False}),
    ]


def test_download_happens_on_request_only(run, calls, tmp_path, monkeypatch):
    asked = []

    def download(self, progress):
        asked.append(self.name)
        progress("x", 4, 4)

    monkeypatch.setattr(IdxSet, "download", download)
    run("demo", "--data", "fashion-mnist", "-o", tmp_path)
    assert asked == []
    result = run("demo", "--data", "fashion-mnist", "--download", "-o", tmp_path)
    assert asked == [FASHION_MNIST.name]
    assert "download Fashion-MNIST ..." in result.err
    assert len(calls) == 2


def test_a_download_for_textures_is_refused(refused, calls, tmp_path):
    assert "--download is for --data fashion-mnist" in refused("demo", "--download", "-o", tmp_path)
    assert calls == []


def test_absent_fashion_mnist_states_the_three_ways(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("fisherlayers.data.idx._find", lambda folder, name: None)
    message = refused("demo", "--data", "fashion-mnist", "-o", tmp_path / "report")
    assert "Fashion-MNIST is not on this machine" in message
    assert "in one of 3 ways" in message
    assert not (tmp_path / "report").exists()


def test_a_file_in_the_place_of_the_report(refused, calls, tmp_path):
    (tmp_path / "report").write_text("mine")
    assert "is a file" in refused("demo", "-o", tmp_path / "report")
    assert calls == []


def test_a_full_disk_is_found_before_the_work(refused, calls, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "No space left on device" in refused("demo", "-o", tmp_path)
    assert calls == []


def test_ctrl_c(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fisherlayers.demo.run_demo", interrupt)
    assert run("demo", "-o", tmp_path).code == 130


def test_names_are_those_of_the_library():
    assert {name.value for name in Data} == set(SUBJECTS)
