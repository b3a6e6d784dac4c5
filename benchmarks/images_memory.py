"""Peak memory of a whole fit: 100,000 colour images of 64 x 64 pixels in 4 GB, on one core.

Every size is fitted in a process of its own, whose peak resident memory the system reports; images are made when they
are read, as files would be. The encodings are as long as those of preset "small" (23,296 numbers an image, in half
precision), but they come from few descriptors: memory depends on the former, time on the latter. Sizes that the result
file has already are kept, so that they can be measured one by one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.common import Figure, command_line, current_commit, read_results, write_results

CLASSES = 10
SIZE = 64


class Waves:
    """Images of ten classes, made on demand: coloured waves of a class's direction and wavelength, and noise."""

    def __init__(self, count: int) -> None:
        self.count = count
        rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        angles = np.pi * np.arange(CLASSES) / CLASSES
        self.phases = [np.cos(angle) * columns + np.sin(angle) * rows for angle in angles]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        wave = np.sin(self.phases[index % CLASSES] / rng.uniform(1.5, 4) + rng.uniform(0, 6))
        tint = rng.uniform(20, 60, 3).astype(np.float32)
        noise = rng.integers(-25, 26, (SIZE, SIZE, 3), dtype=np.int8)
        return (128 + wave[..., None] * tint + noise).astype(np.uint8)


def fit(count: int, memory: str) -> dict[str, float]:
    """Fit in this process, and return what it took.

    Args:
        count: Number of images.
        memory: The parameter of the fit.

    Returns:
        Peak memory and that of the imports alone in GB, seconds, the accuracy on unseen images.
    """
    from fisherlayers import DeepFisherNetwork

    images, labels = Waves(count), np.arange(count) % CLASSES
    before = peak()
    started, cpu = time.perf_counter(), time.process_time()
    stages: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            stages[stage] = round(time.perf_counter() - started, 1)

    model = DeepFisherNetwork(
        preset="small",
        bin_sizes=(4,),
        step=8,
        patch_side=0,
        training_descriptors=20_000,
        iterations=3,
        C=1.0,
        cv=0,
        memory=memory,
        encoding_dtype="float16",
        random_state=0,
        n_jobs=1,
    ).fit(images, labels, progress=progress)
    fitted = {"peak": peak(), "imports": before, "wall": time.perf_counter() - started}
    unseen = Waves(count + 200)
    chosen = range(count, count + 200)
    right = model.predict([unseen[index] for index in chosen]) == np.array(chosen) % CLASSES
    print("stages", stages, file=sys.stderr)
    return fitted | {
        "cpu": time.process_time() - cpu,
        "accuracy": 100 * float(right.mean()),
        "features": model.network_.num_features,
    }


def peak() -> float:
    """Return the peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure every size in a child process, print and write benchmarks/results/images_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    parser.add_argument("--memory", default="4GB", help="the fit's parameter; a small one bounds small sizes too")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(fit(arguments.child, arguments.memory)))
        return
    former = read_results("images_memory")
    found = {} if former is None else dict(former["details"]["runs"])
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": folder}
            command = [sys.executable, "-m", "benchmarks.images_memory", "--child", str(count)]
            command += ["--memory", arguments.memory]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        run = json.loads(done.stdout.splitlines()[-1]) | {"commit": current_commit()}
        found[f"{count} images, memory {arguments.memory}"] = run
        print(count, run, flush=True)
    figures = [Figure(f"peak memory, {name}", round(run["peak"], 3), "GB") for name, run in found.items()]
    write_results("images_memory", figures, command=command_line(), threads=1, details={"runs": found})


if __name__ == "__main__":
    main()
