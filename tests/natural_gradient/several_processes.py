"""Starts a program in several processes, as its users do: by torchrun. The tests and the benchmarks share it."""

import os
import subprocess
import sys

# Cases of distributed_program.py that train in several processes and, on the first, in one on the whole batch.
REPLICATED = (
    "ddp sgd",
    "ddp adam",
    "ddp low rank",
    "ddp uneven",
    "ddp accumulation",
    "ddp kronecker",
    "ddp closure",
    "ddp words",
)
SHARDED = ("fsdp sgd", "fsdp adam", "fsdp decay", "fsdp low rank uneven")


def torchrun(processes, *arguments, check=True, timeout=180):
    """Run torchrun on the CPU, one thread a process.

    Args:
        processes: their number.
        *arguments: a program and its arguments, or "-m", a module and its arguments.
        check: whether a failure is an error.
        timeout: in seconds.

    Returns:
        The finished `subprocess.CompletedProcess`, its output as text.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    if check and done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-6000:])
    return done
