"""Rows on disk: what is finished is found again, what is damaged is not, and a full disk loses nothing."""

import errno
import os
import resource
import signal
import threading

import numpy as np
import pytest
import torch

from fisherlayers.fisher_vectors import store
from fisherlayers.fisher_vectors.rows import as_rows, row_blocks
from fisherlayers.fisher_vectors.store import RowStore, StoreError, Workspace

ROWS = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)


def filled(folder, chunks=(0, 1, 2), dtype="float32"):
    store = RowStore(folder, ROWS.shape, dtype, 4)
    for chunk in chunks:
        store.write(chunk, ROWS[store.place(chunk)])
    return store


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_come_back(tmp_path, dtype):
    store = filled(tmp_path / "s", dtype=dtype)
    expected = torch.from_numpy(ROWS.astype(dtype)).float()
    rows = store.rows()
    assert (len(store), rows.shape, rows.dtype) == (3, (10, 6), getattr(torch, dtype))
    assert torch.equal(rows.to(torch.float32), expected)
    assert torch.equal(rows[::4].to(torch.float32), expected[::4])
    assert torch.equal(rows[2:9][1:3].to(torch.float32), expected[3:5])
    assert np.array_equal(store.memmap(), ROWS.astype(dtype))
    blocks = list(row_blocks(as_rows(rows), 3))
    assert [place for place, _ in blocks] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert torch.equal(torch.cat([block for _, block in blocks]), expected)


def test_finished_chunks_are_found_again(tmp_path):
    filled(tmp_path / "s", chunks=(0, 2))
    again = RowStore(tmp_path / "s", ROWS.shape, "float32", 4)
    assert again.pending() == [1]
    with pytest.raises(RuntimeError, match="1 of 3 chunks are missing"):
        again.rows()
    again.write(1, ROWS[4:8])
    assert torch.equal(again.rows().to(torch.float32), torch.from_numpy(ROWS))


def test_zero_rows_are_counted_also_in_chunks_found_again(tmp_path):
    rows = ROWS.copy()
    rows[[1, 5, 6]] = 0
    for chunk in range(3):
        store = RowStore(tmp_path / "s", rows.shape, "float32", 4)
        store.write(chunk, rows[store.place(chunk)])
    assert store.empty == 3


def test_a_damaged_chunk_is_made_again(tmp_path):
    filled(tmp_path / "s")
    with open(tmp_path / "s" / "rows.bin", "r+b") as file:
        file.seek(5 * 6 * 4)
        file.write(b"\xff")
    with pytest.warns(UserWarning, match="1 chunks in .* are damaged and made again"):
        again = RowStore(tmp_path / "s", ROWS.shape, "float32", 4)
    assert again.pending() == [1]
    again.write(1, ROWS[4:8])
    assert RowStore(tmp_path / "s", ROWS.shape, "float32", 4).pending() == []


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    filled(tmp_path / "s", chunks=(0, 1))
    journal = tmp_path / "s" / "chunks.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    again = RowStore(tmp_path / "s", ROWS.shape, "float32", 4)
    assert again.pending() == [1, 2]
    again.write(1, ROWS[4:8])
    assert RowStore(tmp_path / "s", ROWS.shape, "float32", 4).pending() == [2]


def test_another_shape_starts_afresh(tmp_path):
    filled(tmp_path / "s")
    assert RowStore(tmp_path / "s", (12, 6), "float32", 4).pending() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"rows of chunk 2 must have shape \(2, 6\), got \(4, 6\)"):
        RowStore(tmp_path / "s", ROWS.shape, "float32", 4).write(2, ROWS[:4])


def test_no_room_is_met_before_the_first_row(tmp_path):
    """A file-size limit fails the reservation as a quota would; the other chunks' store stays as it was."""
    filled(tmp_path / "s", chunks=(0,))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(StoreError, match=r"cannot write to .*: File too large \(the encodings take 0.08 GB: make"):
            RowStore(tmp_path / "large", (20_000, 1000), "float32", 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "large" / "rows.bin").stat().st_size == 0
    assert RowStore(tmp_path / "s", ROWS.shape, "float32", 4).pending() == [1, 2]


def test_a_disk_that_fills_up_loses_no_finished_chunk(tmp_path, monkeypatch):
    store = filled(tmp_path / "s", chunks=(0, 1))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device .*what is finished is kept") as caught:
            store.write(2, ROWS[8:])
    assert caught.value.errno == errno.ENOSPC
    again = RowStore(tmp_path / "s", ROWS.shape, "float32", 4)
    assert again.pending() == [2]


def test_a_step_that_a_full_disk_does_not_take_is_said_once_with_what_to_do(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        workspace.keep("step", {"w": torch.arange(3.0)})
    workspace.close()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror == (
        f"cannot save to {workspace.folder / 'step'}: No space left on device (make room or give another workspace, "
        "and fit again; what is finished is kept)"
    )


def test_a_workspace_knows_its_entries_by_what_they_depend_on(tmp_path, monkeypatch):
    tensors = {"w": torch.arange(3.0)}
    first = Workspace(tmp_path, {"seed": 1, "images": "a"})
    first.keep("step", tensors)
    first.close()
    same, other = Workspace(tmp_path, {"images": "a", "seed": 1}), Workspace(tmp_path, {"images": "b", "seed": 1})
    assert torch.equal(same.recall("step")["w"], tensors["w"])
    assert other.recall("step") is None
    assert same.recall("another step") is None
    weights = same.folder / "step" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert same.recall("step") is None
    same.keep("step", tensors)
    assert torch.equal(same.recall("step")["w"], tensors["w"])
    same.close()
    other.close()
    monkeypatch.setattr(store, "version", lambda name: "another release")
    later = Workspace(tmp_path, {"seed": 1, "images": "a"})
    assert later.recall("step") is None
    later.close()


def test_a_workspace_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot use the workspace .*file"):
        Workspace(tmp_path / "file", {})


def test_a_second_fit_waits_for_its_entry(tmp_path):
    first = Workspace(tmp_path, {})
    second = threading.Thread(target=lambda: Workspace(tmp_path, {}).close(), daemon=True)
    second.start()
    Workspace(tmp_path, {"seed": 1}).close()
    second.join(0.3)
    assert second.is_alive()
    first.close()
    second.join(30)
    assert not second.is_alive()
