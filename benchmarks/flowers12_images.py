"""Flowers-12: Deep Fisher Network, shallow Fisher vector and their peers.

Settings were chosen by cross-validation on the 720 training images (``--validate`` holds out 30 % of them and writes
nothing); the test images are scored once, by the run that writes the result file.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, flowers_12

SETTINGS: dict[str, Any] = {
    "preset": "photos",
    "step": 6,
    "components": (256, 128),
    "flips": True,
    "color_weight": 0.5,
    "patch_side": 0,
    "C": (3.0, 10.0),
}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("flowers12_images", data, SETTINGS, side=128, one_fit=True)


if __name__ == "__main__":
    main(__doc__, flowers_12, contest)
