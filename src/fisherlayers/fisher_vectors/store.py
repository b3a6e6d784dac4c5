"""Encodings on disk: rows that are written chunk by chunk, checked, and found again after a crash.

    FOLDER/rows.bin       (n, F), row-major, its room reserved before the first row is computed
    FOLDER/chunks.jsonl   one line a finished chunk: its number and the SHA-256 of its bytes

A chunk's line is written after its rows have reached the disk, so whatever is listed can be trusted after kill -9 or a
power cut, and it is read back and checked nevertheless. A workspace names such folders by what their rows depend on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fisherlayers.fisher_vectors.persistence import ModelFolderError, read_folder, write_folder
from fisherlayers.fisher_vectors.rows import StoredRows

__all__ = ["RowStore", "StoreError", "Workspace"]

_ROWS = "rows.bin"
_CHUNKS = "chunks.jsonl"
_VERSION = 1
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KEPT = "make room or give another workspace, and fit again; what is finished is kept"


class StoreError(OSError):
    """A workspace that cannot be written, for example because the disk is full."""


class RowStore:
    """A matrix on disk that is filled chunk by chunk.

    Args:
        folder: Where; created. One that holds a store of the same shape is continued.
        shape: (n, F).
        dtype: Of the numbers.
        chunk_rows: Rows a chunk; the last may have fewer.
        advice: What to do where there is no room.

    Attributes:
        empty: Finished rows that are zero.

    Raises:
        StoreError: If there is no room, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        shape: tuple[int, int],
        dtype: str,
        chunk_rows: int,
        advice: str = _KEPT,
    ) -> None:
        self._advice = advice
        self.folder, self.shape, self.dtype, self.chunk_rows = Path(folder), shape, np.dtype(dtype), chunk_rows
        self._path = self.folder / _ROWS
        self.empty = 0
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._reserve()
        self._finished = self._checked()

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    def place(self, chunk: int) -> slice:
        """Return the rows of a chunk.

        Args:
            chunk: Its number, from 0.

        Returns:
            Their positions.
        """
        return slice(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0]))

    def pending(self) -> list[int]:
        """Return the chunks that are not there yet.

        Returns:
            Their numbers, in order.
        """
        return [chunk for chunk in range(len(self)) if chunk not in self._finished]

    def write(self, chunk: int, rows: np.ndarray) -> None:
        """Write one chunk; it counts as finished once this returns.

        Args:
            chunk: Its number.
            rows: (rows of the chunk, F); converted to the store's type.

        Raises:
            ValueError: If the shape does not fit.
        """
        place = self.place(chunk)
        if rows.shape != (place.stop - place.start, self.shape[1]):
            raise ValueError(
                f"rows of chunk {chunk} must have shape {(place.stop - place.start, self.shape[1])}, got {rows.shape}"
            )
        content = np.ascontiguousarray(rows, dtype=self.dtype)
        # A line begins with a line end, since a crash may have cut off the one before it.
        line = "\n" + json.dumps({"chunk": chunk, "sha256": hashlib.sha256(content.data).hexdigest()}) + "\n"
        with self._explained():
            with self._path.open("r+b") as file:
                file.seek(place.start * self._row_bytes)
                file.write(content.data)
                file.flush()
                os.fsync(file.fileno())
            with (self.folder / _CHUNKS).open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._finished.add(chunk)
        self._count_empty(content)

    def rows(self) -> StoredRows:
        """Return the finished matrix, for block-wise reading.

        Returns:
            (n, F).

        Raises:
            RuntimeError: If chunks are missing.
        """
        if missing := self.pending():
            raise RuntimeError(f"{self.folder} is not complete: {len(missing)} of {len(self)} chunks are missing")
        return StoredRows(self._path, self.shape, self.dtype.name)

    def memmap(self) -> np.memmap:
        """Return the matrix as a memory-mapped array that can only be read.

        Returns:
            (n, F); rows of chunks that are not finished have no meaning.
        """
        return np.memmap(self._path, dtype=self.dtype, mode="r", shape=self.shape)

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def _reserve(self) -> None:
        # Blocks, not only a length: a full disk is met here and not hours later.
        size = self.shape[0] * self._row_bytes
        with self._path.open("a+b") as file:
            if os.fstat(file.fileno()).st_size == size:
                return
            (self.folder / _CHUNKS).unlink(missing_ok=True)
            file.truncate(0)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            except OSError:
                file.truncate(0)
                raise

    def _checked(self) -> set[int]:
        """Return the chunks whose bytes are what their lines say."""
        path = self.folder / _CHUNKS
        finished, damaged = set(), set()
        for chunk, checksum in _listed(path):
            if not 0 <= chunk < len(self):
                continue
            place = self.place(chunk)
            content = np.fromfile(
                self._path,
                dtype=self.dtype,
                count=(place.stop - place.start) * self.shape[1],
                offset=place.start * self._row_bytes,
            )
            if hashlib.sha256(content.data).hexdigest() != checksum:
                damaged.add(chunk)
            elif chunk not in finished:
                finished.add(chunk)
                self._count_empty(content.reshape(-1, self.shape[1]))
        if damaged - finished:
            warnings.warn(f"{len(damaged - finished)} chunks in {self.folder} are damaged and made again", stacklevel=4)
        return finished

    def _count_empty(self, rows: np.ndarray) -> None:
        self.empty += int((rows == 0).all(axis=1).sum())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            need = f"the encodings take {self.shape[0] * self._row_bytes / 1e9:.2f} GB"
            reason = f"cannot write to {self.folder}: {error.strerror or error}"
            raise StoreError(error.errno, reason + _in_brackets(error, f"{need}: {self._advice}")) from error


def _in_brackets(error: OSError, advice: str) -> str:
    return f" ({advice})" if error.errno in _NO_ROOM else ""


def _listed(path: Path) -> Iterator[tuple[int, str]]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                yield int(entry["chunk"]), str(entry["sha256"])
            except (ValueError, TypeError, KeyError):
                continue


class Workspace:
    """Finished work of one fit, found again by what it depends on.

    Only one process at a time works in an entry; a second one waits.

    Args:
        folder: Of all entries; created.
        identity: What the work depends on beside the release of this library, as JSON can hold it.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        text = json.dumps({**identity, "store": _VERSION, "release": version("fisherlayers")}, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder / "lock")
        except OSError as error:
            raise StoreError(error.errno, f"cannot use the workspace {folder}: {error.strerror or error}") from error

    def recall(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors of a step.

        Args:
            name: Of the step.

        Returns:
            Name -> tensor; None if the step is not there, or damaged.
        """
        try:
            return read_folder(self.folder / name)[1]
        except ModelFolderError:
            return None

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors of a step, all or nothing.

        Args:
            name: Of the step.
            tensors: Name -> tensor.

        Raises:
            StoreError: If they cannot be written.
        """
        try:
            write_folder(self.folder / name, {"step": name}, tensors)
        except OSError as error:
            raise StoreError(error.errno, (error.strerror or str(error)) + _in_brackets(error, _KEPT)) from error

    def store(self, name: str, shape: tuple[int, int], dtype: str, chunk_rows: int) -> RowStore:
        """Open the store of some encodings.

        Args:
            name: Of the step.
            shape: (n, F).
            dtype: Of the numbers.
            chunk_rows: Rows a chunk.

        Returns:
            The store, with the chunks that are finished.
        """
        described = f"{name}-{shape[0]}x{shape[1]}-{np.dtype(dtype).name}-{chunk_rows}"
        return RowStore(self.folder / described, shape, dtype, chunk_rows)

    def close(self) -> None:
        """Let other processes work in the entry."""
        self._lock.close()


def _lock(path: Path) -> Any:
    # The system releases the lock of a process that dies.
    file = path.open("a")
    try:
        import fcntl
    except ImportError:  # not on Windows
        return file
    fcntl.flock(file, fcntl.LOCK_EX)
    return file
