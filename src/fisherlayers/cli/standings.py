"""The live table of a race, on the error stream; one line a finished run where that is no terminal."""

import sys
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fisherlayers.race import Progress


class Standings:
    """Shows each method's latest evaluation; called with every `fisherlayers.race.Progress`.

    Args:
        metric_name: heading of the validation metric.
    """

    def __init__(self, metric_name: str) -> None:
        self.metric_name = metric_name
        self._latest: dict[str, Progress] = {}
        console = Console(stderr=True)
        self._live = Live(console=console, transient=True, refresh_per_second=5) if console.is_interactive else None

    def __call__(self, progress: Progress) -> None:
        """Take in an evaluation.

        Args:
            progress: where the race stands.
        """
        self._latest[progress.method] = progress
        if self._live is not None:
            self._live.update(self.table())
        elif progress.point.step == progress.steps:
            run = f"run {progress.run + 1} of {progress.runs}: {progress.method}, seed {progress.seed}"
            print(f"{run}: training loss {progress.point.train_loss:.4g}", file=sys.stderr, flush=True)

    def table(self) -> Table:
        """Return the standings, one row a method."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("method", "seed", "step", "training loss", self.metric_name, "seconds"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for method, progress in self._latest.items():
            point = progress.point
            table.add_row(
                method,
                str(progress.seed),
                f"{point.step}/{progress.steps}",
                f"{point.train_loss:.4g}",
                f"{point.validation_metric:.2f}",
                f"{point.seconds:.2f}",
            )
        return table

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
