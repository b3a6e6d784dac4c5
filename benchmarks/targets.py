"""Each target of the project beside its measured figure: ``python -m benchmarks.targets [AREA]``.

Reads ``targets.toml`` and the result files; exits 1 while a target falls short or was never measured.
"""

import argparse
import operator
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.common import RESULTS, read_results

TABLE = Path(__file__).with_name("targets.toml")
AREAS = ("core", "race", "images", "product", "reliability")
COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class State(StrEnum):
    """How a target stands."""

    MET = "met"
    SHORT = "short"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Reference:
    """A figure of a result file, with `plus` added to it."""

    result: str
    figure: str
    plus: float = 0.0


@dataclass(frozen=True)
class Target:
    """One row of ``targets.toml``; the file's head explains the fields."""

    area: str
    text: str
    result: str
    figure: str
    comparison: str
    bound: float | Reference
    unit: str

    def __post_init__(self) -> None:
        if self.area not in AREAS:
            raise ValueError(f"area must be one of {AREAS}; got {self.area!r} ({self.text})")
        if self.comparison not in COMPARISONS:
            raise ValueError(f"comparison must be one of {tuple(COMPARISONS)}; got {self.comparison!r} ({self.text})")


@dataclass(frozen=True)
class Verdict:
    """A target with what was measured for it.

    Attributes:
        target: the row.
        state: met, short or not measured.
        value: the measured figure, None if there is none, or if what it counts was never reached.
        spread: its lowest and highest, None where the file gives none.
        bound: the number it was compared with, None if the bound is a figure that was never measured.
    """

    target: Target
    state: State
    value: float | None
    spread: tuple[float, float] | None
    bound: float | None


def load_targets(path: Path = TABLE) -> list[Target]:
    """Read the table of targets.

    Args:
        path: the TOML file.

    Returns:
        The targets in the file's order.

    Raises:
        ValueError: an unknown area or comparison.
    """
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["target"]
    return [_target(row) for row in rows]


def _target(row: dict[str, Any]) -> Target:
    bound = row["bound"]
    if isinstance(bound, dict):
        bound = Reference(**{"result": row["result"], **bound})
    return Target(**{**row, "bound": bound})


def judge(target: Target, *, folder: Path = RESULTS) -> Verdict:
    """Compare one target with the result files.

    Args:
        target: the row to judge.
        folder: where the result files lie.

    Returns:
        The verdict.

    Raises:
        ValueError: the result file gives the figure in another unit than the target.
    """
    measured = _figure(target.result, target.figure, folder)
    bound: float | None
    if isinstance(target.bound, Reference):
        other = _figure(target.bound.result, target.bound.figure, folder)
        bound = None if other is None or other["value"] is None else other["value"] + target.bound.plus
    else:
        bound = target.bound
    if measured is None:
        return Verdict(target, State.NOT_MEASURED, None, None, bound)
    if measured["unit"] != target.unit:
        raise ValueError(
            f"{target.result}.json gives {target.figure!r} in {measured['unit']!r}, its target is in {target.unit!r}"
        )
    if bound is None:
        state = State.NOT_MEASURED
    elif measured["value"] is None:
        state = State.SHORT
    else:
        state = State.MET if COMPARISONS[target.comparison](measured["value"], bound) else State.SHORT
    return Verdict(target, state, measured["value"], measured["spread"], bound)


def _figure(result: str, name: str, folder: Path) -> dict[str, Any] | None:
    record = read_results(result, folder=folder)
    if record is None:
        return None
    return next((figure for figure in record["figures"] if figure["name"] == name), None)


STYLES = {State.MET: "green", State.SHORT: "bold red", State.NOT_MEASURED: "yellow"}


def show(verdicts: Iterable[Verdict], console: Console) -> None:
    """Print the verdicts as one table an area."""
    verdicts = list(verdicts)
    for area in AREAS:
        rows = [verdict for verdict in verdicts if verdict.target.area == area]
        if not rows:
            continue
        met = sum(verdict.state is State.MET for verdict in rows)
        title = f"{area}: {met} of {len(rows)} met"
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=True)
        table.add_column("target", ratio=1)
        table.add_column("bound", justify="right", no_wrap=True)
        table.add_column("measured", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for verdict in rows:
            table.add_row(
                verdict.target.text, _bound(verdict), _measured(verdict), Text(verdict.state, STYLES[verdict.state])
            )
        console.print(table)
    short = sum(verdict.state is State.SHORT for verdict in verdicts)
    missing = sum(verdict.state is State.NOT_MEASURED for verdict in verdicts)
    console.print(
        f"{len(verdicts)} targets: {len(verdicts) - short - missing} met, {short} short, {missing} not measured"
    )


def _bound(verdict: Verdict) -> str:
    target = verdict.target
    value = "unmeasured figure" if verdict.bound is None else format_value(verdict.bound, target.unit)
    return f"{target.comparison} {value}"


def _measured(verdict: Verdict) -> str:
    if verdict.value is None and verdict.state is State.SHORT:
        return "never reached"
    return "-" if verdict.value is None else format_value(verdict.value, verdict.target.unit)


def format_value(value: float, unit: str) -> str:
    """Return a number with its unit, four significant digits at most."""
    return f"{value:.4g} {unit}"


def main(arguments: Sequence[str] | None = None, *, folder: Path = RESULTS, console: Console | None = None) -> int:
    """Print the targets of all areas, or of one.

    Args:
        arguments: the command line, without the program's name.
        folder: where the result files lie.
        console: where to print.

    Returns:
        0 if every target shown is met, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__.splitlines()[0])
    parser.add_argument("area", nargs="?", choices=AREAS, help="show one area only")
    chosen = parser.parse_args(arguments).area
    verdicts = [judge(target, folder=folder) for target in load_targets() if chosen in (None, target.area)]
    show(verdicts, console or Console())
    return 0 if all(verdict.state is State.MET for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
