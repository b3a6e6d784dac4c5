"""Constant tensors that are made once for each set of sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Thread
from typing import ParamSpec, TypeVar

import torch

__all__ = ["constant"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def constant(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Cache a function that makes constant tensors from hashable arguments.

    While a graph is exported, tensors are stand-ins without values, which must not enter the cache. The modes that make
    them so belong to the exporting thread; the constants are then made in another, and the graph takes them in as they
    are.

    Args:
        function: Its result depends on nothing but its arguments.

    Returns:
        The function with the cache, and its ``cache_clear``.
    """
    cached = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        if not torch.compiler.is_compiling():
            return cached(*arguments, **options)  # type: ignore[arg-type]
        results: list[Result] = []
        worker = Thread(target=lambda: results.append(cached(*arguments, **options)))  # type: ignore[arg-type]
        worker.start()
        worker.join()
        return results[0]

    call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return call
