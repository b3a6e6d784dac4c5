"""The schema of a result file, and the check that refuses a record which does not follow it."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_FIELDS = {
    "benchmark": str,
    "command": str,
    "commit": str,
    "date": str,
    "versions": dict,
    "threads": int,
    "cpu": str,
    "figures": list,
    "details": dict,
}
_FIGURE_FIELDS = {"name", "value", "unit", "spread", "seeds"}


def check_results(record: Mapping[str, Any]) -> None:
    """Refuse a result record that does not follow the schema.

    Args:
        record: the decoded JSON of a result file.

    Raises:
        ValueError: names the field that is missing, unknown or malformed.
    """
    if set(record) != set(_FIELDS):
        raise ValueError(f"a result file holds {sorted(_FIELDS)}; got {sorted(record)}")
    for key, kind in _FIELDS.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise ValueError(f"{key!r} must be of type {kind.__name__}; got {record[key]!r}")
    if not re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", record["commit"]):
        raise ValueError(f"'commit' must be 40 hexadecimal digits, perhaps with +dirty; got {record['commit']!r}")
    if datetime.fromisoformat(record["date"]).tzinfo is None:
        raise ValueError(f"'date' must carry its time zone (UTC); got {record['date']!r}")
    if record["threads"] < 1:
        raise ValueError(f"'threads' must be at least 1; got {record['threads']}")
    if not record["figures"]:
        raise ValueError("'figures' is empty: a result file holds at least one figure")
    for figure in record["figures"]:
        _check_figure(figure)
    names = [figure["name"] for figure in record["figures"]]
    if len(set(names)) < len(names):
        raise ValueError(f"figure names must differ within a file; got {names}")


def _check_figure(figure: Mapping[str, Any]) -> None:
    if set(figure) != _FIGURE_FIELDS:
        raise ValueError(f"a figure holds {sorted(_FIGURE_FIELDS)}; got {sorted(figure)}")
    if not figure["name"] or not figure["unit"]:
        raise ValueError(f"a figure needs a name and a unit; got {dict(figure)!r}")
    if figure["value"] is not None and not (
        isinstance(figure["value"], int | float) and math.isfinite(figure["value"])
    ):
        raise ValueError(f"the value of {figure['name']!r} must be a finite number or null; got {figure['value']!r}")
    if figure["spread"] is not None and figure["value"] is None:
        raise ValueError(f"{figure['name']!r} has a spread but no value")
    if figure["spread"] is not None:
        low, high = figure["spread"]
        if not low <= figure["value"] <= high:
            raise ValueError(f"the spread of {figure['name']!r} must enclose its value; got {figure!r}")
    if not all(isinstance(seed, int) for seed in figure["seeds"]):
        raise ValueError(f"the seeds of {figure['name']!r} must be integers; got {figure['seeds']!r}")
