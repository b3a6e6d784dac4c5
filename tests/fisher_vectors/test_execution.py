"""One model however the fit is run: workers, backends, memory, disk, crashes."""

import errno
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import joblib
import numpy as np
import pytest
import torch

from fisher_vectors.texture_images import QUICK, textures
from fisherlayers.fisher_vectors import DeepFisherNetwork, execution
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.memory import memory_bytes, parse_bytes
from fisherlayers.fisher_vectors.parallel import in_threads
from fisherlayers.fisher_vectors.store import StoreError

IMAGES, LABELS = textures(10)
UNSEEN, _ = textures(3, seed=1)


def scores(**parameters):
    return DeepFisherNetwork(**(QUICK | parameters)).fit(IMAGES, LABELS).decision_function(UNSEEN)


@pytest.fixture(scope="module")
def expected():
    return scores()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(execution, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(execution, "_LEAST_CHUNK", 8)


class Sequence:
    """Makes an image when it is indexed; remembers how many were asked for at a time."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index]


def test_a_sequence_that_makes_its_images_is_streamed(expected):
    images = Sequence()
    assert ImageList(images).images is images
    found = DeepFisherNetwork(**QUICK).fit(images, LABELS).decision_function(UNSEEN)
    assert np.array_equal(found, expected)


def test_memory_mapped_images_are_not_copied(tmp_path, expected):
    np.save(tmp_path / "images.npy", np.array(IMAGES))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.shares_memory(ImageList(mapped).images, mapped)
    assert np.array_equal(DeepFisherNetwork(**QUICK).fit(mapped, LABELS).decision_function(UNSEEN), expected)


def test_fingerprint_tells_pixels_shapes_and_order_apart():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    kinds = [[image, image + 1], [image + 1, image], [image, image], [image.T, image + 1], [image / 255, image + 1]]
    assert len({ImageList(images).fingerprint for images in kinds}) == len(kinds)
    assert ImageList(np.array([image, image + 1])).fingerprint == ImageList([image, image + 1]).fingerprint


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_the_backends_of_joblib_give_the_same_model(backend, expected):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found = scores(n_jobs=None)
    assert np.array_equal(found, expected)


def test_other_processes_get_the_images_of_their_batch_only():
    images = ImageList(IMAGES)
    batch = images.batches(indices=[3, 5])[0]
    part = images.mirrored().part(batch)
    assert sorted(part.images) == [3, 5]
    assert torch.equal(part.load(batch), images.load(batch))


def test_threads_are_kept_and_work_within_work_goes_on_in_one():
    def inner(item):
        return threading.current_thread().name, list(in_threads(lambda other: item * other, range(5), n_jobs=2))

    for _ in range(3):
        found = list(in_threads(inner, range(6), n_jobs=2))
        assert [products for _, products in found] == [[item * other for other in range(5)] for item in range(6)]
    assert {name for name, _ in found} <= {"fisherlayers_0", "fisherlayers_1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import errno
import os
from fisherlayers.fisher_vectors.parallel import in_threads
from fisherlayers.fisher_vectors.store import StoreError
assert list(in_threads(abs, range(8), n_jobs=2)) == list(range(8))
child = os.fork()
if child == 0:
    os._exit(0 if list(in_threads(abs, range(8), n_jobs=2)) == list(range(8)) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_in_threads_keeps_the_order_and_raises(n_jobs):
    assert list(in_threads(lambda item: item**2, range(20), n_jobs=n_jobs)) == [item**2 for item in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, range(-3, 3), n_jobs=n_jobs))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_little_memory_sends_encodings_to_disk_and_changes_nothing(dtype, small_chunks, tmp_path, monkeypatch):
    held = scores(encoding_dtype=dtype)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    opened = []
    original = execution.RowStore
    monkeypatch.setattr(execution, "RowStore", lambda *arguments: opened.append(arguments) or original(*arguments))
    # 40 rows of float16 are above a quarter of it, a Gram matrix of 40 rows below.
    found = scores(encoding_dtype=dtype, memory=4 * 4 * 40**2)
    assert np.array_equal(found, held)
    assert [arguments[2] for arguments in opened] == ["float32", dtype]
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_disk_that_is_full_says_what_helps(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StoreError, match=r"No space left on device .*TMPDIR, raise memory, or give a workspace"):
        scores(memory=4 * 4 * 40**2)


def test_a_gram_matrix_that_does_not_fit_is_done_without(expected):
    np.testing.assert_allclose(scores(memory=1000), expected, atol=2e-3)


def test_a_workspace_serves_another_cost_without_an_image(tmp_path, small_chunks):
    calls = []
    fit = partial(DeepFisherNetwork, **QUICK, workspace=tmp_path)
    fit(C=1.0).fit(IMAGES, LABELS)
    again = fit(C=3.0).fit(IMAGES, LABELS, progress=lambda *call: calls.append(call))
    assert {stage for stage, _, _ in calls} == {"classifier"}
    fresh = DeepFisherNetwork(**QUICK, C=3.0).fit(IMAGES, LABELS)
    assert np.array_equal(again.decision_function(UNSEEN), fresh.decision_function(UNSEEN))
    assert len(list(tmp_path.iterdir())) == 1
    fit(C=1.0).fit(IMAGES, LABELS[::-1])
    fit(C=1.0, dimensions=7).fit(IMAGES, LABELS)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_workspace_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="random_state must be an integer, got None"):
        DeepFisherNetwork(**(QUICK | {"random_state": None}), workspace=tmp_path).fit(IMAGES, LABELS)


KILLED = """
import os, signal
from fisher_vectors.test_execution import IMAGES, LABELS, QUICK
from fisherlayers.fisher_vectors import DeepFisherNetwork, execution

execution._CHUNK_BYTES, execution._LEAST_CHUNK = 0, 8

def progress(stage, done, total):
    if (stage, done) >= ({stage!r}, {done}) and stage == {stage!r}:
        os.kill(os.getpid(), signal.SIGKILL)

DeepFisherNetwork(**(QUICK | {options!r}), workspace={folder!r}).fit(IMAGES, LABELS, progress=progress)
"""


@pytest.mark.parametrize(
    ("options", "stage", "done", "left"),
    [
        ({}, "layer 1: projection", 20, {"layer 1: projection": 24, "encode": 40}),
        ({"information": "closed-form"}, "encode", 33, {"encode": 8}),
        # The images themselves are known from the information, their mirror images are not.
        ({"flips": True}, "encode", 33, {"encode": 8}),
    ],
)
def test_a_fit_killed_in_the_middle_goes_on_from_its_finished_chunks(
    options, stage, done, left, tmp_path, small_chunks
):
    code = KILLED.format(stage=stage, done=done, options=options, folder=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    calls = []
    model = DeepFisherNetwork(**(QUICK | options), workspace=tmp_path).fit(
        IMAGES, LABELS, progress=lambda *call: calls.append(call)
    )
    totals = {stage: total for stage, _, total in calls}
    assert "layer 1: descriptors" not in totals
    assert {stage: totals[stage] for stage in left} == left
    assert np.array_equal(model.decision_function(UNSEEN), scores(**options))


def test_a_device_is_where_encodings_are_computed(expected):
    """No other device can be run here: the CPU under its second name takes the path of transfers."""
    assert np.array_equal(scores(device="cpu:0"), expected)
    with pytest.raises(ValueError, match="device must be one of torch's"):
        scores(device="nonsense")


@pytest.mark.parametrize(
    ("amount", "size"),
    [(5, 5), (2.5e9, 2_500_000_000), ("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("500 mb", 5 * 10**8), ("7", 7)],
)
def test_amounts_of_memory(amount, size):
    assert parse_bytes(amount) == size


@pytest.mark.parametrize("amount", [0, -1, "much", "4 apples", "", float("inf"), float("nan")])
def test_refused_amounts_of_memory(amount):
    with pytest.raises(ValueError, match="memory must be a positive number of bytes or a text such as '4GB'"):
        parse_bytes(amount)
    if not isinstance(amount, float):
        with pytest.raises(ValueError, match="memory must be"):
            DeepFisherNetwork(**QUICK, memory=amount).fit(IMAGES, LABELS)


def test_the_machine_has_memory_and_half_of_it_is_the_default():
    assert 2**28 < memory_bytes() < 2**50
    assert Execution().largest_array == memory_bytes() // 2 // 4
    assert Execution(memory=1000).largest_array == 250
