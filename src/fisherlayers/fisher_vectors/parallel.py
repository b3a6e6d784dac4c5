"""Batches of images over threads: one torch thread each, results in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch
from joblib import Parallel, delayed

from fisherlayers.fisher_vectors.images import Batch

__all__ = ["Progress", "map_batches", "reporter", "single_torch_thread"]

Progress = Callable[[str, int, int], None]
Result = TypeVar("Result")


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Give every torch operation one thread: the parallelism is over images, and threads would fight for the cores.

    Yields:
        Nothing; the former number is restored afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def map_batches(
    function: Callable[[Batch], Result],
    batches: Sequence[Batch],
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    stage: str = "",
) -> Iterator[tuple[Batch, Result]]:
    """Apply a function to every batch, a few ahead of the consumer.

    Args:
        function: Runs in a worker thread, without gradients and with one torch thread.
        batches: What it is applied to.
        n_jobs: Workers, in joblib's meaning: None is 1 unless a joblib context says otherwise, -1 all cores.
        progress: Called as ``progress(stage, images done, images in all)``.
        stage: Name of this pass for `progress`.

    Yields:
        Each batch with its result, in the order of ``batches``.
    """
    stop = Event()

    def work(batch: Batch) -> Result | None:
        if stop.is_set():
            return None
        with torch.inference_mode():
            return function(batch)

    total = sum(len(batch.indices) for batch in batches)
    done = 0
    with single_torch_thread():
        results = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(delayed(work)(b) for b in batches)
        try:
            for batch, result in zip(batches, results, strict=True):
                done += len(batch.indices)
                if progress is not None:
                    progress(stage, done, total)
                yield batch, result
        finally:
            # After an interrupt no batch is begun, and those in work are waited for: no thread outlives the call.
            stop.set()
            for _ in results:
                pass


def reporter(verbose: int, progress: Progress | None) -> Progress | None:
    """Return what reports progress: if wanted, a line a stage on the standard error stream.

    Args:
        verbose: 0 for no lines.
        progress: Called as well.

    Returns:
        ``progress`` itself without lines.
    """
    if not verbose:
        return progress

    def report(stage: str, done: int, total: int) -> None:
        if done == total:
            sys.stderr.write(f"[DeepFisherNetwork] {stage}: {done} of {total}\n")
        if progress is not None:
            progress(stage, done, total)

    return report
