"""Progress on the error stream: bars on a terminal that can move its cursor, one line a stage elsewhere."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """Shows the stages of a long command; called as ``stages(stage, done, total)``, a classifier's progress callback.

    Args:
        prefix: stands before every stage's name.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._tasks: dict[str, TaskID] = {}
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_interactive,
            transient=True,
        )

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar; the first call makes it.

        Args:
            stage: its name.
            done: units done.
            total: units in all.
        """
        name = self.prefix + stage
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
            if self._progress.disable:
                print(f"{name} ...", file=sys.stderr, flush=True)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def __enter__(self) -> Self:
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:  # or rich before 15 prints an empty line
            self._progress.stop()
