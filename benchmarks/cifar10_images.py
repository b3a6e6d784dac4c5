"""CIFAR-10: Deep Fisher Network, shallow Fisher vector and their peers.

Settings follow what single changes gave on held-out training images, with coarser grids and fewer components for the
time; together they were not tried (``--validate``: 30 % held out, nothing is written). The test images are scored once,
by the run that writes the result file. ``--per-class`` learns from some images of each class only. The shallow Fisher
vector is the fitted deep network without its second layer.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, cifar_10

SETTINGS: dict[str, Any] = {
    "preset": "small",
    "step": 3,
    "windows": (2,),
    "components": (128, 64),
    "color": False,
    "patch_step": 2,
    "patch_components": 64,
    "mirror": True,
    "layer_weight": 0.8,
    "projection_images": 6_000,
    "training_descriptors": 100_000,
    "C": (1.0,),
}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("cifar10_images", data, SETTINGS, side=32, peers=("HOG + SVM", "ConvNet"), one_fit=True)


if __name__ == "__main__":
    main(__doc__, cifar_10, contest)
