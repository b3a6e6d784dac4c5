"""Classifiers of several kinds, fitted to textures of photographs: what export and evidence maps are checked on."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from fisherlayers import DeepFisherNetwork
from fisherlayers.data.textures import load_texture_patches


class Kind(NamedTuple):
    """How a classifier is made.

    Attributes:
        grey: whether its images are grey.
        size: side of the images in pixels.
        parameters: of `DeepFisherNetwork`.
        two_classes: whether it only tells bricks from all else.
    """

    grey: bool
    size: int
    parameters: dict[str, Any]
    two_classes: bool = False


KINDS = {
    "small, grey": Kind(True, 48, {"preset": "small"}),
    "small, colour": Kind(False, 48, {"preset": "small"}),
    "photos, grey": Kind(True, 64, {"preset": "photos"}),
    "photos, colour": Kind(False, 64, {"preset": "photos"}),
    "paper, colour": Kind(False, 72, {"preset": "paper"}),
    "one layer, enlarged, padded": Kind(True, 32, {"depth": 1, "preset": "small", "upsample": 2, "padding": 3}),
    "three layers": Kind(False, 64, {"depth": 3, "preset": "small", "components": 16}),
    "principal projection, closed form, no coordinates": Kind(
        True,
        48,
        {"preset": "small", "projection": "principal", "information": "closed-form", "position_weight": 0.0},
    ),
    "two classes": Kind(True, 48, {"preset": "small"}, two_classes=True),
}


class Fitted(NamedTuple):
    """A classifier with images that it has not seen.

    Attributes:
        name: of its kind.
        kind: how it was made.
        model: fitted.
        images: (n, size, size[, 3]) in [0, 1], float32.
    """

    name: str
    kind: Kind
    model: DeepFisherNetwork
    images: NDArray[np.float32]


def fitted_kinds(
    names: list[str], *, per_class: int, unseen: int, seed: int = 0, process_group: ProcessGroup | None = None
) -> Iterator[Fitted]:
    """Fit one classifier of each kind.

    Args:
        names: keys of `KINDS`.
        per_class: training images of each of the 23 textures.
        unseen: images to check on, drawn from the test side, a flat one among them.
        seed: of the data and of the fits.
        process_group: those that share the fits.

    Yields:
        The classifiers in the order of `names`.
    """
    for name in names:
        kind = KINDS[name]
        data = load_texture_patches(patch_size=kind.size, per_class=per_class, grey=kind.grey, seed=seed)
        labels = data.train_labels == 0 if kind.two_classes else data.train_labels
        settings = {"training_descriptors": 20_000, "C": 1.0, "cv": 0, "random_state": seed} | kind.parameters
        model = DeepFisherNetwork(**settings).fit(data.train_images, labels, process_group=process_group)
        chosen = np.random.default_rng(seed).permutation(len(data.test_images))[: unseen - 1]
        images = np.float32(data.test_images[chosen]) / 255
        flat = np.full((1, *images.shape[1:]), 0.5, np.float32)
        yield Fitted(name, kind, model, np.concatenate([images, flat]))
