"""The shallow pipeline, fit and predict, against VLFeat's exact one and scikit-image's; encoding against the GEMM peak.

All three: the same images, dense SIFT on the same grids (bins 4, 6, 8, 10, step 4, each scale smoothed), RootSIFT, PCA
to 64 dimensions, a mixture of 256 components from the same number of descriptors by EM, improved Fisher vectors, a
linear SVM with C = 1. One thread, CPU seconds, interleaved rounds.

The peers' EM takes 10 iterations, ours 6 passes in blocks, after which the mixture is as likely: the details give the
mean log-likelihood of unseen descriptors under each mixture, beside ten plain iterations of ours (`--likelihoods`).

VLFeat's pipeline uses its binding for SIFT (exact Gaussian window), mixture and encoding. EM starts from our k-means,
because the binding refuses a start of its own making; that time counts for it as for us. scikit-image has no dense
SIFT: its pipeline gets the same descriptors from VLFeat, the exact ones for the figure and the fast ones for a figure
beside it, then `learn_gmm` and `fisher_vector` in float32. All keep their descriptors between training and encoding,
and none takes mirror images. Flat descriptors are left out of the peers' samples: VLFeat's EM ends in NaN with them.
The SVM of the peers is scikit-learn's LinearSVC. Peers that the result file has already are kept: they can be measured
one by one, each with its own run of ours.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import skimage.data
import torch
from cyvlfeat.fisher import fisher
from cyvlfeat.gmm.cygmm import cy_gmm
from cyvlfeat.sift import dsift
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.feature import fisher_vector, learn_gmm
from skimage.transform import rescale
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from benchmarks.common import Figure, command_line, current_commit, interleaved, read_results, write_results
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.fisher_vectors.descriptors import grid_axis
from fisherlayers.fisher_vectors.encoding import fisher_vectors
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, log_prob
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")
SIDE, BINS, STEP = 256, (4, 6, 8, 10), 4
COMPONENTS, DIMENSIONS, SAMPLE, ITERATIONS, PASSES = 256, 64, 50_000, 10, 6
TRAIN, TEST = 4, 2
GEMM_SIZE, ENCODED = 1536, 10_000
PEERS = ["VLFeat exact", "scikit-image", "VLFeat fast", "scikit-image with VLFeat fast"]


def crops(each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random windows of the photographs, float32 grey (n, SIDE, SIDE), and which photograph each is of."""
    rng, images, labels = np.random.default_rng(seed), [], []
    for label, name in enumerate(PHOTOGRAPHS):
        image = getattr(skimage.data, name)()
        grey = rgb2gray(image) if image.ndim == 3 else image / 255.0
        grey = rescale(grey, max(1.0, 1.3 * SIDE / min(grey.shape)), anti_aliasing=True)
        for _ in range(each):
            top, left = (int(rng.integers(length - SIDE + 1)) for length in grey.shape)
            images.append(grey[top : top + SIDE, left : left + SIDE])
            labels.append(label)
    return np.clip(np.array(images, dtype=np.float32), 0, 1), np.array(labels)


def vlfeat_sift(image: np.ndarray, *, fast: bool) -> np.ndarray:
    """RootSIFT of all scales on our grids, (N, 128)."""
    scales = []
    for bin_size in BINS:
        start = grid_axis(SIDE, 3 * bin_size, STEP)[0]
        smoothed = gaussian_filter(image, sqrt((bin_size / 6) ** 2 - 0.25), mode="nearest")
        bounds = [start, start, SIDE - 1, SIDE - 1]
        scales.append(dsift(smoothed, step=STEP, size=bin_size, bounds=bounds, fast=fast, float_descriptors=True)[1])
    descriptors = np.concatenate(scales)
    return np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12), dtype=np.float32)


def vlfeat_mixture(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """VLFeat's EM from our k-means start: means, variances, weights."""
    start = fit_mixture(torch.from_numpy(rows), COMPONENTS, max_iterations=0)
    named = {"priors": start.weights, "means": start.means, "covars": start.variances}
    arrays = {f"init_{name}": tensor.numpy() for name, tensor in named.items()}
    means, variances, weights, *_ = cy_gmm(
        rows, COMPONENTS, ITERATIONS, b"custom", 1, 0, covariance_bound=0.01 * rows.var(0), **arrays
    )
    return means, variances, weights


def scikit_image_mixture(rows: np.ndarray) -> object:
    """scikit-image's mixture, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return learn_gmm(
            rows, n_modes=COMPONENTS, gm_args={"covariance_type": "diag", "max_iter": ITERATIONS, "random_state": 0}
        )


def peer(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    seconds: dict[str, float],
    *,
    fast: bool,
    mixture: Callable[[np.ndarray], object],
    encode: Callable[[np.ndarray, object], np.ndarray],
) -> float:
    """Fit and predict as a user of a peer would; returns the accuracy, and the CPU seconds of every stage."""
    clock = [time.process_time()]

    def stage(name: str) -> None:
        clock.append(time.process_time())
        seconds[name] = seconds.get(name, 0.0) + clock[-1] - clock[-2]

    (images, labels), (unseen, truth) = train, test
    descriptors = [vlfeat_sift(image, fast=fast) for image in images]
    stage("descriptors")
    rng = np.random.default_rng(0)
    each = -(-SAMPLE // len(images))
    sample = np.concatenate([rows[rng.permutation(len(rows))[:each]] for rows in descriptors])
    sample = sample[sample.any(axis=1)]
    pca = PCA(DIMENSIONS).fit(sample)
    fitted = mixture(np.ascontiguousarray(pca.transform(sample), dtype=np.float32))
    stage("PCA and mixture")
    encodings = np.array([encode(pca.transform(rows).astype(np.float32), fitted) for rows in descriptors])
    stage("encoding")
    classifier = LinearSVC(C=1.0).fit(encodings, labels)
    stage("SVM")
    unseen_rows = [vlfeat_sift(image, fast=fast) for image in unseen]
    stage("descriptors")
    encodings = np.array([encode(pca.transform(rows).astype(np.float32), fitted) for rows in unseen_rows])
    stage("encoding")
    return float((classifier.predict(encodings) == truth).mean())


def ours(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Fit and predict with the shallow network; returns the accuracy."""
    model = DeepFisherNetwork(
        depth=1,
        preset="photos",
        components=COMPONENTS,
        dimensions=DIMENSIONS,
        bin_sizes=BINS,
        step=STEP,
        position_weight=0.0,
        color=False,
        patch_side=0,
        flips=False,
        training_descriptors=SAMPLE,
        iterations=PASSES,
        C=1.0,
        cv=0,
        random_state=0,
        n_jobs=1,
    )
    return float(model.fit(*train).score(*test))


def likelihoods(seeds: Sequence[int]) -> dict[str, list[float]]:
    """Mean log-likelihood of unseen descriptors under ours and scikit-image's mixture, a seed an entry.

    VLFeat's EM starts where ours does, and ends in NaN on some of these samples.
    """
    found: dict[str, list[float]] = {}
    for seed in seeds:
        descriptors = np.concatenate([vlfeat_sift(image, fast=False) for image in crops(TRAIN, seed)[0]])
        descriptors = np.random.default_rng(seed).permutation(descriptors[descriptors.any(axis=1)])[: 2 * SAMPLE]
        rows = PCA(DIMENSIONS).fit(descriptors[:SAMPLE]).transform(descriptors).astype(np.float32)
        seen, unseen = torch.from_numpy(rows).split(SAMPLE)
        fit = partial(fit_mixture, seen, COMPONENTS, seed=seed, tolerance=-1.0)
        peer = scikit_image_mixture(seen.numpy())
        mixtures = {
            f"ours, {PASSES} passes in blocks": fit(max_iterations=PASSES),
            f"ours, {ITERATIONS} iterations": fit(max_iterations=ITERATIONS, blocks=1),
            "scikit-image": DiagonalMixture(*map(torch.from_numpy, (peer.weights_, peer.means_, peer.covariances_))),
        }
        for name, mixture in mixtures.items():
            found.setdefault(name, []).append(round(float(log_prob(mixture.to(unseen), unseen).mean()), 3))
    return found


def share_of_gemm_peak(rounds: int) -> tuple[float, tuple[float, float], dict[str, float]]:
    """Arithmetic rate of encoding (8 N K D operations) over that of a large matrix product, in percent."""
    generator = torch.Generator().manual_seed(0)
    descriptors = torch.randn(ENCODED, DIMENSIONS, generator=generator)
    mixture = fit_mixture(torch.randn(20_000, DIMENSIONS, generator=generator), COMPONENTS, max_iterations=3)
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator) for _ in range(2))
    timings = interleaved(
        {
            "encoding": lambda: l2_normalize(signed_power(fisher_vectors(mixture, descriptors))),
            "product": lambda: left @ right,
        },
        rounds=rounds,
        warmup=3,
    )
    work = {"encoding": 8 * ENCODED * COMPONENTS * DIMENSIONS, "product": 2 * GEMM_SIZE**3}
    rates = {name: work[name] / timing.summary("min", "cpu") / 1e9 for name, timing in timings.items()}
    shares = [
        100 * (work["encoding"] / mine) / (work["product"] / theirs)
        for mine, theirs in zip(timings["encoding"].cpu, timings["product"].cpu, strict=True)
    ]
    value = 100 * rates["encoding"] / rates["product"]
    return value, (min(value, *shares), max(value, *shares)), rates


def against(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], rounds: int
) -> dict[str, Any]:
    """Time one peer and ours, round by round, after a warm-up on an image of each photograph."""
    exact = not name.endswith("fast")
    if name.startswith("VLFeat"):
        options = {"mixture": vlfeat_mixture, "encode": lambda rows, parts: fisher(rows, *parts, improved=True)}
    else:
        options = {
            "mixture": scikit_image_mixture,
            "encode": lambda rows, fitted: fisher_vector(rows, fitted, improved=True),
        }
    seconds: dict[str, float] = {}
    accuracies: dict[str, float] = {}

    def theirs() -> None:
        accuracies[name] = peer(train, test, seconds, fast=not exact, **options)

    def mine() -> None:
        accuracies["ours"] = ours(train, test)

    few = crops(1, 2)
    peer(few, few, {}, fast=not exact, **options)
    ours(few, few)
    timings = interleaved({name: theirs, "ours": mine}, rounds=rounds, warmup=0)
    return {
        "images": {"train": len(train[0]), "test": len(test[0]), "side": SIDE},
        "CPU seconds": {who: [round(second, 2) for second in timing.cpu] for who, timing in timings.items()},
        "CPU seconds a stage, mean round": {stage: round(total / rounds, 2) for stage, total in seconds.items()},
        "accuracy": accuracies,
    }


def main() -> None:
    """Measure, print and write benchmarks/results/pipeline_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds of the pipelines")
    parser.add_argument("--train", type=int, default=4, help="training images of each of the eight photographs")
    parser.add_argument("--test", type=int, default=2, help="test images of each")
    parser.add_argument("--likelihoods", type=int, default=0, help="seeds of the mixtures' comparison")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: VLFeat reads it when it is loaded, and the claim is for one thread")
    torch.set_num_threads(1)
    former = read_results("pipeline_speed")
    figures = {} if former is None else {entry["name"]: Figure(**entry) for entry in former["figures"]}
    runs = {} if former is None else former["details"]["runs"]
    share, spread, rates = share_of_gemm_peak(41)
    figures["share of GEMM peak"] = Figure("share of GEMM peak", share, "%", spread)
    runs["share of GEMM peak"] = {"GFLOP/s": rates, "commit": current_commit()}

    if arguments.likelihoods:
        runs["likelihoods"] = likelihoods(range(arguments.likelihoods)) | {"commit": current_commit()}
        print(runs["likelihoods"], flush=True)

    train, test = crops(arguments.train, 0), crops(arguments.test, 1)
    for name in arguments.peers:
        run = against(name, train, test, arguments.rounds)
        ratios = [a / b for a, b in zip(run["CPU seconds"][name], run["CPU seconds"]["ours"], strict=True)]
        title = f"times faster than {name}"
        figures[title] = Figure(title, statistics.median(ratios), "x", (min(ratios), max(ratios)))
        runs[name] = run | {"commit": current_commit()}
        print(name, run, flush=True)
    for figure in figures.values():
        print(f"{figure.name}: {figure.value:.2f} {figure.unit} {figure.spread}")
    command = f"OMP_NUM_THREADS=1 {command_line()}"
    write_results("pipeline_speed", list(figures.values()), command=command, threads=1, details={"runs": runs})


if __name__ == "__main__":
    main()
