"""``evidence`` through the command line: pictures of the classifier's own maps."""

import errno

import numpy as np
import pytest
from PIL import Image

from cli.conftest import FAST
from cli.pictures import write_folder
from fisherlayers.data import read_image
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.report import evidence_overlay


@pytest.fixture
def paths(fitted):
    return sorted(fitted.test.glob("*/*.png"))[:2]


def test_pictures_show_the_evidence_for_the_predicted_class(run, fitted, paths, tmp_path):
    result = run("evidence", fitted.model, *paths, "-o", tmp_path / "maps")
    assert result.code == 0, result.err
    model = DeepFisherNetwork.load(fitted.model)
    for path, label in zip(paths, model.predict(paths), strict=True):
        expected = evidence_overlay(read_image(path), model.evidence([path], label)[0])
        shown = np.asarray(Image.open(tmp_path / "maps" / f"{path.stem}-evidence.png"))
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_table_adds_up_to_the_score(run, fitted, paths, tmp_path, classes):
    folder = fitted.model
    if classes == 2:
        pictures, folder = write_folder(tmp_path / "two", classes=("lying", "upright")), tmp_path / "model"
        assert run("fit", pictures, "-o", folder, *FAST, "--validation", "0").code == 0
    model, folder = DeepFisherNetwork.load(folder), tmp_path / "shifted"
    model.intercept_ += 0.25  # which is small for as many images of each class
    model.save(folder)
    scores = np.atleast_1d(model.decision_function(paths[:1])[0])
    scores = [-scores[0], scores[0]] if classes == 2 else scores
    for label, expected in zip(model.classes_, scores, strict=True):
        result = run("evidence", folder, paths[0], "-o", tmp_path, "--label", label)
        (row,) = [line.split() for line in result.out.splitlines() if str(paths[0]) in line]
        *parts, score = map(float, row[2:6])
        assert sum(parts) == pytest.approx(score, abs=3e-3)
        assert score == pytest.approx(expected, abs=2e-3)


def test_pictures_of_a_former_call_are_replaced_and_files_of_one_name_numbered(run, fitted, paths, tmp_path):
    copies = [tmp_path / folder / "photo.png" for folder in "ab"]
    for path, copy in zip(paths, copies, strict=True):
        copy.parent.mkdir()
        copy.write_bytes(path.read_bytes())
    contents = []
    for order in (copies, copies[::-1]):
        assert run("evidence", fitted.model, *order, "-o", tmp_path / "maps").code == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()})
    first, second = "photo-evidence.png", "photo-evidence-2.png"
    assert contents[0].keys() == contents[1].keys() == {first, second}
    assert contents[0][first] == contents[1][second] != contents[1][first] == contents[0][second]


def test_ctrl_c_says_how_many_pictures_there_are(run, fitted, paths, tmp_path, monkeypatch):
    find, calls = DeepFisherNetwork.evidence, iter(range(9))

    def interrupted(*arguments):
        if next(calls):
            raise KeyboardInterrupt
        return find(*arguments)

    monkeypatch.setattr(DeepFisherNetwork, "evidence", interrupted)
    result = run("evidence", fitted.model, *paths, "-o", tmp_path / "maps")
    assert result.code == 130
    assert result.err.endswith(f"interrupted; 1 of 2 pictures are in {tmp_path / 'maps'}\n")
    assert len(list((tmp_path / "maps").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_found_before_images_are_read(refused, fitted, paths, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    message = refused("evidence", fitted.model, *paths, "-o", tmp_path / "maps")
    assert f"cannot write to {tmp_path}: Permission denied" in message
    assert "reading images" not in message


def test_user_errors(refused, fitted, paths, tmp_path):
    assert "--label must be a class" in refused("evidence", fitted.model, *paths, "-o", tmp_path, "--label", "no")
    (tmp_path / "file").write_text("")
    assert "--output must be a folder" in refused("evidence", fitted.model, *paths, "-o", tmp_path / "file")
    assert "unreadable images: 1" in refused("evidence", fitted.model, tmp_path / "none.png", "-o", tmp_path)
