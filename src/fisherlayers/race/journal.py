"""Finished runs in a file of JSON lines, so that a race that was stopped goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fisherlayers.race.results import Run, run_from_json, run_to_json


class Journal:
    """Remembers runs by everything that decides them.

    Args:
        path: the file, made with its folder at the first finished run; None keeps the runs in memory only.

    Raises:
        ValueError: the file holds a line, other than a torn last one, that is no entry of a journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = path = None if path is None else Path(path)
        self._runs: dict[str, Run] = {}
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")
            for number, line in enumerate(lines[:-1], 1):
                try:
                    record = json.loads(line)
                    self._runs[_digest(record["key"])] = run_from_json(record["run"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}, is no finished run ({error}): remove the line") from error
            # Without a line end the program was stopped while it wrote: that run is done again.

    def __len__(self) -> int:
        return len(self._runs)

    def run(self, key: Mapping[str, Any], compute: Callable[[], Run]) -> Run:
        """Return the run with that key, computed and written down if it is not there yet.

        Args:
            key: JSON types; whatever changes the run must change the key.
            compute: makes the run.

        Returns:
            The run.
        """
        digest = _digest(key)
        if digest not in self._runs:
            run = compute()
            self._append({"key": dict(key), "run": run_to_json(run)})
            self._runs[digest] = run
        return self._runs[digest]

    def _append(self, record: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            _cut_torn_line(file)
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, allow_nan=False).encode()).hexdigest()
