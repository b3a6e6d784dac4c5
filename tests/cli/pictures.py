"""Small pictures for the command line's tests: stripes that lie, stand or lean."""

import numpy as np
from PIL import Image

CLASSES = {"leaning": (1, 1), "lying": (1, 0), "upright": (0, 1)}


def stripes(kind, *, seed, shape=(32, 32), colour=False):
    rng = np.random.default_rng(seed)
    down, across = CLASSES[kind]
    rows, columns = np.indices(shape)
    waves = (rows * down + columns * across + rng.integers(8)) // 4 % 2
    grey = (60 + 130 * waves + rng.integers(0, 40, shape)).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey


def write_folder(root, *, per_class=8, first_seed=0, classes=tuple(CLASSES), **options):
    for kind in classes:
        (root / kind).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(stripes(kind, seed=first_seed + number, **options)).save(root / kind / f"{number}.png")
    return root
