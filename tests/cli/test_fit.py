"""``fit`` through the command line: what it writes, what it says, and what it refuses before any work."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from cli.conftest import FAST
from cli.pictures import stripes, write_folder
from fisherlayers.cli.fit import Preset, hold_out
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.fisher_vectors.settings import PRESETS


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_fit_writes_a_model_and_says_how_good_it_is(fitted):
    lines = dict(line.split(maxsplit=1) for line in fitted.out.splitlines())
    assert lines["classes"] == "3"
    assert lines["images"] == "24"
    assert lines["accuracy"] == "100.0 % (95 % interval 61.0 % to 100.0 %, 6 held out)"
    assert lines["time"].endswith(" s")
    assert lines["model"] == str(fitted.model)
    assert files(fitted.model) == ["config.json", "weights.safetensors"]
    assert "estimate: layer 1" in fitted.err


def test_the_saved_model_is_the_one_fitted_on_all_images(fitted):
    model = DeepFisherNetwork.load(fitted.model)
    paths = sorted(fitted.train.glob("*/*.png"))
    again = DeepFisherNetwork(depth=1, components=4, random_state=0).fit(paths, [path.parent.name for path in paths])
    np.testing.assert_array_equal(model.decision_function(paths), again.decision_function(paths))


def test_without_refit_the_measured_model_is_saved(run, fitted, tmp_path):
    result = run("fit", fitted.train, "-o", tmp_path / "m", *FAST, "--no-refit")
    assert result.code == 0
    assert "images    18\n" in result.out
    assert "6 held out)" in result.out


def test_without_validation_nothing_is_estimated(run, folder, tmp_path):
    result = run("fit", folder, "-o", tmp_path / "new" / "m", *FAST, "--validation", "0")
    assert result.code == 0
    assert "accuracy  not estimated" in result.out
    assert (tmp_path / "new" / "m" / "config.json").is_file()


def test_a_table_gives_the_same_model_as_a_folder(run, folder, tmp_path):
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(folder.glob("*/*.png"))]
    (tmp_path / "labels.txt").write_text("path,label\n" + "\n".join(rows))
    for source, name in ((folder, "a"), (tmp_path / "labels.txt", "b")):
        assert run("fit", source, "-o", tmp_path / name, *FAST, "--validation", "0").code == 0
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()


def test_memory_and_a_workspace_do_not_change_the_model(run, fitted, tmp_path):
    options = ["--memory", "100KB", "--workspace", tmp_path / "work", "--validation", "0"]
    for name in ("a", "b"):
        assert run("fit", fitted.train, "-o", tmp_path / name, *FAST, *options).code == 0
        assert (tmp_path / name / "weights.safetensors").read_bytes() == (
            fitted.model / "weights.safetensors"
        ).read_bytes()
    assert len(list((tmp_path / "work").iterdir())) == 1
    saved = DeepFisherNetwork.load(tmp_path / "b")
    assert (saved.memory, saved.workspace) == ("100KB", None)


def test_balanced_classes(run, fitted, tmp_path):
    result = run("fit", fitted.train, "-o", tmp_path / "m", *FAST, "--balanced", "--validation", "0")
    assert result.code == 0
    assert DeepFisherNetwork.load(tmp_path / "m").class_weight == "balanced"


def test_refused_memory_and_workspace(refused, fitted, tmp_path):
    assert "memory must be a positive number" in refused("fit", fitted.train, "-o", tmp_path / "m", "--memory", "much")
    (tmp_path / "file").touch()
    options = ["--workspace", tmp_path / "file"]
    assert "a folder is needed there" in refused("fit", fitted.train, "-o", tmp_path / "m", *options)


def test_two_layers_by_default(run, fitted, tmp_path):
    result = run("fit", fitted.train, "-o", tmp_path / "m", "--components", "4", "--validation", "0")
    assert result.code == 0, result.err
    assert DeepFisherNetwork.load(tmp_path / "m").settings_.depth == 2


def test_a_model_is_replaced_by_a_new_one(run, folder, tmp_path):
    for seed in ("0", "1"):
        assert run("fit", folder, "-o", tmp_path / "m", *FAST, "--validation", "0", "--seed", seed).code == 0
    assert DeepFisherNetwork.load(tmp_path / "m").random_state == 1
    assert files(tmp_path / "m") == ["config.json", "weights.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "pictures"]


def test_grey_and_colour_and_sizes_may_be_mixed(run, tmp_path):
    root = write_folder(tmp_path / "p", per_class=3)
    for kind in ("lying", "upright", "leaning"):
        Image.fromarray(stripes(kind, seed=9, colour=True, shape=(40, 28))).save(root / kind / "colour.png")
    Image.new("L", (1, 1), 7).save(root / "lying" / "one pixel.png")
    Image.fromarray(stripes("lying", seed=5, shape=(40, 8000))).save(root / "lying" / "wide.png")
    assert run("fit", root, "-o", tmp_path / "m", *FAST, "--validation", "0").code == 0
    result = run(
        "predict", tmp_path / "m", root / "lying/one pixel.png", root / "lying/wide.png", "--top", "1", "--csv"
    )
    assert result.code == 0
    assert result.out.splitlines()[2].split(",")[2] == "lying"


def test_notes_of_the_loader_are_shown(run, folder, tmp_path):
    (folder / "lying" / "notes.txt").touch()
    result = run("fit", folder, "-o", tmp_path / "m", *FAST, "--validation", "0")
    assert f"note: 1 file in {folder} passed over: no image ending" in result.err


def test_too_few_images_to_hold_any_out(run, tmp_path):
    root = write_folder(tmp_path / "p", per_class=2)
    result = run("fit", root, "-o", tmp_path / "m", *FAST)
    assert result.code == 0, result.err
    assert "too few images to hold any out" in result.err
    assert "accuracy  not estimated" in result.out


def test_one_image_a_class(run, tmp_path):
    root = write_folder(tmp_path / "p", per_class=1)
    result = run("fit", root, "-o", tmp_path / "m", *FAST)
    assert (result.code == 0) == (tmp_path / "m").exists()
    assert result.code in {0, 2}
    assert "Traceback" not in result.err


def test_unreadable_images_are_all_named_before_the_work(refused, folder, tmp_path):
    (folder / "lying" / "empty.png").touch()
    whole = (folder / "upright" / "0.png").read_bytes()
    (folder / "upright" / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(folder / "upright" / "nan.tif")
    message = refused("fit", folder, "-o", tmp_path / "m", *FAST)
    for part in (
        "unreadable images: 3",
        "empty.png: it is empty",
        "half.png: ",
        "nan.tif: it holds pixels that are NaN",
    ):
        assert part in message
    assert "pass --skip-unreadable" in message
    assert not (tmp_path / "m").exists()


def test_unreadable_images_can_be_left_out(run, folder, tmp_path):
    (folder / "lying" / "empty.png").touch()
    result = run("fit", folder, "-o", tmp_path / "m", *FAST, "--validation", "0", "--skip-unreadable")
    assert result.code == 0
    assert "left out: cannot read image" in result.err
    assert "images    9\n" in result.out


def test_a_class_without_readable_images(refused, folder, tmp_path):
    (folder / "zebra").mkdir()
    (folder / "zebra" / "empty.png").touch()
    message = refused("fit", folder, "-o", tmp_path / "m", *FAST, "--skip-unreadable")
    assert "no readable image is left of class zebra" in message


def test_empty_class(refused, folder, tmp_path):
    (folder / "zebra").mkdir()
    assert "zebra in" in refused("fit", folder, "-o", tmp_path / "m")


def test_single_class_and_one_image(refused, tmp_path):
    root = write_folder(tmp_path / "p", per_class=1, classes=("lying",))
    assert "a classifier needs at least 2 classes" in refused("fit", root, "-o", tmp_path / "m")


def test_missing_source(refused, tmp_path):
    assert "there is no folder" in refused("fit", tmp_path / "none", "-o", tmp_path / "m")
    assert "there is no table" in refused("fit", tmp_path / "none.csv", "-o", tmp_path / "m")


def test_nan_as_a_label(refused, folder, tmp_path):
    (tmp_path / "t.csv").write_text("pictures/lying/0.png,lying\npictures/upright/0.png,nan\n")
    assert "line 2: the label of pictures/upright/0.png is missing" in refused(
        "fit", tmp_path / "t.csv", "-o", tmp_path / "m"
    )


def test_a_folder_that_is_no_model_is_not_overwritten(refused, folder, tmp_path):
    before = files(folder)
    assert "is no model folder of fisherlayers: it will not be replaced, choose another name" in refused(
        "fit", folder, "-o", folder
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"format": "another"}')
    assert "it will not be replaced" in refused("fit", folder, "-o", tmp_path / "other")
    assert files(folder) == before


def test_a_model_among_the_classes_is_refused(refused, folder):
    assert "where every folder is a class: choose a place outside" in refused("fit", folder, "-o", folder / "m")


def test_a_file_is_not_overwritten(refused, folder, tmp_path):
    (tmp_path / "m").write_text("mine")
    assert "is a file: choose another name" in refused("fit", folder, "-o", tmp_path / "m")
    assert (tmp_path / "m").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_found_before_the_work(refused, folder, monkeypatch):
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a file system that nobody can write")
    monkeypatch.setattr("fisherlayers.cli.image_inputs.read_images", lambda _: pytest.fail("the work began"))
    assert "cannot write to /proc" in refused("fit", folder, "-o", "/proc/model")


def test_a_full_disk_is_found_before_the_work(refused, folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fisherlayers.cli.image_inputs.read_images", lambda _: pytest.fail("the work began"))
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert f"cannot write to {tmp_path}: No space left on device" in refused("fit", folder, "-o", tmp_path / "m")
    (tmp_path / "volume").mkdir()  # perhaps of another disk
    assert f"cannot write to {tmp_path / 'volume'}: No" in refused("fit", folder, "-o", tmp_path / "volume")


@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_while_saving_leaves_nothing(run, refused, folder, tmp_path, monkeypatch, existing):
    arguments = ("fit", folder, "-o", tmp_path / "m", *FAST, "--validation", "0")
    if existing:
        assert run(*arguments).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refused(*arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "m").exists() == existing


def test_ctrl_c_writes_nothing(run, folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DeepFisherNetwork, "fit", interrupt)
    result = run("fit", folder, "-o", tmp_path / "m", *FAST)
    assert result.code == 130
    assert result.err.endswith("interrupted; nothing was written\n")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory(refused, folder, tmp_path, monkeypatch, error):
    def exhaust(*_, **__):
        raise error

    monkeypatch.setattr(DeepFisherNetwork, "fit", exhaust)
    assert "the memory does not suffice: fewer --components" in refused("fit", folder, "-o", tmp_path / "m", *FAST)


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        run("fit", tmp_path / "none", "-o", tmp_path / "m", "--debug")


def test_warnings_are_one_line(run, folder, tmp_path):
    for path in (folder / "lying").iterdir():
        Image.new("L", (1, 1), 7).save(path)
    result = run("fit", folder, "-o", tmp_path / "m", *FAST, "--preset", "photos", "--validation", "0")
    assert "warning: 3 of 9 images are too small" in result.err


def test_bugs_keep_their_traceback(run, folder, tmp_path, monkeypatch):
    def break_down(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(DeepFisherNetwork, "fit", break_down)
    with pytest.raises(RuntimeError, match="a bug"):
        run("fit", folder, "-o", tmp_path / "m", *FAST)


def test_wrong_options_are_refused_by_name(run, folder, tmp_path):
    for option, value in (("--depth", "0"), ("--components", "x"), ("--validation", "1"), ("--preset", "huge")):
        result = run("fit", folder, "-o", tmp_path / "m", option, value)
        assert result.code == 2
        assert option in result.err


@pytest.mark.parametrize(("option", "value"), [("--jobs", 0), ("--seed", 2**32)])
def test_numbers_that_no_fit_can_use_are_refused_before_images_are_read(run, folder, tmp_path, option, value):
    result = run("fit", folder, "-o", tmp_path / "m", option, value)
    assert result.code == 2
    assert f"Invalid value for '{option}'" in result.err
    assert "reading images" not in result.err


def test_presets_are_those_of_the_classifier():
    assert {preset.value for preset in Preset} == {"auto", *PRESETS}


def test_hold_out_takes_the_same_share_of_every_class_and_leaves_two():
    names = np.array(["a"] * 10 + ["b"] * 20 + ["c"] * 2 + ["d"])
    chosen = hold_out(names, 0.2, seed=0)
    assert list(np.sort(chosen)) == list(chosen)
    assert dict(zip(*np.unique(names[chosen], return_counts=True), strict=True)) == {"a": 2, "b": 4}
    assert len(hold_out(names, 0.0, seed=0)) == 0
    kept = np.setdiff1d(np.arange(len(names)), hold_out(names, 0.9, seed=0))
    assert dict(zip(*np.unique(names[kept], return_counts=True), strict=True)) == {"a": 2, "b": 2, "c": 2, "d": 1}
    assert not np.array_equal(chosen, hold_out(names, 0.2, seed=1))


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "x"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("RANK", "")])
def test_an_environment_that_torchrun_did_not_make_is_named(refused, folder, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    message = refused("fit", folder, "-o", tmp_path / "m", *FAST)
    assert f"the environment variable {name} must be a whole number of at least" in message
    assert f"got {value!r}: torchrun sets it to" in message
