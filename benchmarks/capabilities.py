"""What training with us and with the peers gets on with: ``python -m benchmarks.capabilities``, and its page in docs.

Every cell is one check of `capability_checks` run here, on the versions that are installed; contenders that are not
installed have no column. Each contender has a process of its own, so that none can spoil another's.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.capability_checks import CHECKS, outcome
from benchmarks.capability_contenders import CONTENDERS, CONTROL, OURS, Contender
from benchmarks.common import RESULTS, ROOT, Figure, command_line, read_results, write_results

PAGE = ROOT / "docs" / "capabilities.md"
_HEADER = """# What it gets on with

Each cell is a small program that was run (`python -m benchmarks.capabilities`, which writes this page; the rows are the
functions of [capability_checks.py](../benchmarks/capability_checks.py)): three or more steps on a tiny problem on the
CPU, in float32 unless the row says otherwise. Plain SGD is the control: a row that it fails would be a wrong question.

*ok*: there. *part*: training ran but left parameters untouched. *pickle*: resumes exactly, but the checkpoint only
loads with `weights_only=False`. *fail*: an error, or another result than the row asks for. *-*: the question does not
arise. A cell says that the method runs there, not that it learns better.

Optimizers that see only parameters and gradients (SOAP, Shampoo, PSGD, Muon) get on with nearly everything; methods
that watch the layers (K-FAC, SINGD) do not. Ours watches the layers.

"""


def run_contender(contender: Contender) -> dict[str, tuple[str, str]]:
    """Run one column: the name of each check -> outcome and reason."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {check.__name__: outcome(check, contender) for check in CHECKS}


def _column(contender: Contender) -> dict[str, tuple[str, str]]:
    command = [sys.executable, "-m", "benchmarks.capabilities", "--only", contender.name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    cells: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return cells


def render(record: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        record: the result file's content.

    Returns:
        Markdown.
    """
    columns: dict[str, Any] = record["details"]["columns"]
    lines = [
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for check in CHECKS:
        title = (check.__doc__ or "").rstrip(".")
        cells = [column["cells"].get(check.__name__, ["", ""])[0] for column in columns.values()]
        marked = [cell if cell in {"ok", "-"} else f"**{cell}**" for cell in cells]
        lines.append(f"| {title} | " + " | ".join(marked) + " |")
    versions = ", ".join(f"{name} {column['version']}" for name, column in columns.items() if "," not in name)
    lines += ["", f"Versions: {versions}.", ""]
    reasons = [
        f"- {name}, {(check.__doc__ or '').rstrip('.')}: {column['cells'][check.__name__][1]}"
        for name, column in columns.items()
        for check in CHECKS
        if column["cells"][check.__name__][0] not in {"ok", "-"}
    ]
    return _HEADER + "\n".join([*lines, "## What was seen instead", "", *reasons]) + "\n"


def main() -> None:
    """Run every installed contender, write the result file and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run one contender in this process and print its cells as JSON")
    parser.add_argument("--page", action="store_true", help="only write the page, from the result file")
    arguments = parser.parse_args()
    if arguments.only is not None:
        [contender] = [contender for contender in CONTENDERS if contender.name == arguments.only]
        print("\n" + json.dumps(run_contender(contender)))
        return
    if not arguments.page:
        _measure()
    record = read_results("capabilities")
    if record is None:
        raise SystemExit(f"nothing was measured yet: {RESULTS / 'capabilities.json'} does not exist")
    Path(PAGE).write_text(render(record), encoding="utf-8")
    print(PAGE)


def _measure() -> None:
    columns = {
        contender.name: {"version": version(contender.distribution), "cells": _column(contender)}
        for contender in CONTENDERS
        if contender.available()
    }
    figures = []
    for contender in CONTENDERS:
        if contender.name in columns:
            cells = columns[contender.name]["cells"]
            asked = [cell for cell, _ in cells.values() if cell != "-"]
            figures.append(Figure(f"share of cells that are ok, {contender.name}", 100 * _share(asked), "%"))
    ours = [cell for contender in OURS for cell, _ in columns[contender.name]["cells"].values()]
    asked = [cell for cell in ours if cell != "-"]
    figures.append(Figure("share of cells that are ok, ours", 100 * _share(asked), "%"))
    figures.append(Figure("cells not ok", len(asked) - asked.count("ok"), "cells"))
    print(write_results("capabilities", figures, command=command_line(), threads=1, details={"columns": columns}))
    broken = [name for name, (cell, _) in columns[CONTROL.name]["cells"].items() if cell != "ok"]
    if broken:
        raise SystemExit(f"the control fails {broken}: these questions are wrong")


def _share(cells: list[str]) -> float:
    return cells.count("ok") / len(cells)


if __name__ == "__main__":
    main()
