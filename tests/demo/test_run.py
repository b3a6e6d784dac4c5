import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fisherlayers.data import TrainTest
from fisherlayers.demo import SUBJECTS, run, run_demo
from fisherlayers.demo.optimizers import RacePlan, torch_threads
from fisherlayers.demo.run import thinned
from race.small_task import small_task

LABELS = np.repeat([0, 1, 2], 8)
IMAGES = np.uint8(LABELS[:, None, None] * 60 + np.random.default_rng(0).integers(0, 40, (24, 16, 16)))
DATA = TrainTest(IMAGES, LABELS, IMAGES, LABELS, ["dark", "middle", "light"])


class Nearest:
    """Stands for the Deep Fisher Network: the class with the nearest mean."""

    def __init__(self, **_):
        pass

    def fit(self, images, labels, *, progress):
        progress("means", 1, 2)
        self.means = np.array([images[labels == label].mean() for label in range(3)])
        return self

    def predict(self, images):
        return np.abs(images.mean((1, 2))[:, None] - self.means).argmin(1)

    def evidence(self, images, labels):
        return [np.float64(image) - self.means[label] for image, label in zip(images, labels, strict=True)]


@pytest.fixture(autouse=True)
def small_demo(monkeypatch):
    subject = replace(SUBJECTS["textures"], plan=RacePlan((0,), 2, steps=3), load_images=lambda: DATA)
    monkeypatch.setitem(SUBJECTS, "textures", subject)
    monkeypatch.setattr(run, "load_task", lambda _: small_task())
    monkeypatch.setattr(run, "DeepFisherNetwork", Nearest)


def console():
    return Console(file=io.StringIO(), width=160)


def test_the_demo_prints_both_tables_and_writes_one_report(tmp_path):
    screen = console()
    outcome = run_demo(tmp_path / "report", console=screen)
    text = screen.file.getvalue()
    assert outcome.report == tmp_path / "report" / "index.html"
    assert [path.name for path in outcome.report.parent.iterdir()] == ["index.html"]
    html = outcome.report.read_text()
    names = ["Deep Fisher Network", "HOG + linear SVM", "ConvNet, same time", "linear SVM on pixels"]
    assert [entry.name for entry in outcome.entries] == names
    assert outcome.entries[0].accuracy == 100
    for entry in outcome.entries:
        assert re.search(rf"{re.escape(entry.name)} +{entry.accuracy:.1f} ", text)
        assert f'<th scope="row">{entry.name}</th><td>{entry.accuracy:.1f}</td>' in html
    assert {found.method for found in outcome.raced.race.runs} == set(outcome.raced.tunings)
    assert str(outcome.report) in text.replace("\n", "")


def test_a_quick_demo_says_that_its_numbers_mean_nothing(tmp_path):
    outcome = run_demo(tmp_path, quick=True, console=console())
    assert "whose numbers mean nothing" in outcome.report.read_text()
    assert outcome.raced.tunings == {}


def test_an_interrupt_leaves_the_old_report(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Nearest, "predict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, console=console())
    assert (tmp_path / "index.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_missing_data_are_named_before_anything_runs(tmp_path, monkeypatch):
    def absent():
        raise FileNotFoundError("three ways")

    monkeypatch.setitem(SUBJECTS, "fashion-mnist", replace(SUBJECTS["fashion-mnist"], load_images=absent))
    screen = console()
    with pytest.raises(FileNotFoundError, match="three ways"):
        run_demo(tmp_path / "report", data="fashion-mnist", console=screen)
    assert screen.file.getvalue() == ""
    assert not (tmp_path / "report").exists()


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="data must be one of"):
        run_demo(tmp_path, data="cifar")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        run_demo(tmp_path / "file")


def test_thinned_keeps_the_first_images_of_each_class():
    data = thinned(DATA, per_class=2)
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(data.train_images[2], IMAGES[8])


def test_threads_are_set_inside_the_block_only():
    import torch

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with torch_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_the_real_subjects_name_tasks_that_exist():
    from fisherlayers.race import TASKS

    assert {subject.task for subject in SUBJECTS.values()} <= set(TASKS)
