"""Batches of images over workers: one torch thread each, results in order.

Workers are threads, since the heavy operations release Python's lock, unless the caller has chosen another of joblib's
backends by `joblib.parallel_config`: processes ("loky"), or Dask and Ray once they are registered. A process gets the
images of its batches only, and what the function holds once in all.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, current_thread
from typing import Any, Generic, ParamSpec, TypeVar
from uuid import uuid4

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from torch import Tensor

from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.precision import full_precision

__all__ = ["Progress", "in_threads", "map_batches", "on_cpu", "reporter", "single_torch_thread"]

Progress = Callable[[str, int, int], None]
Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")

# Batches a worker in one go where a backend cannot hand results over one by one.
_WINDOW = 8
# Functions that this process was sent, by their tokens; the last few are kept.
_RECEIVED: dict[str, Any] = {}
_MOST_RECEIVED = 4
# Begins the names of threads that work on arrays.
_THREADS = "fisherlayers"


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


def on_cpu(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function make its tensors on the CPU, whatever ``torch.set_default_device`` has said.

    Args:
        function: Any; threads that it starts make them there anyway.

    Returns:
        The function within such a context, where it is needed.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # `torch.get_default_device` fails on torch 2.9 where the device was set to None.
        if torch.empty(0).device.type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return call


def map_batches(
    function: Callable[[Tensor, Batch], Result],
    images: ImageList,
    batches: Sequence[Batch],
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    stage: str = "",
) -> Iterator[tuple[Batch, Result]]:
    """Load every batch and apply a function to it, a few ahead of the consumer.

    Args:
        function: (images, batch) -> result, run in a worker without gradients and with one torch thread. Other
            processes can only be sent what pickles: an instance of a class, say, and arrays as results.
        images: Where the batches are loaded from.
        batches: What the function is applied to.
        n_jobs: Workers, in joblib's meaning: None is 1 unless a joblib context says otherwise, -1 all cores.
        progress: Called as ``progress(stage, images done, images in all)``.
        stage: Name of this pass for `progress`.

    Yields:
        Each batch with its result, in the order of ``batches``.
    """
    stop = Event()
    work = _Work(function, stop)
    total = sum(len(batch.indices) for batch in batches)
    done = 0
    with single_torch_thread():
        results = _results(work, [_Part(images, batch) for batch in batches], n_jobs)
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


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_jobs: int | None = None
) -> Iterator[Result]:
    """Apply a function to items in threads, whatever joblib's backend: for work on arrays that all threads share.

    Args:
        function: Releases Python's lock for most of its time.
        items: Taken a few ahead of the consumer.
        n_jobs: Threads, in joblib's meaning.

    Yields:
        The results in the order of the items: what is summed over them does not depend on the number of threads.
    """
    workers = effective_n_jobs(n_jobs)
    if workers == 1 or current_thread().name.startswith(_THREADS):  # which would wait for themselves
        yield from map(function, items)
        return

    def call(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    waiting: deque[Future[Result]] = deque()
    with single_torch_thread():
        try:
            for item in items:
                waiting.append(_pool(workers).submit(call, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    # Kept: what a new thread allocates is new memory, which takes longer than a small sum of products.
    return ThreadPoolExecutor(workers, _THREADS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads


class _Part:
    """One batch; sent to another process, it takes along its own images only."""

    def __init__(self, images: ImageList, batch: Batch) -> None:
        self.images, self.batch = images, batch

    def __getstate__(self) -> tuple[ImageList, Batch]:
        return self.images.part(self.batch), self.batch

    def __setstate__(self, state: tuple[ImageList, Batch]) -> None:
        self.images, self.batch = state


class _Work(Generic[Result]):
    """The function on a batch; sent to another process, it is packed once and unpacked once.

    The packed form is an array, of which joblib's process backends map one file into all workers.
    """

    def __init__(self, function: Callable[[Tensor, Batch], Result], stop: Event) -> None:
        self.function, self.stop = function, stop
        self._token = uuid4().hex
        self._packed: np.ndarray | None = None

    def __call__(self, part: _Part) -> Result | None:
        if self.stop.is_set():
            return None
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode(), full_precision("cpu"):
            return self.function(part.images.load(part.batch), part.batch)

    def __getstate__(self) -> tuple[str, np.ndarray]:
        if self._packed is None:
            self._packed = np.frombuffer(pickle.dumps(self.function), dtype=np.uint8)
        return self._token, self._packed

    def __setstate__(self, state: tuple[str, np.ndarray]) -> None:
        self._token, self._packed = state
        self.stop = Event()
        if self._token not in _RECEIVED:
            while len(_RECEIVED) >= _MOST_RECEIVED:
                del _RECEIVED[next(iter(_RECEIVED))]
            _RECEIVED[self._token] = pickle.loads(self._packed.tobytes())
        self.function = _RECEIVED[self._token]


def _results(work: _Work[Result], parts: Sequence[_Part], n_jobs: int | None) -> Iterator[Any]:
    backend, _ = get_active_backend(prefer="threads")
    if backend.supports_return_generator:
        yield from Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(delayed(work)(p) for p in parts)
        return
    with Parallel(n_jobs=n_jobs, prefer="threads") as parallel:
        window = _WINDOW * effective_n_jobs(n_jobs)
        for start in range(0, len(parts), window):
            yield from parallel(delayed(work)(part) for part in parts[start : start + window])


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
