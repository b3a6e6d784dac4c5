"""Training by several processes against one process on the whole batch, in float64, under torchrun on the CPU.

DDP and FSDP2 by 2 and 4 processes: a network of several kinds of layers (grouped convolution, attention, wide, narrow
and unbiased linear layers, embeddings), SGD and AdamW, full and low-rank roots, uneven parts, accumulation, closures.
Figures are the largest difference of any weight or root after 12 steps, relative to the largest entry of its tensor.
"restart": of two processes one is killed by SIGKILL in the middle; started again from the last checkpoint, DDP and
FSDP2 end where an undisturbed run ends. The programs are those of the tests (tests/natural_gradient).
"""

import argparse
import json
import tempfile
from pathlib import Path

from tests.natural_gradient.several_processes import REPLICATED, SHARDED, torchrun

from benchmarks.common import ROOT, Figure, command_line, write_results

PROGRAMS = ROOT / "tests" / "natural_gradient"


def differences(processes: int) -> dict[str, float]:
    """Train in several processes and in one.

    Args:
        processes: their number.

    Returns:
        The largest relative difference of each case.
    """
    with tempfile.TemporaryDirectory() as folder:
        torchrun(processes, PROGRAMS / "distributed_program.py", folder, *REPLICATED, *SHARDED)
        return json.loads(Path(folder, "results.json").read_text())


def restarted() -> dict[str, float]:
    """Kill one of two processes, start both again, and compare with an undisturbed run.

    Returns:
        The largest relative difference under DDP and FSDP2.

    Raises:
        RuntimeError: if the first start was not killed, or the second did not go on from a checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        killed = torchrun(2, PROGRAMS / "restart_program.py", folder, check=False)
        if killed.returncode == 0 or not Path(folder, "killed").exists():
            raise RuntimeError(f"no process was killed:\n{killed.stderr[-6000:]}")
        torchrun(2, PROGRAMS / "restart_program.py", folder)
        results = json.loads(Path(folder, "results.json").read_text())
    if results["from"] == 0:
        raise RuntimeError("the second start began at step 0 instead of the checkpoint's")
    return results["gaps"]


def main() -> None:
    """Measure, print and write benchmarks/results/distributed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    arguments = parser.parse_args()
    figures, cases = [], {}
    for processes in arguments.processes:
        found = cases[f"{processes} processes"] = differences(processes)
        for kind, names in (("DDP", REPLICATED), ("FSDP2", SHARDED)):
            worst = max(found[name] for name in names)
            figures.append(Figure(f"{kind}, {processes} processes", worst, "rel"))
    cases["restart"] = restarted()
    figures.append(Figure("restart", max(cases["restart"].values()), "rel"))
    for figure in figures:
        print(f"{figure.name}: {figure.value:.2g}")
    print(write_results("distributed", figures, command=command_line(), threads=1, details={"cases": cases}))


if __name__ == "__main__":
    main()
