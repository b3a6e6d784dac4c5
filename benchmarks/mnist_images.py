"""MNIST: error of the Deep Fisher Network, of the shallow Fisher vector and of their peers.

Of the settings only those of SIFT were tried on held-out training images (``--validate``: 30 % of them, nothing is
written); the test images are scored once, by the run that writes the result file. The shallow Fisher
vector is the fitted deep network without its second layer.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, mnist

SETTINGS: dict[str, Any] = {
    "preset": "small",
    "components": (128, 64),
    "intensity_weight": 0.0,
    "patch_step": 2,
    "patch_components": 64,
    "patch_dimensions": 36,
    "patch_weight": 0.5,
    "layer_weight": 0.8,
    "projection_images": 5_000,
    "training_descriptors": 100_000,
    "C": (3.0,),
}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    peers = ("HOG + SVM", "ConvNet")
    return Contest("mnist_images", data, SETTINGS, side=28, peers=peers, metric="error", one_fit=True)


if __name__ == "__main__":
    main(__doc__, mnist, contest)
