"""Matrices of many rows, in memory or on disk, that are read block by block."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rows", "StoredRows", "as_rows", "read_block", "row_blocks", "row_places"]

# A block of rows is used twice in a row (X v, then Xᵀ u): it should stay in the cache in between.
_BLOCK_BYTES = 16 * 2**20


class StoredRows:
    """Rows in a file. It is mapped into memory for as long as one block is read, so that no more than that is held.

    It has as much of a tensor's interface as reading by blocks takes: shape, dtype, slices of rows, and `to`.

    Args:
        path: The numbers, row-major, and nothing else.
        shape: (n, F).
        dtype: NumPy's name of their type.
        chosen: Positions of the rows that count; all if None.
    """

    device = torch.device("cpu")
    ndim = 2

    def __init__(
        self, path: str | os.PathLike[str], shape: tuple[int, int], dtype: str, chosen: range | None = None
    ) -> None:
        self._path, self._stored, self._chosen = Path(path), shape, range(shape[0]) if chosen is None else chosen
        self._type = np.dtype(dtype)
        self.dtype: torch.dtype = getattr(torch, self._type.name)

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        return torch.Size((len(self._chosen), self._stored[1]))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._chosen)

    def numel(self) -> int:
        """Return the number of entries."""
        return self.shape.numel()

    def __getitem__(self, rows: slice) -> StoredRows:
        """Return some of the rows; nothing is read."""
        return StoredRows(self._path, self._stored, self._type.name, self._chosen[rows])

    def to(self, dtype: torch.dtype) -> Tensor:
        """Read the rows.

        Args:
            dtype: What they are converted to.

        Returns:
            A tensor (n, F) of its own.
        """
        rows = slice(self._chosen.start, self._chosen.stop, self._chosen.step)
        mapped = np.memmap(self._path, dtype=self._type, mode="r", shape=self._stored)
        return torch.from_numpy(np.array(mapped[rows])).to(dtype)


Rows = Tensor | StoredRows


def as_rows(rows: Rows | np.ndarray) -> Rows:
    """Wrap rows as a tensor without copying them, be they in memory or a memory-mapped file.

    Args:
        rows: (n, F), of float16, bfloat16, float32 or float64.

    Returns:
        A tensor on the same memory, which must only be read; `StoredRows` as they are.

    Raises:
        TypeError: If the type is not one of those.
        ValueError: If the shape does not fit or there is nothing in it.
    """
    if isinstance(rows, np.ndarray):
        if rows.dtype not in {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}:
            raise TypeError(f"rows must be of float16, float32 or float64, got {rows.dtype}: convert them first")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            rows = torch.from_numpy(rows)
    if not rows.dtype.is_floating_point:
        raise TypeError(f"rows must be of float16, bfloat16, float32 or float64, got {rows.dtype}: convert them first")
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"rows must have shape (n, F) and not be empty, got {tuple(rows.shape)}")
    return rows


def row_places(rows: Rows, block_rows: int | None = None) -> list[slice]:
    """Cut rows into blocks that fit the cache.

    Args:
        rows: (n, F).
        block_rows: Rows a block; None chooses 16 MiB.

    Returns:
        The positions of each block.
    """
    bytes_each = 8 if rows.dtype == torch.float64 else 4
    size = block_rows or max(16, _BLOCK_BYTES // (rows.shape[1] * bytes_each))
    return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]


def read_block(rows: Rows, place: slice) -> Tensor:
    """Return some rows in a type that matrix products like.

    Args:
        rows: (n, F).
        place: Their positions.

    Returns:
        float64 if ``rows`` is, else float32.
    """
    return rows[place].to(torch.float64 if rows.dtype == torch.float64 else torch.float32)


def row_blocks(rows: Rows, block_rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Go through rows block by block.

    Args:
        rows: (n, F).
        block_rows: Rows a block; None chooses 16 MiB.

    Yields:
        The rows' positions, and the block as from `read_block`.
    """
    for place in row_places(rows, block_rows):
        yield place, read_block(rows, place)
