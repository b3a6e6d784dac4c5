"""15-Scenes: shallow Fisher vector, Deep Fisher Network and their peers on the standard split.

Settings were chosen by cross-validation on the 1,500 training images. The test images are scored for the third time: a
first run, at step 8 and without mirror images, gave 88.64 % shallow, 89.40 % deep and 94.42 % for the hybrid with the
pretrained probe (93.17 %); a second, with 256 components and no patches, 89.83, 89.75 and 95.12 %. ``--validate`` holds
out 30 % of the training images instead and writes nothing.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, fifteen_scenes

SETTINGS: dict[str, Any] = {"preset": "photos", "step": 6, "components": (512, 128), "C": (3.0, 10.0)}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("scenes15_images", data, SETTINGS, side=128, one_fit=True)


if __name__ == "__main__":
    main(__doc__, fifteen_scenes, contest)
