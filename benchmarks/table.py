"""README's table of results, made from the result files: ``python -m benchmarks.table [--check]``.

The rows are the ``[[readme]]`` entries of ``targets.toml``; the table replaces what stands between the
two markers. Entries that were never measured are left out.
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, read_results
from benchmarks.targets import TABLE, format_value

README = ROOT / "README.md"
BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"


@dataclass(frozen=True)
class Row:
    """One line of README's table: `text` says in words what figure `figure` of ``result.json`` is."""

    text: str
    result: str
    figure: str


def load_rows(path: Path = TABLE) -> list[Row]:
    """Read the ``[[readme]]`` entries."""
    return [Row(**row) for row in tomllib.loads(path.read_text(encoding="utf-8")).get("readme", [])]


def render(rows: Sequence[Row], *, folder: Path = RESULTS) -> str:
    """Return the Markdown table of the measured rows.

    Args:
        rows: the lines in their order.
        folder: where the result files lie.

    Returns:
        Markdown, one line a row, without a final newline.

    Raises:
        KeyError: a result file exists but does not hold the row's figure.
    """
    lines = ["| what | measured | lowest to highest | command |", "|---|---|---|---|"]
    for row in rows:
        record = read_results(row.result, folder=folder)
        if record is None:
            continue
        figure = _figure(record, row)
        spread = figure["spread"]
        limits = "" if spread is None else f"{spread[0]:.4g} to {spread[1]:.4g}"
        value = "never" if figure["value"] is None else format_value(figure["value"], figure["unit"])
        lines.append(f"| {row.text} | {value} | {limits} | `{record['command']}` |")
    return "\n".join(lines)


def _figure(record: dict[str, Any], row: Row) -> dict[str, Any]:
    for figure in record["figures"]:
        if figure["name"] == row.figure:
            found: dict[str, Any] = figure
            return found
    raise KeyError(f"{row.result}.json holds no figure {row.figure!r}: {[f['name'] for f in record['figures']]}")


def insert(document: str, table: str) -> str:
    """Return `document` with `table` between the markers.

    Args:
        document: Markdown that holds both markers once.
        table: what goes between them.

    Returns:
        The new document.

    Raises:
        ValueError: a marker is missing or stands there twice.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError(f"the document must hold {BEGIN} and {END} once each")
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None, *, readme: Path = README, folder: Path = RESULTS) -> int:
    """Write the table into README, or compare it with what stands there.

    Args:
        arguments: the command line, without the program's name.
        readme: the document with the markers.
        folder: where the result files lie.

    Returns:
        0, or 1 if ``--check`` finds the table out of date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the table is out of date")
    check = parser.parse_args(arguments).check
    before = readme.read_text(encoding="utf-8")
    after = insert(before, render(load_rows(), folder=folder))
    if check:
        if before != after:
            print(f"{readme.name} is out of date: run `make readme`", file=sys.stderr)
        return int(before != after)
    readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
