"""Write fixtures/vlfeat_sift.npz: what VLFeat makes of a generated image.

Run ``python tests/fisher_vectors/make_vlfeat_sift.py`` where VLFeat's Python binding cyvlfeat is installed (made with
cyvlfeat 0.7.1 and libvl 0.9.21). Nothing of fisherlayers is used: the smoothing is SciPy's.
"""

from pathlib import Path

import numpy as np
from cyvlfeat.sift import dsift
from scipy.ndimage import gaussian_filter

HEIGHT, WIDTH, STEP = 44, 59, 8
CASES = {"gaussian_4": (4, False), "flat_4": (4, True), "gaussian_8": (8, False), "flat_8": (8, True)}


def textured_image() -> np.ndarray:
    """Blobs, an edge, a gradient and noise, in [0, 1]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blobs = gaussian_filter(random.standard_normal((HEIGHT, WIDTH)), 3)
    image = 2 * blobs / np.abs(blobs).max() + 1.0 * (x + 0.5 * y > 40) + 0.02 * x
    image = (image - image.min()) / (image.max() - image.min())
    return np.clip(image + 0.02 * random.standard_normal(image.shape), 0, 1).astype(np.float32)


def first_centre(length: int, bin_size: int) -> int:
    """Where the first bin's centre stands when what the step leaves over is halved between the borders."""
    return (length - 1 - 3 * bin_size) % STEP // 2


def main() -> None:
    """Run VLFeat on every case and store descriptors (as floats of unit length times 512), centres and norms."""
    image = textured_image()
    arrays = {"image": image}
    for name, (bin_size, fast) in CASES.items():
        deviation = np.sqrt(max(0.0, (bin_size / 6) ** 2 - 0.25))
        smooth = gaussian_filter(
            image.astype(np.float64), deviation, mode="nearest", radius=int(np.ceil(4 * deviation))
        )
        frames, descriptors = dsift(
            smooth.astype(np.float32),
            step=STEP,
            size=bin_size,
            bounds=[first_centre(HEIGHT, bin_size), first_centre(WIDTH, bin_size), HEIGHT - 1, WIDTH - 1],
            fast=fast,
            norm=True,
            float_descriptors=True,
        )
        arrays[f"{name}_descriptors"] = descriptors
        arrays[f"{name}_centres"] = frames[:, :2]
        arrays[f"{name}_norms"] = frames[:, 2]
    folder = Path(__file__).parent / "fixtures"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "vlfeat_sift.npz", **arrays)


if __name__ == "__main__":
    main()
