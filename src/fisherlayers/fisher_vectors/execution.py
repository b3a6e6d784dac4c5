"""How a fit is run: workers, processes, memory, disk and device. None of it is part of the model.

Two kinds of work come back again and again: something is computed from every batch of images (`Execution.map`), or a
row from every image (`Execution.rows`). Both may be spread over threads, over workers of a cluster by joblib, and over
the processes of a `torchrun`, which must then be within `Processes.together`; rows go to disk where they do not fit in
memory, or are to outlive a crash.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.memory import memory_bytes
from fisherlayers.fisher_vectors.parallel import Progress, in_threads, map_batches
from fisherlayers.fisher_vectors.processes import Processes
from fisherlayers.fisher_vectors.rows import StoredRows
from fisherlayers.fisher_vectors.store import RowStore, Workspace

__all__ = ["Encoded", "Execution"]

Result = TypeVar("Result")

# Rows are computed, written and checked in chunks of about this size.
_CHUNK_BYTES = 32 * 2**20
_LEAST_CHUNK = 32
# Batches of every process between two exchanges of results.
_ROUND = 4
# The share of the memory that the encodings, or a Gram matrix, may take.
_SHARE = 4
_ELSEWHERE = "make room, name another folder by the environment variable TMPDIR, raise memory, or give a workspace"


class Encoded(NamedTuple):
    """Rows of images.

    Attributes:
        rows: (n, F), in memory or on disk; in the first process only, where there are several.
        empty: How many rows are zero.
    """

    rows: np.ndarray | StoredRows
    empty: int


@dataclass(frozen=True)
class Execution:
    """Where work is done and where its results are kept.

    Used as a context: what was on disk for want of memory is removed at its end.

    Attributes:
        n_jobs: Workers over batches of images, in joblib's meaning.
        progress: Called as ``progress(stage, done, total)``.
        memory: Bytes that a fit may use for what grows with the number of images; half of the machine's if None.
        workspace: Where finished work is kept; None keeps it for this fit only.
        processes: Those that share the work.
        device: On which descriptors and encodings are computed.
    """

    n_jobs: int | None = None
    progress: Progress | None = None
    memory: int | None = None
    workspace: Workspace | None = None
    processes: Processes = field(default_factory=Processes)
    device: str = "cpu"
    _left: dict[str, Kept] = field(default_factory=dict)
    _exits: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove temporary files, give up what was left for a later pass, and unlock the workspace."""
        self._left.clear()
        self._exits.close()
        if self.workspace is not None:
            self.workspace.close()

    def with_workspace(
        self, folder: str | os.PathLike[str] | None, random_state: object, identity: Mapping[str, Any]
    ) -> Execution:
        """Open the workspace of a fit; one process does.

        Args:
            folder: Where; None for no workspace.
            random_state: The estimator's.
            identity: What the fit depends on, as JSON can hold it.

        Returns:
            The same execution with the workspace.

        Raises:
            ValueError: If ``random_state`` is no integer: another fit could not find what this one leaves.
        """
        if folder is None:
            return self
        if not isinstance(random_state, int | np.integer):
            raise ValueError(
                f"a workspace finds finished work by its seed: random_state must be an integer, got {random_state!r}"
            )
        if not self.processes.is_first:
            return self
        return replace(self, workspace=Workspace(folder, {**identity, "device": self.device}))

    @property
    def largest_array(self) -> int:
        """Bytes that one array in memory may take if it grows with the number of images."""
        return (memory_bytes() // 2 if self.memory is None else self.memory) // _SHARE

    def leave(self, name: str, kept: Kept) -> None:
        """Leave what was kept for one more pass.

        Args:
            name: Of what that pass computes.
            kept: Descriptors and Fisher vectors; what was left before is given up.
        """
        self._left.clear()
        self._left[name] = kept

    def take(self, name: str) -> Kept:
        """Take what was left.

        Args:
            name: As for `leave`.

        Returns:
            What was left under this name, once; otherwise nothing kept.
        """
        return self._left.pop(name, None) or Kept()

    def map(
        self,
        function: Callable[[Tensor, Batch], Result],
        images: ImageList,
        batches: Sequence[Batch],
        stage: str,
        *,
        everywhere: bool = True,
    ) -> Iterator[tuple[Batch, Result]]:
        """Apply a function to batches of images.

        Args:
            function: (images, batch) -> result; an instance of a class, and arrays as results, so that other processes
                can be sent them.
            images: Where the batches are loaded from.
            batches: Dealt out over the processes.
            stage: Name of this pass for `progress`.
            everywhere: Whether every process gets all results, or only the first.

        Yields:
            Each batch with its result, in order.
        """
        size = self.processes.size
        if size == 1:
            yield from map_batches(function, images, batches, n_jobs=self.n_jobs, progress=self.progress, stage=stage)
            return
        mapped = map_batches(function, images, batches[self.processes.rank :: size], n_jobs=self.n_jobs)
        done, total = 0, sum(len(batch.indices) for batch in batches)
        # Closed at once where another process fails: no thread goes on for a fit that has ended.
        with closing(cast("Generator[tuple[Batch, Result]]", mapped)) as own:
            for _ in range(0, len(batches), size * _ROUND):
                found = self.processes.gather(list(islice(own, _ROUND)), everywhere=everywhere)
                for turn in range(_ROUND):
                    for results in found:
                        if turn < len(results):
                            yield results[turn]
                            done += len(results[turn][0].indices)
                            self.report(stage, done, total)

    def each(self, function: Callable[[int], Result], places: Sequence[int]) -> Iterator[Result]:
        """Apply a function to single images.

        Args:
            function: position -> result.
            places: Positions, dealt out over the processes.

        Yields:
            The results, in order.
        """
        size = self.processes.size
        if size == 1:
            yield from in_threads(function, places, n_jobs=self.n_jobs)
            return
        own = list(in_threads(function, places[self.processes.rank :: size], n_jobs=self.n_jobs))
        results = self.processes.gather(own)
        for turn in range(len(places)):
            yield results[turn % size][turn // size]

    def rows(
        self,
        name: str,
        function: Callable[[Tensor, Batch], np.ndarray],
        images: ImageList,
        width: int,
        *,
        indices: np.ndarray | None = None,
        keys: np.ndarray | None = None,
        dtype: str = "float32",
        stage: str = "encode",
        known: Mapping[int, np.ndarray] = {},
    ) -> Encoded:
        """Compute one row an image.

        The result is the same bit for bit wherever the rows go, for any number of workers and processes.

        Args:
            name: Under which finished chunks are kept in the workspace.
            function: (images, batch) -> rows (B, F).
            images: The list.
            width: F.
            indices: Which images; all if None.
            keys: A key for each image of the list: see `ImageList.batches`.
            dtype: In which rows are kept.
            stage: Name of this pass for `progress`.
            known: Image -> row (F,), for images whose rows need not be computed; the same images in all processes.

        Returns:
            The rows in the order of ``indices``.
        """
        chosen = np.arange(len(images)) if indices is None else indices
        chunk_rows = max(_LEAST_CHUNK, _CHUNK_BYTES // (4 * width))
        kept = self._keeper(name, (len(chosen), width), dtype, chunk_rows)
        pending = self.processes.share(kept.pending())
        labels = None if keys is None else keys.tolist()
        batches: list[Batch] = []
        ends: dict[int, list[int]] = {}
        for chunk in pending:
            wanted = [index for index in chosen[kept.place(chunk)].tolist() if index not in known]
            batches += images.batches(indices=wanted, keys=labels)
            ends.setdefault(len(batches), []).append(chunk)
        row = {index: position for position, index in enumerate(chosen.tolist())}
        buffer = np.empty((chunk_rows, width), dtype=np.float32)

        def write(chunks: Sequence[int]) -> None:
            for chunk in chunks:
                place = kept.place(chunk)
                for index in known.keys() & chosen[place].tolist():
                    buffer[row[index] % chunk_rows] = known[index]
                kept.write(chunk, buffer[: place.stop - place.start])

        write(ends.get(0, []))
        if pending and not batches:
            self.report(stage, len(chosen), len(chosen))
        results = self.map(function, images, batches, stage, everywhere=False)
        for number, (batch, found) in enumerate(results, start=1):
            buffer[[row[index] % chunk_rows for index in batch.indices]] = found
            write(ends.get(number, []))
        return Encoded(kept.rows() if self.processes.is_first else np.empty((0, width), dtype), kept.empty)

    def total(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
        """Sum a function over parts of an array that every process has.

        Args:
            function: part -> tensor.
            parts: At least one.

        Returns:
            The sum, the same for any number of workers; other numbers of processes may change its rounding.
        """
        own = parts[self.processes.rank :: self.processes.size]
        found = in_threads(function, own, n_jobs=self.n_jobs)
        sums = next(found) if own else function(parts[0][:0])
        for other in found:
            sums = sums + other
        return self.processes.sum(sums)

    def joined(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
        """Apply a function to parts of an array that every process has.

        Args:
            function: (N, ...) -> (N, ...).
            parts: At least one.

        Returns:
            The results one below the other, in every process.
        """
        return torch.cat(list(in_threads(function, parts, n_jobs=self.n_jobs)))

    def remember(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors from the workspace, or compute them together and keep them.

        Args:
            name: Of the step.
            compute: Called in all processes, or in none.

        Returns:
            Name -> tensor, those of the first process.
        """
        found = self.workspace.recall(name) if self.workspace is not None else None
        found = self.processes.share(found)
        if found is None:
            found = self.processes.share(compute())
            if self.workspace is not None:
                self.workspace.keep(name, found)
        return found

    def report(self, stage: str, done: int, total: int) -> None:
        """Report progress, if it is wanted.

        Args:
            stage: Name of the pass.
            done: How much of it is done.
            total: Of how much.
        """
        if self.progress is not None:
            self.progress(stage, done, total)

    def _keeper(self, name: str, shape: tuple[int, int], dtype: str, chunk_rows: int) -> RowStore | _Held:
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if not self.processes.is_first:
            return _Held((0, shape[1]), dtype, chunk_rows)
        if self.workspace is not None:
            return self.workspace.store(name, shape, dtype, chunk_rows)
        if size <= self.largest_array:
            return _Held(shape, dtype, chunk_rows)
        folder = self._exits.enter_context(tempfile.TemporaryDirectory(prefix="fisherlayers-"))
        return RowStore(Path(folder) / name, shape, dtype, chunk_rows, _ELSEWHERE)


class _Held:
    """Rows in memory, behind the interface of a `RowStore`."""

    def __init__(self, shape: tuple[int, int], dtype: str, chunk_rows: int) -> None:
        self._rows, self._chunk_rows = np.empty(shape, dtype=dtype), chunk_rows
        self.empty = 0

    def place(self, chunk: int) -> slice:
        return slice(chunk * self._chunk_rows, (chunk + 1) * self._chunk_rows)

    def pending(self) -> list[int]:
        return list(range(-(-len(self._rows) // self._chunk_rows)))

    def write(self, chunk: int, rows: np.ndarray) -> None:
        place = self.place(chunk)
        self._rows[place] = rows[: len(self._rows[place])]
        self.empty += int((rows[: len(self._rows[place])] == 0).all(axis=1).sum())

    def rows(self) -> np.ndarray:
        return self._rows
