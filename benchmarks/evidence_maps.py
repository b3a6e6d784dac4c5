"""Evidence maps add up: the sum of a class's map, and its intercept, against its score from `decision_function`.

Classifiers of every preset and of other settings (`fitted_kinds.py`), maps of every class for every image, shared out
with and without the stabilizer; the figure is the largest absolute difference of any of them.
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Figure, command_line, write_results
from benchmarks.fitted_kinds import KINDS, Fitted, fitted_kinds

STABILIZERS = (0.0, 1.0)


def sums_of_maps(fitted: Fitted, stabilizer: float) -> NDArray[np.float64]:
    """Return the sums of the maps with the intercepts, in the shape of `decision_function`."""
    model, images = fitted.model, list(fitted.images)
    classes = model.classes_[-1:] if fitted.kind.two_classes else model.classes_
    sums = [[part.sum() for part in model.evidence(images, label, stabilizer=stabilizer)] for label in classes]
    scores = np.array(sums).T + model.intercept_
    return scores[:, 0] if fitted.kind.two_classes else scores


def main() -> None:
    """Measure, print and write benchmarks/results/evidence_maps.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], default=[*KINDS], metavar="KIND", help=f"of {[*KINDS]}")
    parser.add_argument("--images", type=int, default=4, help="unseen images for each classifier")
    parser.add_argument("--per-class", type=int, default=6, help="training images of each of the 23 textures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for fitted in fitted_kinds(arguments.kinds, per_class=arguments.per_class, unseen=arguments.images):
        expected = fitted.model.decision_function(list(fitted.images))
        differences = {
            str(stabilizer): float(np.abs(sums_of_maps(fitted, stabilizer) - expected).max())
            for stabilizer in STABILIZERS
        }
        rows[fitted.name] = {
            "largest difference by stabilizer": differences,
            "largest score": float(np.abs(expected).max()),
            "classes": len(fitted.model.classes_),
        }
        print(f"{fitted.name:50} {rows[fitted.name]}", flush=True)
    worst = max(max(row["largest difference by stabilizer"].values()) for row in rows.values())
    details = {"classifiers": rows, "images for each": arguments.images}
    figure = Figure("largest difference", worst, "abs")
    print(write_results("evidence_maps", [figure], command=command_line(), threads=1, details=details))


if __name__ == "__main__":
    main()
