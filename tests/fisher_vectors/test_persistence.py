"""Model folders: the same scores after a round trip, a clear word on a damaged one, nothing half-written."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fisher_vectors.texture_images import textures
from fisherlayers.fisher_vectors import DeepFisherNetwork, FisherVectorTransformer
from fisherlayers.fisher_vectors.persistence import ModelFolderError, read_folder, take, write_folder

# Settings and parameters that the first models did not have.
LATER = {"global_pooling", "patch_whitening", "pooling_damping"}


def small_model(labels_as=np.asarray):
    images, labels = textures(5)
    colour = [np.repeat(image[:, :, None], 3, axis=2) * [1, 0.7, 0.4] for image in images]
    quick = {"components": (3, 4), "dimensions": 6, "step": 4, "training_descriptors": 500}
    return DeepFisherNetwork(**quick, random_state=0, iterations=2).fit(colour, labels_as(labels))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    # As the first models were, whose config had no checksum of its own.
    config = json.loads((folder / "config.json").read_text())
    del config["config_sha256"]
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_round_trip_gives_the_same_bits(model, saved):
    images, _ = textures(3, seed=1)
    again = DeepFisherNetwork.load(saved)
    assert np.array_equal(again.decision_function(images), model.decision_function(images))
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    assert again.settings_ == model.settings_
    assert {k: v for k, v in again.get_params().items() if v is not None} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.get_params().items() if v is not None
    }
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "weights.safetensors"]


def test_a_model_of_before_the_later_settings_loads_as_it_was(model, saved):
    config = json.loads((saved / "config.json").read_text())
    edit(
        saved,
        settings={name: value for name, value in config["settings"].items() if name not in LATER},
        parameters={name: value for name, value in config["parameters"].items() if name not in LATER},
    )
    images, _ = textures(3, seed=1)
    again = DeepFisherNetwork.load(saved)
    assert again.settings_ == model.settings_
    assert np.array_equal(again.decision_function(images), model.decision_function(images))


def test_whitened_patches_come_back(tmp_path):
    images, labels = textures(4)
    quick = {"components": 3, "dimensions": 6, "step": 4, "training_descriptors": 500, "iterations": 2, "depth": 1}
    model = DeepFisherNetwork(**quick, patch_side=4, patch_whitening=True, random_state=0).fit(images, labels)
    model.save(tmp_path / "m")
    scores = model.decision_function(images)
    assert np.array_equal(DeepFisherNetwork.load(tmp_path / "m").decision_function(images), scores)
    module = model.to_module()
    pixels = torch.tensor(np.stack(images), dtype=torch.float32)
    np.testing.assert_allclose(module(pixels).detach(), scores, rtol=0, atol=1e-4)
    # What a module gives back has its gains in the PCA's basis.
    model.update_from(module)
    np.testing.assert_allclose(model.decision_function(images), scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "labels_as",
    [
        lambda labels: labels.astype(object),
        lambda labels: np.unique(labels, return_inverse=True)[1] + 7,
        lambda labels: labels == "upright",
    ],
)
def test_classes_keep_their_type(labels_as, tmp_path):
    model = small_model(labels_as)
    model.save(tmp_path / "m")
    again = DeepFisherNetwork.load(tmp_path / "m")
    assert again.classes_.dtype == model.classes_.dtype
    assert again.classes_.tolist() == model.classes_.tolist()
    assert again.coef_.shape == model.coef_.shape


def test_saving_again_replaces_the_model(model, saved):
    other = DeepFisherNetwork(components=2, dimensions=4, depth=1, step=4, random_state=0).fit(*textures(4))
    other.save(saved)
    assert DeepFisherNetwork.load(saved).settings_.depth == 1
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_other_folders_are_not_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis exists and is no model folder"):
        model.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    with pytest.raises(OSError, match=r"cannot save to .*nowhere.*No such file"):
        model.save(tmp_path / "nowhere" / "model")


@pytest.mark.parametrize("failing_call", [1, 2])
def test_full_disk_leaves_the_old_model(model, saved, monkeypatch, failing_call):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fisherlayers.fisher_vectors.persistence.os.fsync", full)
    with pytest.raises(OSError, match=r"cannot save to .*model.*No space left on device") as caught:
        model.save(saved)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def save_often(folder, number, times):
    for _ in range(times):
        write_folder(folder, {"number": number}, {"a": torch.full((5000,), float(number))})


@pytest.mark.parametrize("exists", [False, True])
def test_several_processes_save_into_one_folder(tmp_path, exists):
    folder = tmp_path / "model"
    if exists:
        write_folder(folder, {"number": 0}, {"a": torch.zeros(5000)})
    context = multiprocessing.get_context("fork")
    savers = [context.Process(target=save_often, args=(folder, number, 40)) for number in (1, 2)]
    for saver in savers:
        saver.start()
    # One of the models is there at any time.
    while any(saver.is_alive() for saver in savers):
        if exists:
            config, tensors = read_folder(folder)
            assert bool((tensors["a"] == config["number"]).all())
    assert [saver.exitcode for saver in savers] == [0, 0]
    config, tensors = read_folder(folder)
    assert bool((tensors["a"] == config["number"]).all())
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(folder)) == ["config.json", "weights.safetensors"]


def test_a_model_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", {"number": 1}, {"a": torch.ones(3)})

    def staged(folder):
        monkeypatch.undo()
        write_folder(folder, {"number": 2}, {"a": torch.zeros(3)})
        return iter(())

    monkeypatch.setattr("fisherlayers.fisher_vectors.persistence.staged_weights", staged)
    config, tensors = read_folder(tmp_path / "model")
    assert config["number"] == 2
    assert tensors["a"].tolist() == [0, 0, 0]


def test_files_have_the_modes_of_other_files_and_keep_those_they_have(model, saved):
    reference = saved / "file"
    reference.touch()
    for name in ("config.json", "weights.safetensors"):
        assert (saved / name).stat().st_mode == reference.stat().st_mode
        (saved / name).chmod(0o664)
    model.save(saved)
    assert {(saved / name).stat().st_mode & 0o777 for name in ("config.json", "weights.safetensors")} == {0o664}


def test_failing_rename_leaves_the_old_model(model, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def broken(self, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        small_model(lambda labels: labels == "checks").save(saved)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("empty", [False, True])
def test_one_of_both_models_is_whole_whenever_a_save_is_killed(model, saved, tmp_path, monkeypatch, empty):
    other = small_model(lambda labels: labels == "checks")
    if empty:
        saved = tmp_path / "empty"
        saved.mkdir()
    states = []

    def watch(owner, name):
        function = getattr(owner, name)

        def call(*arguments):
            states.append(shutil.copytree(saved, tmp_path / "states" / str(len(states))))
            function(*arguments)
            states.append(shutil.copytree(saved, tmp_path / "states" / str(len(states))))

        monkeypatch.setattr(owner, name, call)

    watch(os, "fsync")
    watch(Path, "replace")
    other.save(saved)
    monkeypatch.undo()
    found = []
    for state in states:
        try:
            found.append(DeepFisherNetwork.load(state).classes_.tolist())
        except ModelFolderError:
            found.append(None)
        # Another save cleans up.
        model.save(state)
        assert sorted(os.listdir(state)) == ["config.json", "weights.safetensors"]
        assert DeepFisherNetwork.load(state).classes_.tolist() == model.classes_.tolist()
    old, new = None if empty else model.classes_.tolist(), other.classes_.tolist()
    assert found == [old] * 5 + [new] * 3


def test_the_folder_itself_stays(model, saved, monkeypatch):
    # It may be a mount point, or somebody's working directory.
    before = saved.stat().st_ino
    monkeypatch.chdir(saved)
    for _ in range(2):
        model.save(".")
        assert sorted(os.listdir()) == ["config.json", "weights.safetensors"]
    assert saved.stat().st_ino == before
    assert DeepFisherNetwork.load(".").classes_.tolist() == model.classes_.tolist()


def test_interrupted_save_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("fisherlayers.fisher_vectors.persistence.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders(saved):
    weights = (saved / "weights.safetensors").read_bytes()

    def refuses(message):
        with pytest.raises(ModelFolderError, match=message):
            DeepFisherNetwork.load(saved)

    (saved / "weights.safetensors").write_bytes(weights[:-1])
    refuses("does not match its checksum")
    (saved / "weights.safetensors").unlink()
    refuses(r"cannot read weights.safetensors: No such file")
    (saved / "weights.safetensors").write_bytes(weights)
    config = (saved / "config.json").read_text()
    for changes, message in [
        ({"version": 99}, "has version 99, this release reads 1"),
        ({"format": "other"}, "is not of format 'fisherlayers'"),
        ({"model": "Other"}, "holds a 'Other', expected a 'DeepFisherNetwork'"),
        ({"settings": {}}, "settings do not fit this version"),
        ({"parameters": {"unknown": 1}}, "unexpected keyword argument 'unknown'"),
        ({"temperature": "warm"}, "temperature must be a finite number, got 'warm'"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"C": 0}, "C must be positive, got 0"),
        ({"C": 10**400}, "OverflowError"),
        ({"multilabel": "no"}, "multilabel must be True or False"),
        ({"classes": ["a", "b"]}, "tensor 'svm.coef' has shape"),
        ({"classes": ["a", "a", "b", "c"]}, "classes must be different"),
        ({"classes": "abcd"}, "classes must be a list of texts or numbers"),
        ({"classes": [["a"], ["b"]]}, "classes must be a list of texts or numbers"),
        ({"classes": ["a" * 99, "b", "c", "d"]}, "classes must be different, and of class_type '<U"),
        ({"class_type": "<i8"}, "damaged: config.json: ValueError"),
        ({"class_type": None}, "class_type must be the name of a dtype, got None"),
        ({"class_type": "<U500000000"}, "needs 2000000000 bytes for each of 4 classes"),
        ({"config_sha255": 1}, r"unknown entries \['config_sha255'\]"),
    ]:
        edit(saved, **changes)
        refuses(message)
        (saved / "config.json").write_text(config)
    (saved / "config.json").write_text(config[:-9])
    refuses("config.json is not JSON")
    (saved / "config.json").unlink()
    refuses("is no model folder: cannot read config.json")
    with pytest.raises(ModelFolderError, match="there is no such folder"):
        DeepFisherNetwork.load(saved / "nowhere")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", 2.5, "step must be a whole number, got 2.5"),
        ("step", [2], r"step must be one value, got \[2\]"),
        ("components", 3, "components must be a list, got 3"),
        ("upsample", 10**30, "upsample must be at most 65535, the longest side of an image"),
        (
            "bin_sizes",
            [4, 2**31],
            r"bin_sizes must be at most 65535, the longest side of an image, got \(4, 2147483648",
        ),
        ("mirror", "no", "mirror must be True or False, got 'no'"),
        ("layer_weight", float("nan"), "layer_weight must be a finite number, got nan"),
        ("position_weight", float("inf"), "position_weight must be a finite number, got inf"),
        ("patch_side", 0, "the PCA of 'stage.patches' has 108 inputs, expected 0 or 0"),
        ("stacking", False, "the PCA of 'stage.1' has"),
    ],
)
def test_settings_of_another_kind(saved, name, value, message):
    settings = json.loads((saved / "config.json").read_text())["settings"]
    edit(saved, settings=settings | {name: value})
    with pytest.raises(ModelFolderError, match=message):
        DeepFisherNetwork.load(saved)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(saved):
    rng = np.random.default_rng(0)
    for name in ("config.json", "weights.safetensors"):
        content = (saved / name).read_bytes()
        for place in rng.integers(len(content) - 1, size=200):
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.integers(8)
            for damaged in (bytes(flipped), content[:place]):
                (saved / name).write_bytes(damaged)
                with pytest.raises(ModelFolderError):
                    DeepFisherNetwork.load(saved)
        (saved / name).write_bytes(content)
    DeepFisherNetwork.load(saved)


def test_a_config_that_was_changed_is_named_with_what_to_do(saved):
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"checks"', '"chequers"'))
    with pytest.raises(ModelFolderError, match=r"does not match its checksum config_sha256: .*remove that entry"):
        DeepFisherNetwork.load(saved)


def test_a_model_names_no_folder_and_no_device_of_this_machine(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    edit(saved, parameters=config["parameters"] | {"workspace": str(tmp_path / "planted"), "device": "meta"})
    loaded = DeepFisherNetwork.load(saved)
    assert (loaded.workspace, loaded.device) == (None, "cpu")


def test_a_pipe_in_place_of_a_file_is_refused(saved):
    (saved / "weights.safetensors").unlink()
    os.mkfifo(saved / "weights.safetensors")
    with pytest.raises(ModelFolderError, match=r"weights\.safetensors is no regular file"):
        DeepFisherNetwork.load(saved)


def test_damaged_tensors(saved):
    config, tensors = read_folder(saved)

    def refuses(changed, message):
        write_folder(saved, config, changed)
        with pytest.raises(ModelFolderError, match=message):
            DeepFisherNetwork.load(saved)

    name = "stage.1.means"
    refuses({k: v for k, v in tensors.items() if k != name}, f"has no tensor '{name}'")
    refuses(tensors | {name: tensors[name][:, 1:]}, f"tensor '{name}' has shape")
    refuses(tensors | {name: tensors[name] * torch.nan}, f"tensor '{name}' holds NaN")
    refuses(tensors | {"stage.0.variances": -tensors["stage.0.variances"]}, "the mixture of 'stage.0': variances")
    refuses(tensors | {name: tensors[name].half()}, "tensor 'stage.1.means' is torch.float16, expected")
    refuses(tensors | {"svm.coef": tensors["svm.coef"].to(torch.int32)}, "tensor 'svm.coef' is torch.int32")
    doubled = {name: tensor.double() for name, tensor in tensors.items() if name.startswith("stage.0.pca.mean")}
    refuses(tensors | doubled, "tensor 'stage.0.pca.mean' is torch.float64, expected torch.float32")
    refuses(tensors | {"projection.0": tensors["projection.0"][:0]}, "tensor 'projection.0' has shape")
    narrow = {f"stage.0.pca.{part}": tensors[f"stage.0.pca.{part}"][1:] for part in ("basis", "mean")}
    refuses(tensors | narrow, "the PCA of 'stage.0' has 127 inputs, expected 128")
    refuses(tensors | {"more": torch.zeros(1)}, r"unknown tensors \['more'\]")


def test_weights_that_are_no_safetensors(saved):
    (saved / "weights.safetensors").write_bytes(b"garbage")
    edit(saved, weights_sha256=hashlib.sha256(b"garbage").hexdigest())
    with pytest.raises(ModelFolderError, match=r"is damaged: cannot read weights.safetensors"):
        DeepFisherNetwork.load(saved)


def test_take_checks_the_number_of_axes():
    with pytest.raises(ModelFolderError, match=r"tensor 'a' has shape \(2,\), expected \('any', 3\)"):
        take({"a": torch.zeros(2)}, "a", None, 3)


@pytest.mark.parametrize("config", ['{"my": "app"}', "[1]", "no JSON"])
def test_a_folder_with_a_config_of_its_own_is_left_alone(model, tmp_path, config):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "config.json").write_text(config)
    (tmp_path / "work" / "deep" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="is no model folder of fisherlayers"):
        model.save(tmp_path / "work")
    assert (tmp_path / "work" / "config.json").read_text() == config
    assert (tmp_path / "work" / "deep" / "thesis.tex").read_text() == "years"
    assert os.listdir(tmp_path) == ["work"]


def test_other_files_beside_a_model_stay(model, saved):
    (saved / "README.md").write_text("card")
    (saved / "notes").mkdir()
    (saved / "notes" / "a.txt").write_text("note")
    (saved / "weights.safetensors").write_bytes(b"damaged")
    model.save(saved)
    assert (saved / "README.md").read_text() == "card"
    assert (saved / "notes" / "a.txt").read_text() == "note"
    assert np.array_equal(DeepFisherNetwork.load(saved).coef_, model.coef_)
    assert os.listdir(saved.parent) == ["model"]


def test_a_link_to_a_model_stays_a_link(model, saved):
    link = saved.parent / "latest"
    link.symlink_to(saved)
    model.save(link)
    assert link.is_symlink()
    assert np.array_equal(DeepFisherNetwork.load(link).coef_, model.coef_)
    assert sorted(os.listdir(saved.parent)) == ["latest", "model"]


@pytest.mark.parametrize("kind", [int, bool, str])
def test_class_weights_come_back_under_their_labels(tmp_path, kind):
    images, labels = textures(4)
    y = np.array([kind(int(label in {"checks", "lying"})) for label in labels])
    weights = {kind(0): 1.0, kind(1): 4.0}
    model = small_model_of(images, y, class_weight=weights)
    model.save(tmp_path / "model")
    again = DeepFisherNetwork.load(tmp_path / "model")
    assert again.class_weight == weights
    assert np.array_equal(again.fit(images, y).coef_, model.coef_)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_default_device_has_no_influence(model, saved, n_jobs):
    # "meta" holds no numbers: whatever is made there by mistake cannot be used.
    images, labels = textures(4)
    expected = model.decision_function(images), model.evidence(images[:1])[0]
    features = FisherVectorTransformer(settings={"components": 2, "dimensions": 4, "iterations": 1}, random_state=0)
    rows = features.fit_transform(images, labels)
    fitted = small_model_of(images, labels)
    torch.set_default_device("meta")
    try:
        again = DeepFisherNetwork.load(saved).set_params(n_jobs=n_jobs)
        found = again.decision_function(images), again.evidence(images[:1])[0]
        again.save(saved)
        assert {tensor.device.type for tensor in again.to_module().state_dict().values()} == {"cpu"}
        assert np.array_equal(features.fit_transform(images, labels), rows)
        assert np.array_equal(small_model_of(images, labels, n_jobs=n_jobs).coef_, fitted.coef_)
    finally:
        torch.set_default_device(None)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(DeepFisherNetwork.load(saved).decision_function(images), expected[0])


def test_dates_are_labels(tmp_path):
    images, labels = textures(4)
    dates = np.where(np.array(labels) == "checks", np.datetime64("2020-01-01"), np.datetime64("2021-05-06"))
    model = small_model_of(images, dates)
    model.save(tmp_path / "model")
    again = DeepFisherNetwork.load(tmp_path / "model")
    assert again.classes_.dtype == model.classes_.dtype
    assert np.array_equal(again.predict(images), model.predict(images))


def small_model_of(images, labels, **parameters):
    quick = {"depth": 1, "components": 3, "dimensions": 6, "step": 4, "training_descriptors": 500, "iterations": 2}
    return DeepFisherNetwork(**quick, random_state=0, patch_side=0, **parameters).fit(images, labels)
