"""Evidence maps add up: the sum of a class's map, and its intercept, against its score from `decision_function`.

Classifiers of every preset and of other settings (`fitted_kinds.py`), maps of some classes for every image, shared out
with and without the stabilizer; the figure is the largest absolute difference of any of them.
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Figure, command_line, write_results
from benchmarks.fitted_kinds import KINDS, Fitted, fitted_kinds

STABILIZERS = (0.0, 1.0)


def differences(fitted: Fitted, classes: int, stabilizer: float) -> NDArray[np.float64]:
    """Return sums of maps with their intercepts, less the scores of `decision_function`, (classes, images)."""
    model, images = fitted.model, list(fitted.images)
    scores = model.decision_function(images)
    scores = scores[:, None] if fitted.kind.two_classes else scores
    rows = []
    for place in range(0, scores.shape[1], max(1, scores.shape[1] // classes)):
        label = model.classes_[-1] if fitted.kind.two_classes else model.classes_[place]
        sums = np.array([part.sum() for part in model.evidence(images, label, stabilizer=stabilizer)])
        rows.append(sums + model.intercept_[place] - scores[:, place])
    return np.array(rows)


def main() -> None:
    """Measure, print and write benchmarks/results/evidence_maps.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], default=[*KINDS], metavar="KIND", help=f"of {[*KINDS]}")
    parser.add_argument("--images", type=int, default=3, help="unseen images for each classifier")
    parser.add_argument("--classes", type=int, default=4, help="of about so many classes, the maps of each image")
    parser.add_argument("--per-class", type=int, default=2, help="training images of each of the 23 textures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for fitted in fitted_kinds(arguments.kinds, per_class=arguments.per_class, unseen=arguments.images):
        found = {str(stabilizer): differences(fitted, arguments.classes, stabilizer) for stabilizer in STABILIZERS}
        rows[fitted.name] = {
            "largest difference by stabilizer": {name: float(np.abs(gaps).max()) for name, gaps in found.items()},
            "maps": sum(gaps.size for gaps in found.values()),
        }
        print(f"{fitted.name:50} {rows[fitted.name]}", flush=True)
    worst = max(max(row["largest difference by stabilizer"].values()) for row in rows.values())
    details = {"classifiers": rows, "images for each": arguments.images}
    figure = Figure("largest difference", worst, "abs")
    print(write_results("evidence_maps", [figure], command=command_line(), threads=1, details=details))


if __name__ == "__main__":
    main()
