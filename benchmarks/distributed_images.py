"""A Deep Fisher Network fitted by several processes against the same fit by one: the scores of unseen images.

Colour textures of photographs, preset "small": two layers, colour statistics and raw patches, the projection
cross-fitted. The processes are torchrun's, with gloo; figures are the largest absolute difference of any score.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.natural_gradient.several_processes import torchrun

from benchmarks.common import Figure, command_line, write_results
from benchmarks.fitted_kinds import fitted_kinds
from fisherlayers.cli.launch import started_processes

KIND = "small, colour"


def scores_by(processes: int, images: dict[str, int]) -> NDArray[np.float32]:
    """Return the scores of a model that so many processes have fitted together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.npy"
        counts = ["--per-class", images["per_class"], "--images", images["unseen"]]
        torchrun(processes, "-m", "benchmarks.distributed_images", "--child", path, *counts, timeout=1800)
        return np.load(path)


def fit(path: Path, images: dict[str, int]) -> None:
    """Fit in the processes that share this call; the first one saves the scores of unseen images."""
    with started_processes() as (group, is_first):
        (fitted,) = fitted_kinds([KIND], **images, process_group=group)
        if is_first:
            np.save(path, fitted.model.decision_function(list(fitted.images)))


def main() -> None:
    """Measure, print and write benchmarks/results/distributed_images.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--images", type=int, default=100, help="unseen images")
    parser.add_argument("--per-class", type=int, default=10, help="training images of each of the 23 textures")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    images = {"per_class": arguments.per_class, "unseen": arguments.images}
    if arguments.child:
        fit(arguments.child, images)
        return
    expected = scores_by(1, images)
    figures, agreement = [], {}
    for processes in arguments.processes:
        found = scores_by(processes, images)
        name = f"{processes} processes"
        figures.append(Figure(name, float(np.abs(found - expected).max()), "abs"))
        agreement[name] = float((found.argmax(1) == expected.argmax(1)).mean())
        print(f"{name}: {figures[-1].value:.2g}", flush=True)
    details = {
        "images": images,
        "largest score": float(np.abs(expected).max()),
        "share of images with the same best class": agreement,
    }
    print(write_results("distributed_images", figures, command=command_line(), threads=1, details=details))


if __name__ == "__main__":
    main()
