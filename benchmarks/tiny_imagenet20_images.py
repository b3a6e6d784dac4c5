"""Tiny-ImageNet-20: Deep Fisher Network, shallow Fisher vector and their peers.

Settings were chosen on held-out training images (``--validate``: 30 % of them, nothing is written); the test images are
scored once, by the run that writes the result file.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, tiny_imagenet_20

SETTINGS: dict[str, Any] = {"preset": "small", "C": (1.0, 3.0, 10.0)}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("tiny_imagenet20_images", data, SETTINGS, side=64)


if __name__ == "__main__":
    main(__doc__, tiny_imagenet_20, contest)
