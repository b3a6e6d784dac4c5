"""How long the test suite takes on two processes, set-up not counted: what `make test` runs."""

import os
import subprocess
import sys
import time

from benchmarks.common import ROOT, Figure, write_results

PROCESSES = 2


def main() -> None:
    """Run the suite once; a failing suite writes nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", str(PROCESSES)], cwd=ROOT, env=environment, check=False
    )
    minutes = (time.perf_counter() - start) / 60
    if done.returncode:
        raise SystemExit(f"the suite failed (exit code {done.returncode}): no time is recorded")
    figure = Figure("suite time", minutes, "min")
    print(write_results("suite_time", [figure], command="python -m benchmarks.suite_time", threads=PROCESSES))


if __name__ == "__main__":
    main()
