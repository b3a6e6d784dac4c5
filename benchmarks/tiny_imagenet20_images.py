"""Tiny-ImageNet-20: Deep Fisher Network, shallow Fisher vector and their peers.

Settings are those that were chosen for CIFAR-10, on its held-out training images. The test images were scored three
times with them, the second and third time for the hybrids: first the mean of two log-probabilities (90.2 %), then, as
on 15-Scenes and Flowers-12 and after a look at held-out training images, one SVM on the encodings of the network and
the features of the probe, and late fusion with learned weights beside it. The shallow Fisher vector is the fitted deep
network without its second layer.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, tiny_imagenet_20

SETTINGS: dict[str, Any] = {
    "preset": "small",
    "step": 3,
    "windows": (2,),
    "components": (128, 64),
    "color": False,
    "patch_step": 2,
    "patch_weight": 1.0,
    "mirror": True,
    "layer_weight": 0.8,
    "projection_images": 6_000,
    "training_descriptors": 100_000,
    "C": (1.0, 3.0),
}


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    return Contest("tiny_imagenet20_images", data, SETTINGS, side=64, one_fit=True, maps=False)


if __name__ == "__main__":
    main(__doc__, tiny_imagenet_20, contest)
