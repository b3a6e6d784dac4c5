"""A fit killed by kill -9 while it encodes, then run again: encodings on disk against those of an undisturbed fit.

A fit with a workspace is killed several times, each time some chunks further and at a random moment of a chunk's work
or write, and in the end left to finish. The figure counts the rows whose bytes differ from those that an undisturbed
fit left in its own workspace. The details say how many chunks were found finished at each restart.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Figure, command_line, write_results
from benchmarks.images_memory import CLASSES, Waves

WIDTH = 2 * 2 * 128 * 66
"""Length of an encoding: two layers of 128 components over 64 dimensions and the coordinates."""

LONGEST_WAIT = 600.0


def fit(workspace: Path, count: int) -> None:
    """Fit in this process, keeping finished work in the workspace."""
    from fisherlayers import DeepFisherNetwork

    DeepFisherNetwork(
        preset="small",
        components=128,
        color=False,
        patch_side=0,
        training_descriptors=10_000,
        iterations=3,
        C=1.0,
        cv=0,
        random_state=0,
        workspace=workspace,
    ).fit(Waves(count), np.arange(count) % CLASSES)


def started(workspace: Path, count: int) -> subprocess.Popen[bytes]:
    """Start a fit in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.resume", "--child", str(workspace), "--images", str(count)]
    return subprocess.Popen(command)


def finish(workspace: Path, count: int) -> None:
    """Run a fit to its end."""
    if code := started(workspace, count).wait():
        raise RuntimeError(f"the fit ended with code {code}")


def chunks_of(workspace: Path) -> int:
    """Return how many chunks of encodings are listed as finished."""
    return sum(path.read_bytes().count(b"sha256") for path in workspace.glob("*/encodings-*/chunks.jsonl"))


def kill_after(workspace: Path, count: int, chunks: int, delay: float) -> int:
    """Start a fit, and kill it once it has finished some chunks and a moment has passed.

    Args:
        workspace: of the fit.
        count: images.
        chunks: how many must be finished.
        delay: seconds from then to the kill.

    Returns:
        Chunks that are finished after the kill.
    """
    process = started(workspace, count)
    deadline = time.monotonic() + LONGEST_WAIT
    while chunks_of(workspace) < chunks:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the fit ended, or {LONGEST_WAIT} s went by, before chunk {chunks}: nothing to kill")
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()
    return chunks_of(workspace)


def rows_of(workspace: Path) -> np.ndarray:
    """Return the encodings as bytes, one row an image."""
    (path,) = workspace.glob("*/encodings-*/rows.bin")
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 4 * WIDTH)


def main() -> None:
    """Measure, print and write benchmarks/results/resume.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        fit(arguments.child, arguments.images)
        return
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        finish(undisturbed, arguments.images)
        total, found, kills = chunks_of(undisturbed), 0, []
        for _ in range(arguments.kills):
            if found + 1 >= total:
                break
            delay = float(rng.uniform(0, 0.5))
            found = kill_after(killed, arguments.images, found + 1, delay)
            kills.append({"chunks finished": found, "of": total, "seconds after the last": round(delay, 3)})
            print(kills[-1], flush=True)
        finish(killed, arguments.images)
        expected, resumed = rows_of(undisturbed), rows_of(killed)
        differing = int((expected != resumed).any(axis=1).sum()) if expected.shape == resumed.shape else len(expected)
    details = {"images": arguments.images, "numbers a row": WIDTH, "kills": kills}
    figure = Figure("rows that differ", differing, "rows")
    print(figure, write_results("resume", [figure], command=command_line(), threads=1, details=details))


if __name__ == "__main__":
    main()
