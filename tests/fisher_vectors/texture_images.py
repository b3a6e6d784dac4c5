"""Small generated images whose classes differ by texture, not by place or brightness."""

import numpy as np

CLASSES = ("checks", "lying", "slanted", "upright")
QUICK = {
    "components": 4,
    "dimensions": 8,
    "bin_sizes": (3, 4),
    "step": 3,
    "training_descriptors": 2000,
    "iterations": 5,
    "random_state": 0,
}
"""Settings of a classifier that learns them in a second."""


def textures(each, *, size=28, seed=0, noise=0.15):
    """Return a list of float images and their labels, `each` a class, in mixed order."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images, labels = [], []
    for index in range(each * len(CLASSES)):
        label = CLASSES[index % len(CLASSES)]
        shift, period = rng.uniform(0, 8, size=2), rng.uniform(5, 8)
        x, y = (2 * np.pi * (axis + offset) / period for axis, offset in zip((columns, rows), shift, strict=True))
        wave = {
            "checks": np.sin(x) * np.sin(y),
            "lying": np.sin(y),
            "slanted": np.sin((x + y) / np.sqrt(2)),
            "upright": np.sin(x),
        }[label]
        image = 0.5 + rng.uniform(0.1, 0.3) * wave + noise * rng.normal(size=wave.shape)
        images.append(image.clip(0, 1))
        labels.append(label)
    return images, np.array(labels)
