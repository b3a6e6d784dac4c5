"""What every benchmark shares: figures, the result file, interleaved timing, the data folder.

A benchmark measures, then calls `write_results`. The result file says which code, machine and settings
made each figure, so that the figure can be made again; `results_schema.check_results` holds its schema.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from threadpoolctl import threadpool_limits

from benchmarks.results_schema import check_results
from fisherlayers.files import write_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA_VARIABLE = "FISHERLAYERS_DATA"
PACKAGES = ("torch", "numpy", "scikit-learn", "fisherlayers")


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, unique in its result file; targets refer to it.
        value: the number, in `unit`; None for a ratio to something that was never reached.
        unit: "s", "ms", "%", "x" (a ratio), "points", ...
        spread: lowest and highest over seeds or rounds, in `unit`; None for a single measurement.
        seeds: the seeds behind the value; empty where nothing is random.
    """

    name: str
    value: float | None
    unit: str
    spread: tuple[float, float] | None = None
    seeds: Sequence[int] = ()


def write_results(
    name: str,
    figures: Sequence[Figure],
    *,
    command: str,
    threads: int,
    details: Mapping[str, Any] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write ``folder/name.json`` atomically: the figures and all that is needed to make them again.

    Args:
        name: the benchmark's module name, and the file's.
        figures: at least one, with distinct names.
        command: the exact command line that repeats the measurement.
        threads: the intra-op threads that were used.
        details: anything JSON can hold: settings, curves, raw rounds, notes.
        folder: where the file goes.

    Returns:
        The path of the file.
    """
    record = {
        "benchmark": name,
        "command": command,
        "commit": current_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "threads": threads,
        "cpu": cpu_name(),
        "figures": [asdict(figure) for figure in figures],
        "details": dict(details or {}),
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    check_results(json.loads(text))
    path = folder / f"{name}.json"
    write_file(path, text)
    return path


def read_results(name: str, *, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the checked result file of benchmark `name`, or None if it was never measured."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_results(record)
    return record


def current_commit() -> str:
    """Return the commit's hash, "+dirty" appended where the tree differs from it outside benchmarks/results."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def command_line() -> str:
    """Return the command that started this benchmark, as ``python -m benchmarks.NAME ...``, quoted for a shell."""
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".rstrip()


def data_folder(argument: str | Path | None = None) -> Path:
    """Return the folder of downloaded data sets: the argument, or the environment variable FISHERLAYERS_DATA.

    Args:
        argument: a folder given on the command line; wins over the variable.

    Returns:
        An existing folder.

    Raises:
        ValueError: neither is given.
        NotADirectoryError: what is given is no folder.
    """
    chosen = argument or os.environ.get(DATA_VARIABLE)
    if not chosen:
        raise ValueError(f"no data folder: pass --data FOLDER or set {DATA_VARIABLE} to the folder of the data sets")
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"the data folder {folder} does not exist: set {DATA_VARIABLE} or pass --data FOLDER")
    return folder


Clock = Literal["wall", "cpu"]
Statistic = Literal["min", "median"]


@dataclass
class Timing:
    """Seconds of one contender, one entry a round, in the order of the rounds.

    Attributes:
        wall: wall-clock seconds.
        cpu: CPU seconds of this process, all threads together: blind to other load on the machine.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self, statistic: Statistic = "median", clock: Clock = "wall") -> float:
        """Return the minimum or the median of the rounds, in seconds."""
        seconds = self.wall if clock == "wall" else self.cpu
        return min(seconds) if statistic == "min" else statistics.median(seconds)


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 9, warmup: int = 1, threads: int = 1
) -> dict[str, Timing]:
    """Time the contenders round by round in one process, so that other load meets all of them alike.

    Every round runs each contender once, in alternating order. Intra-op threads of torch and of the BLAS and
    OpenMP libraries are set for the measurement and restored after it.

    Args:
        contenders: name -> what to time, without arguments.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before them.
        threads: intra-op threads, at least 1.

    Returns:
        The timing of each contender, under its name.

    Raises:
        ValueError: no contender, or `rounds` or `threads` below 1, or a negative `warmup`.
    """
    if not contenders:
        raise ValueError("contenders is empty: give at least one name -> callable")
    if rounds < 1 or threads < 1 or warmup < 0:
        raise ValueError(f"expected rounds >= 1, threads >= 1, warmup >= 0; got {rounds}, {threads}, {warmup}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads):
            return _run_rounds(contenders, rounds=rounds, warmup=warmup)
    finally:
        torch.set_num_threads(before)


def _run_rounds(contenders: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int) -> dict[str, Timing]:
    timings = {name: Timing() for name in contenders}
    names = list(contenders)
    for index in range(warmup + rounds):
        for name in names if index % 2 == 0 else reversed(names):
            wall, cpu = time.perf_counter(), time.process_time()
            contenders[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if index >= warmup:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def ratio(
    timings: Mapping[str, Timing],
    contender: str,
    reference: str,
    *,
    statistic: Statistic = "median",
    clock: Clock = "cpu",
) -> tuple[float, tuple[float, float]]:
    """Return contender / reference within one run, and the lowest and highest ratio of single rounds.

    Args:
        timings: what `interleaved` returned.
        contender: the numerator's name.
        reference: the denominator's name.
        statistic: "median" or "min" of each contender's rounds, whose quotient is the value.
        clock: "cpu" or "wall".

    Returns:
        The ratio and its spread; the spread always encloses the ratio.
    """
    above, below = timings[contender], timings[reference]
    value = above.summary(statistic, clock) / below.summary(statistic, clock)
    pairs = zip(getattr(above, clock), getattr(below, clock), strict=True)
    rounds = [value, *(a / b for a, b in pairs)]
    return value, (min(rounds), max(rounds))
