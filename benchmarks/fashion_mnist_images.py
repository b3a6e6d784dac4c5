"""Fashion-MNIST: accuracy of the Deep Fisher Network, of the shallow Fisher vector and of their peers.

Settings were compared on training images alone: 20,000 to learn, 10,000 others to score. The test images are scored for
the third time: 64 instead of 256 components and no patches gave 93.14 shallow and 93.07 deep at first, and then, with C
= 2 and the projection cross-fitted, 93.02 and 93.21. ``--validate`` holds out 30 % of the training images and writes
nothing. The shallow Fisher vector is the fitted deep network without its second layer.
"""

from typing import Any

from benchmarks.image_contest import Contest, main
from benchmarks.image_sets import LabelledSet, fashion_mnist

SETTINGS: dict[str, Any] = {
    "preset": "small",
    "components": (256, 128),
    "intensity_weight": 0.0,
    "information": "closed-form",
    "patch_step": 1,
    "patch_weight": 0.3,
    "layer_weight": 0.15,
    "projection_size": 45,
    "projection_images": 10_000,
    "training_descriptors": 200_000,
    "C": (2.0,),
}


NOTES = (
    "The test set was used three times: 64 components without patches gave 93.14 and 93.07 % (shallow, deep), then "
    "93.02 and 93.21. The margin between the networks lies within the sampling error (0.24).",
)


def contest(data: LabelledSet) -> Contest:
    """Return the contest on this data set."""
    peers = ("HOG + SVM", "ConvNet")
    return Contest("fashion_mnist_images", data, SETTINGS, side=28, peers=peers, one_fit=True, notes=NOTES)


if __name__ == "__main__":
    main(__doc__, fashion_mnist, contest)
