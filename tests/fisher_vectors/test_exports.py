"""Exported classifiers, image in, scores out, against the estimator."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork
from fisherlayers.fisher_vectors.exports import _save_whole

SMALL = {"components": 4, "dimensions": 6, "bin_sizes": (3,), "step": 3, "iterations": 5, "random_state": 0}


@pytest.fixture(
    scope="module",
    params=[{}, {"mirror": True}, {"patch_side": 5, "patch_whitening": True}],
    ids=["plain", "mirror", "whitened"],
)
def fitted(request):
    images, labels = textures(4)
    images = [np.float32(np.stack([image, image[::-1], 1 - image], axis=-1)) for image in images]
    return DeepFisherNetwork(**SMALL, **request.param).fit(images, labels), np.stack(images)


def test_a_program_serves_batches_of_any_size(fitted):
    model, images = fitted
    program = model.export_program((28, 28)).module()
    for count in (1, 2, 7):
        scores = program(torch.as_tensor(images[:count]).movedim(-1, 1))
        np.testing.assert_allclose(scores, model.decision_function(images[:count]), rtol=0, atol=1e-4)


def test_onnxruntime_gives_the_same_scores(fitted, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs fisherlayers[onnx]")
    pytest.importorskip("onnxscript", reason="needs fisherlayers[onnx]")
    model, images = fitted
    # A flat image has gradients of exactly zero.
    images = np.concatenate([images, np.full((1, 28, 28, 3), 0.5, np.float32)])
    model.export_onnx(tmp_path / "model.onnx", (28, 28))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for part in (images, images[3:4]):
        (scores,) = session.run(None, {"images": np.moveaxis(part, -1, 1)})
        np.testing.assert_allclose(scores, model.decision_function(part), rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == model.classes_.tolist()
    assert float(metadata["temperature"]) == model.temperature_


def test_an_export_leaves_the_estimator_as_it_was():
    images, labels = textures(2)
    model = DeepFisherNetwork(depth=1, **(SMALL | {"patch_side": 0})).fit(images, labels)
    # A size whose constants nobody has made yet.
    batch = torch.rand(2, 1, 31, 35)
    module = model.to_module().eval().requires_grad_(False)
    program = torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    expected = model.decision_function(list(batch[:, 0].numpy()))
    np.testing.assert_allclose(program(batch), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(module(batch), expected, rtol=0, atol=1e-4)


def test_bad_arguments(fitted):
    model, _ = fitted
    with pytest.raises(ValueError, match="image_size must have 1 to 100000 pixels"):
        model.export_program((1000, 1000))
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        model.export_program((28, 28), channels=2)


def test_what_cannot_be_exported_is_said_at_once(fitted, tmp_path):
    model, _ = fitted
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        model.export_onnx(tmp_path / "nowhere" / "model.onnx", (28, 28))
    for size in (28, "28", (28, 28, 3), (28.5, 28)):
        with pytest.raises(ValueError, match="image_size must be"):
            model.export_program(size)


def test_only_a_module_of_the_same_network_is_taken_over(fitted):
    _, images = fitted
    other = DeepFisherNetwork(depth=1, **(SMALL | {"components": 6, "dimensions": 4, "patch_side": 0}))
    same_length = DeepFisherNetwork(depth=1, **(SMALL | {"components": 4, "dimensions": 6, "patch_side": 0}))
    y = np.arange(len(images)) % 2
    first, second = (each.set_params(position_weight=0.0).fit(images, y) for each in (other, same_length))
    assert first.coef_.shape == second.coef_.shape
    with pytest.raises(ValueError, match="module is of another network"):
        first.update_from(second.to_module())
    with pytest.raises(TypeError, match="must come from to_module"):
        first.update_from(torch.nn.Linear(2, 2))
    first.update_from(first.to_module())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evidence_needs_no_gradients_of_the_caller(fitted, mode):
    model, images = fitted
    expected = model.evidence(images[:2])
    with mode():
        found = model.evidence(images[:2])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_the_extra_the_command_that_installs_it_is_named(fitted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs ONNX .* pip install 'fisherlayers\[onnx\]'"):
        fitted[0].export_onnx(tmp_path / "model.onnx", (28, 28))


class Program:
    """Writes two files, as the exporter does for large models, or fails in between."""

    def __init__(self, disk_is_full):
        self.disk_is_full = disk_is_full

    def save(self, path):
        Path(path + ".data").write_text("new weights")
        Path(path).write_text("new")
        if self.disk_is_full:
            raise OSError(28, "No space left on device")


def test_an_export_replaces_the_former_file_once_it_is_whole(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_text("former")
    target.chmod(0o640)
    with pytest.raises(OSError, match="No space left"):
        _save_whole(Program(disk_is_full=True), target)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert target.read_text() == "former"
    _save_whole(Program(disk_is_full=False), target)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.onnx": "new",
        "model.onnx.data": "new weights",
    }
    assert target.stat().st_mode & 0o777 == 0o640
