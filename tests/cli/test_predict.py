"""``predict`` through the command line: the classifier's own answers in three formats."""

import csv
import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from fisherlayers.fisher_vectors import DeepFisherNetwork


@pytest.fixture
def paths(fitted):
    return sorted(fitted.test.glob("*/*.png"))


def test_json_holds_the_probabilities_of_the_classifier(run, fitted, paths, load_json):
    model = DeepFisherNetwork.load(fitted.model)
    answers = load_json(run("predict", fitted.model, *paths, "--json").out)
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    for answer, row in zip(answers, model.predict_proba(paths), strict=True):
        named = {choice["class"]: choice["probability"] for choice in answer["classes"]}
        np.testing.assert_allclose([named[name] for name in model.classes_], row, rtol=1e-5)
        assert list(named.values()) == sorted(named.values(), reverse=True)


def test_the_first_class_is_the_prediction(run, fitted, paths):
    rows = list(csv.DictReader(io.StringIO(run("predict", fitted.model, *paths, "--csv", "--top", "1").out)))
    predicted = DeepFisherNetwork.load(fitted.model).predict(paths)
    assert [row["class"] for row in rows] == predicted.tolist() == [path.parent.name for path in paths]
    assert {row["rank"] for row in rows} == {"1"}


def test_table_shows_the_best_classes(run, fitted, paths):
    result = run("predict", fitted.model, paths[0], "--top", "2")
    assert result.code == 0
    assert "leaning" in result.out
    assert result.out.count("%") == 2


def test_top_beyond_the_classes_shows_all(run, fitted, paths):
    assert run("predict", fitted.model, paths[0], "--top", "99").out.count("%") == 3


def test_unreadable_images_do_not_stop_the_others(run, fitted, paths, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    result = run("predict", fitted.model, tmp_path / "bad.png", paths[0], tmp_path / "none.png", "--csv", "--top", "1")
    assert result.code == 2
    assert [line.split(",")[0] for line in result.out.splitlines()] == ["image", str(paths[0])]
    assert "unreadable images: 2" in result.err
    assert "bad.png: its content is not an image" in result.err
    assert "none.png: there is no such file" in result.err


def test_an_image_without_permission_does_not_stop_the_others(run, fitted, paths, monkeypatch, load_json):
    """The library says so, after the others; the parser of the command line must not before them."""
    locked, may, read = paths[0], os.access, Image.open

    def denied(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(
        "os.access", lambda path, mode, **rest: os.fsdecode(path) != str(locked) and may(path, mode, **rest)
    )
    monkeypatch.setattr(Image, "open", denied)
    result = run("predict", fitted.model, *paths, "--json")
    assert result.code == 2
    assert f"cannot read image {locked}: Permission denied" in result.err
    assert [answer["image"] for answer in load_json(result.out)] == [str(path) for path in paths[1:]]


def test_only_unreadable_images(refused, fitted, tmp_path):
    assert "none.png: there is no such file" in refused("predict", fitted.model, tmp_path / "none.png")


def test_one_pixel_and_8000_pixels_and_colour(run, fitted, tmp_path, load_json):
    Image.new("L", (1, 1), 7).save(tmp_path / "1.png")
    Image.new("RGB", (8000, 500), (9, 99, 9)).save(tmp_path / "8000.png")
    Image.new("RGBA", (40, 40), (9, 99, 9, 100)).save(tmp_path / "rgba.png")
    result = run("predict", fitted.model, *sorted(tmp_path.iterdir()), "--json")
    assert result.code == 0, result.err
    for answer in load_json(result.out):
        assert sum(choice["probability"] for choice in answer["classes"]) == pytest.approx(1, abs=1e-5)


def test_images_beyond_the_memory_budget_are_read_again(run, fitted, paths, monkeypatch):
    whole = run("predict", fitted.model, *paths, "--csv").out
    monkeypatch.setattr("fisherlayers.cli.image_inputs.MEMORY", 2000)
    monkeypatch.setattr("fisherlayers.cli.image_inputs.PART", 5)
    assert run("predict", fitted.model, *paths, "--csv").out == whole


def test_no_model(refused, paths, tmp_path):
    assert "is no model folder" in refused("predict", tmp_path / "none", paths[0])


def test_a_damaged_model(refused, fitted, paths, tmp_path):
    for path in fitted.model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    assert "is damaged" in refused("predict", tmp_path, paths[0])


def test_two_formats(refused, fitted, paths):
    assert "--json and --csv exclude each other" in refused("predict", fitted.model, paths[0], "--json", "--csv")


def test_no_image(run, fitted):
    result = run("predict", fitted.model)
    assert result.code == 2
    assert "IMAGE" in result.err
