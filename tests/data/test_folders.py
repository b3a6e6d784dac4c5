"""Class folders: what is found, in which order, and what is said when the layout is another."""

import numpy as np
import pytest
from PIL import Image

from fisherlayers.data.folders import load_folder


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_classes_and_files_are_sorted(tmp_path):
    touch(tmp_path, "dog/2.jpg", "dog/1.PNG", "cat/deep/9.webp", "cat/1.jpeg")
    images = load_folder(tmp_path)
    assert images.classes == ["cat", "dog"]
    assert [str(path.relative_to(tmp_path)) for path in images.paths] == [
        "cat/1.jpeg",
        "cat/deep/9.webp",
        "dog/1.PNG",
        "dog/2.jpg",
    ]
    np.testing.assert_array_equal(images.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(images.names(), ["cat", "cat", "dog", "dog"])
    assert len(images) == 4
    assert images.notes == []


def test_hidden_and_foreign_files_are_passed_over_with_a_note(tmp_path):
    touch(tmp_path, "cat/1.jpg", "cat/.hidden.jpg", "cat/notes.txt", "cat/Thumbs.db", "dog/1.jpg", ".git/1.jpg")
    touch(tmp_path, "__MACOSX/1.jpg", "loose.jpg", "readme.txt")
    images = load_folder(tmp_path)
    assert [path.name for path in images.paths] == ["1.jpg", "1.jpg"]
    assert images.notes == [
        f"2 files in {tmp_path} passed over: no image ending",
        f"1 image passed over: directly in {tmp_path}, in no class folder",
    ]


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none: expected one folder a class"):
        load_folder(tmp_path / "none")


def test_images_without_class_folders(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(ValueError, match=r"has no class folders \(2 images lie directly in it\)"):
        load_folder(tmp_path)


def test_empty_class(tmp_path):
    touch(tmp_path, "cat/1.jpg", "dog/readme.txt")
    with pytest.raises(ValueError, match=r"dog in .* has no images .* add some, or remove the folder"):
        load_folder(tmp_path)


def test_many_empty_classes_are_counted(tmp_path):
    for number in range(7):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(ValueError, match=r"0, 1, 2, 3, 4 and 2 more in .* have no images"):
        load_folder(tmp_path)


def test_single_class_is_enough_to_evaluate_but_not_to_train(tmp_path):
    touch(tmp_path, "cat/1.jpg")
    with pytest.raises(ValueError, match=r"has 1 class folder \(cat\): a classifier needs at least 2 classes"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, min_classes=1).classes == ["cat"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "b" / "more").symlink_to(tmp_path / "a")  # a link to a folder beside is
    found = load_folder(tmp_path)
    assert [path.parent.name for path in found.paths] == ["a", "a", "b", "more", "more"]


def write_images(root, counts):
    for name, count in counts.items():
        (root / name).mkdir()
        for number in range(count):
            Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / name / f"{number}.png")
