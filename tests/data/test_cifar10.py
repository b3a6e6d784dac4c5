"""CIFAR-10's binary version, on made-up files."""

import numpy as np
import pytest

from fisherlayers.data import DataNotFoundError, load_cifar10
from fisherlayers.data.cifar10 import parse_cifar


def batch(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(10, size=count).astype(np.uint8)
    images = generator.integers(256, size=(count, 32, 32, 3)).astype(np.uint8)
    raw = b"".join(
        bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for label, image in zip(labels, images, strict=True)
    )
    return raw, images, labels


def test_a_record_is_a_label_and_three_planes():
    raw, images, labels = batch(3, 0)
    found, numbers = parse_cifar(raw, source="x")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(numbers, labels)
    assert numbers.dtype == np.int64


def test_damaged_and_foreign_files_are_refused():
    raw, *_ = batch(2, 0)
    with pytest.raises(ValueError, match="x is damaged: 6145 bytes"):
        parse_cifar(raw[:-1], source="x")
    with pytest.raises(ValueError, match="x is damaged: 0 bytes"):
        parse_cifar(b"", source="x")
    with pytest.raises(ValueError, match=r"holds the label 77, expected 0\.\.9"):
        parse_cifar(bytes([77]) + raw[1:], source="x")


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_the_five_training_batches_come_in_order(folder, tmp_path, monkeypatch):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    parts = [batch(2, seed) for seed in range(6)]
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, (raw, *_) in zip(names, parts, strict=True):
        (place / name).write_bytes(raw)
    monkeypatch.setenv("FISHERLAYERS_DATA", str(tmp_path))
    for data in (load_cifar10(), load_cifar10(tmp_path)):
        np.testing.assert_array_equal(data.train_images, np.concatenate([images for _, images, _ in parts[:5]]))
        np.testing.assert_array_equal(data.test_labels, parts[5][2])
        assert data.classes[3] == "cat"


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match=r"CIFAR-10 is not on this machine .*test_batch\.bin"):
        load_cifar10(tmp_path)
