"""Dense SIFT with the exact Gaussian window against VLFeat through its Python binding, one thread.

Claim: the exact window costs no more than 1.3 x VLFeat's fast mode (the flat window). Both sides extract four scales
of a 256 x 256 grey photograph (bins 4, 6, 8, 10, step 4) on the same grids, each scale smoothed first. Ours are
RootSIFT, one step more; VLFeat gets images smoothed by SciPy, and the times without smoothing stand beside.

The details also hold a sweep of image sizes, the agreement of the descriptors, and batches of 28 x 28 images.
"""

from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from cyvlfeat.sift import dsift
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.data import astronaut
from skimage.transform import resize

from benchmarks.common import Figure, Timing, command_line, interleaved, ratio, write_results
from fisherlayers.fisher_vectors.descriptors import grid_axis
from fisherlayers.fisher_vectors.sift import DenseSift

BINS = (4, 6, 8, 10)
STEP = 4
ROUNDS = 21
SIZES = ((128, 128), (256, 256), (375, 500), (768, 1024))
TINY_BINS, TINY_STEP, TINY_COUNT = (3, 4, 6), 2, 1000


def photograph(height: int, width: int) -> np.ndarray:
    """A grey photograph in [0, 1] with a little noise, float32: no patch is flat."""
    image = resize(rgb2gray(astronaut()), (height, width), anti_aliasing=True)
    noise = 0.01 * np.random.default_rng(0).standard_normal((height, width))
    return np.clip(image + noise, 0, 1).astype(np.float32)


def vlfeat(image: np.ndarray, *, fast: bool, smooth: bool = True) -> list[np.ndarray]:
    """VLFeat's descriptors of every scale, on our grids, as floats."""
    height, width = image.shape
    scales = []
    for bin_size in BINS:
        top, left = (grid_axis(length, 3 * bin_size, STEP)[0] for length in (height, width))
        deviation = sqrt((bin_size / 6) ** 2 - 0.25)
        smoothed = gaussian_filter(image, deviation, mode="nearest") if smooth else image
        bounds = [top, left, height - 1, width - 1]
        _, descriptors = dsift(smoothed, step=STEP, size=bin_size, bounds=bounds, fast=fast, float_descriptors=True)
        scales.append(descriptors)
    return scales


def contenders(image: np.ndarray) -> dict[str, Any]:
    """What is timed on one image, by name."""
    tensor = torch.from_numpy(image)[None]
    return {
        "exact": partial(DenseSift(BINS, STEP), tensor),
        "flat": partial(DenseSift(BINS, STEP, window="flat"), tensor),
        "exact, no smoothing": partial(DenseSift(BINS, STEP, smooth=False), tensor),
        "vlfeat fast": partial(vlfeat, image, fast=True),
        "vlfeat fast, no smoothing": partial(vlfeat, image, fast=True, smooth=False),
        "vlfeat exact": partial(vlfeat, image, fast=False),
    }


def milliseconds(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """CPU and wall milliseconds of every contender."""
    return {
        name: {
            f"{clock} {statistic}": round(1e3 * timing.summary(statistic, clock), 3)
            for clock in ("cpu", "wall")
            for statistic in ("min", "median")
        }
        for name, timing in timings.items()
    }


def agreement(image: np.ndarray) -> dict[str, dict[str, float]]:
    """Cosines between ours and VLFeat's descriptors, smoothed alike (not at all), all scales together."""
    found = {}
    for window, fast in (("gaussian", False), ("flat", True)):
        sift = DenseSift(BINS, STEP, window=window, smooth=False, root=False, contrast_threshold=0.0)
        ours = torch.cat([grid.descriptors.reshape(-1, 128) for grid in sift(torch.from_numpy(image)[None])])
        theirs = torch.from_numpy(np.concatenate(vlfeat(image, fast=fast, smooth=False)))
        cosine = torch.cosine_similarity(ours, theirs)
        found[window] = {"cosine min": float(cosine.min()), "cosine median": float(cosine.median())}
    return found


def size_sweep() -> dict[str, Any]:
    """CPU microseconds a descriptor over image sizes, minima of 5 rounds."""
    sweep = {}
    for height, width in SIZES:
        image = photograph(height, width)
        timed = contenders(image)
        count = sum(grid.descriptors[..., 0].numel() for grid in timed["exact"]())
        chosen = {name: timed[name] for name in ("exact", "vlfeat fast")}
        timings = interleaved(chosen, rounds=5)
        sweep[f"{height} x {width}"] = {
            "descriptors": count,
            **{name: round(1e6 * timing.summary("min", "cpu") / count, 3) for name, timing in timings.items()},
        }
    return sweep


def main() -> None:
    """Measure and write the result file."""
    image = photograph(256, 256)
    timed = contenders(image)
    slow = {"vlfeat exact": timed.pop("vlfeat exact")}
    timings = interleaved(timed, rounds=ROUNDS, warmup=2) | interleaved(slow, rounds=5)
    tiny = torch.rand(TINY_COUNT, 28, 28, generator=torch.Generator().manual_seed(0))
    tiny_timing = interleaved({"tiny": partial(DenseSift(TINY_BINS, TINY_STEP), tiny)}, rounds=7)["tiny"]
    rates = sorted(TINY_COUNT / seconds for seconds in tiny_timing.cpu)

    median, spread = ratio(timings, "exact", "vlfeat fast")
    minimum, _ = ratio(timings, "exact", "vlfeat fast", statistic="min")
    no_smoothing, _ = ratio(timings, "exact, no smoothing", "vlfeat fast, no smoothing")
    against_exact = timings["vlfeat exact"].summary("median", "cpu") / timings["exact"].summary("median", "cpu")
    figures = [
        Figure("exact window over VLFeat fast", median, "x", spread),
        Figure("exact window over VLFeat fast, minima", minimum, "x"),
        Figure("exact window over VLFeat fast, no smoothing", no_smoothing, "x"),
        Figure("times faster than VLFeat exact", against_exact, "x"),
        Figure("28 x 28 images a second", rates[len(rates) // 2], "images/s", (rates[0], rates[-1])),
    ]
    details = {
        "image": "skimage.data.astronaut, grey, resized to 256 x 256, noise 0.01",
        "bins": BINS,
        "step": STEP,
        "rounds": ROUNDS,
        "descriptors": sum(grid.descriptors[..., 0].numel() for grid in timed["exact"]()),
        "milliseconds": milliseconds(timings),
        "28 x 28": {"bins": TINY_BINS, "step": TINY_STEP, "batch": TINY_COUNT},
        "agreement with VLFeat": agreement(image),
        "CPU microseconds a descriptor": size_sweep(),
        "VLFeat": "libvl 0.9.21 of Debian through cyvlfeat, built without SSE2: a build with it is about 1.3 x faster",
    }
    path = write_results("speed_sift", figures, command=command_line(), threads=1, details=details)
    for figure in figures:
        print(f"{figure.name}: {figure.value:.3g} {figure.unit}")
    print(path)


if __name__ == "__main__":
    main()
