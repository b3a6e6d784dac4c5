"""CIFAR-10: Deep Fisher Network, shallow Fisher vector and their peers.

Settings were chosen on held-out training images (``--validate``: 30 % of them, nothing is written); the test images are
scored once, by the run that writes the result file. ``--per-class`` learns from some images of each class only.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, cifar_10

SETTINGS: dict[str, Any] = {"preset": "small", "components": (128, 128), "C": (1.0, 3.0)}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("cifar10_images", data, SETTINGS, side=32, peers=("HOG + SVM", "ConvNet"))


if __name__ == "__main__":
    main(__doc__, cifar_10, contest)
