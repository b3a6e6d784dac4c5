"""``evidence`` through the command line: pictures of the classifier's own maps."""

import numpy as np
import pytest
from PIL import Image

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


def test_a_class_may_be_named_and_pictures_are_not_overwritten(run, fitted, paths, tmp_path):
    model = DeepFisherNetwork.load(fitted.model)
    for _ in range(2):
        assert run("evidence", fitted.model, paths[0], "-o", tmp_path, "--label", model.classes_[-1]).code == 0
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"{paths[0].stem}-evidence-2.png", f"{paths[0].stem}-evidence.png"]


def test_user_errors(refused, fitted, paths, tmp_path):
    assert "--label must be a class" in refused("evidence", fitted.model, *paths, "-o", tmp_path, "--label", "no")
    (tmp_path / "file").write_text("")
    assert "--output must be a folder" in refused("evidence", fitted.model, *paths, "-o", tmp_path / "file")
    assert "unreadable images: 1" in refused("evidence", fitted.model, tmp_path / "none.png", "-o", tmp_path)
