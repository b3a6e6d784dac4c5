"""The hub's three verbs without a network, and the copies that Python itself makes."""

import copy
import errno
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork
from fisherlayers.fisher_vectors.hub import _carrier_class
from fisherlayers.fisher_vectors.persistence import ModelFolderError

hub = pytest.importorskip("huggingface_hub", reason="needs fisherlayers[hub]")


@pytest.fixture(scope="module")
def fitted():
    images, labels = textures(4)
    model = DeepFisherNetwork(components=4, dimensions=6, bin_sizes=(3,), step=3, iterations=5, random_state=0)
    return model.fit(images, labels), images


def test_a_folder_goes_round_with_the_same_scores(fitted, tmp_path):
    model, images = fitted
    for _ in range(2):  # a folder that is there is written over
        assert model.save_pretrained(tmp_path / "model") is None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "weights.safetensors",
    ]
    loaded = DeepFisherNetwork.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.decision_function(images), model.decision_function(images))
    np.testing.assert_array_equal(
        DeepFisherNetwork.load(tmp_path / "model").decision_function(images), model.decision_function(images)
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert "library_name: fisherlayers" in card
    assert "checks, lying, slanted, upright" in card
    (tmp_path / "model" / "README.md").write_text("own card")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "own card"


def test_an_upload_holds_the_model_and_comes_back(fitted, tmp_path, monkeypatch):
    model, images = fitted
    kept = tmp_path / "hub"

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, folder_path, **_):
            kept.mkdir()
            for path in Path(folder_path).iterdir():
                path.replace(kept / path.name)
            return "address"

    monkeypatch.setattr(hub.hub_mixin, "HfApi", Api)
    assert model.push_to_hub("someone/textures", private=True) == "address"
    assert 'from_pretrained("someone/textures")' in (kept / "README.md").read_text()
    monkeypatch.setattr(hub.hub_mixin, "hf_hub_download", lambda filename, **_: str(kept / filename))
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **_: str(kept))
    from fisherlayers.fisher_vectors import hub as ours

    ours._carrier_class.cache_clear()
    loaded = DeepFisherNetwork.from_pretrained("someone/textures")
    ours._carrier_class.cache_clear()
    np.testing.assert_array_equal(loaded.decision_function(images), model.decision_function(images))


def test_a_damaged_folder_is_refused(fitted, tmp_path):
    fitted[0].save_pretrained(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(ModelFolderError, match="does not match its checksum"):
        DeepFisherNetwork.from_pretrained(tmp_path)


def test_copies_by_python_have_the_same_scores(fitted, tmp_path):
    model, images = fitted
    expected = model.decision_function(images)
    joblib.dump(model, tmp_path / "model.joblib")
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), joblib.load(tmp_path / "model.joblib")]
    for same in copies:
        np.testing.assert_array_equal(same.decision_function(images), expected)
        assert same.get_params() == model.get_params()
    module = pickle.loads(pickle.dumps(model.to_module()))
    batch = np.float32(np.stack(images))
    import torch

    np.testing.assert_allclose(module(torch.tensor(batch)).detach(), expected, atol=1e-4)


def test_the_model_of_another_library_is_not_overwritten(fitted, tmp_path):
    model, _ = fitted
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(FileExistsError, match="is no model folder of fisherlayers"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "vit"}'


def test_a_save_that_fails_leaves_the_former_model_and_other_files_stay(fitted, tmp_path, monkeypatch):
    model, images = fitted
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, model_card_kwargs={"name": "someone/textures"})
    assert 'from_pretrained("someone/textures")' in (tmp_path / "README.md").read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fisherlayers.fisher_vectors.persistence.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(
        DeepFisherNetwork.from_pretrained(tmp_path).decision_function(images), model.decision_function(images)
    )
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "notes.txt", "weights.safetensors"]


def test_a_full_disk_leaves_no_folder_and_no_half_card(fitted, tmp_path, monkeypatch):
    model = fitted[0]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr("fisherlayers.fisher_vectors.persistence.os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as context:
        context.setattr("fisherlayers.files.secrets", SimpleNamespace(token_hex=full))
        with pytest.raises(OSError, match="No space left on device"):
            model.save_pretrained(tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "weights.safetensors"]
    model.save_pretrained(tmp_path / "model")
    assert "fisherlayers" in (tmp_path / "model" / "README.md").read_text()


def test_without_the_extra_the_command_that_installs_it_is_named(fitted, tmp_path, monkeypatch):
    _carrier_class.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"needs huggingface_hub .* pip install 'fisherlayers\[hub\]'"):
        fitted[0].save_pretrained(tmp_path / "model")
