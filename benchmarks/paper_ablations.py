"""The rows of the 2013 paper's Tables 1 to 4 on Tiny-ImageNet-20, and what goes beyond it, on held-out training images.

Simonyan, Vedaldi and Zisserman (NIPS 2013) compare sub-layers (Table 1), scales of windows and layers (Table 2), layers
with colour (Table 3) and ConvNets (Table 4) on ImageNet. Here every row learns from some training images a class and is
scored on other training images; the test images are never read. Settings are the paper's, with bins and mixtures for
images of 64 x 64: hard assignment, W from one-vs-rest scores, windows adjacent in the stack, the closed-form
information, no cross-fitting. All rows have one C.

A comparison is a difference between two rows, with the standard error of its paired differences (the same images, the
same seeds). What the paper leads one to expect is a sign; "rows unexplained" counts the comparisons that have the other
sign by more than two standard errors and no explanation in `EXPLAINED`. Smaller differences of either sign are within
the error, and say nothing.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Figure, command_line, data_folder, write_results
from benchmarks.image_outcomes import score, stage_columns
from benchmarks.image_peers import linear_scores
from benchmarks.image_sets import (
    LabelledSet,
    Split,
    cifar_10,
    fifteen_scenes,
    held_out,
    per_class,
    tiny_imagenet_20,
)
from fisherlayers.demo.baselines import ConvNet
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.normalization import intra_normalize, l2_normalize
from fisherlayers.fisher_vectors.selection import select_svm
from fisherlayers.fisher_vectors.settings import PRESETS, NetworkSettings
from fisherlayers.fisher_vectors.training import fit_network

COST = 3.0

PAPER = replace(
    PRESETS["paper"],
    bin_sizes=(2, 3, 4, 6),
    step=3,
    padding=4,
    components=(64, 64),
    dimensions=(64, 64),
    windows=(5,),
    stride=1,
    color=False,
    color_components=64,
    color_dimensions=48,
    training_descriptors=60_000,
    iterations=10,
    projection_images=50_000,
)
"""Table 2's first row: coordinates at both layers, windows of side 5 at every position, no colour."""

PLAIN = replace(PAPER, position_weight=0.0)
"""Table 1's: without coordinates."""

SEVERAL = replace(PAPER, windows=(5, 7, 9, 11), stride=2)

FEW = replace(PAPER, components=(16, 64), dimensions=(32, 64))
"""What soft or normalised windows are compared with: they take the whole Fisher vector of every descriptor."""


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        settings: of the network.
        streams: which of its parts the classifier sees: "1" and "2" are layers, "other" colour or patches.
        flips: whether training images are also used mirrored.
        intra: whether each component's part of an encoding is normalised.
    """

    settings: NetworkSettings
    streams: tuple[str, ...]
    flips: bool = False
    intra: bool = False


BOTH = ("1", "2")
COLOR = replace(SEVERAL, color=True)
ROWS = {
    "T1 shallow": Row(PLAIN.with_depth(1), ("1",)),
    "T1 classifier scores, no stacking, L2": Row(replace(PLAIN, stacking=False), ("2",)),
    "T1 classifier scores, stacking, no L2": Row(replace(PLAIN, unit_length=False), ("2",)),
    "T1 classifier scores, stacking, L2": Row(PLAIN, ("2",)),
    "T1 bi-convex, stacking, L2": Row(replace(PLAIN, projection="bi-convex", projection_size=20), ("2",)),
    "T2 shallow": Row(PAPER, ("1",)),
    "T2 q 5, delta 1": Row(PAPER, ("2",)),
    "T2 q 5, delta 1, multi-layer": Row(PAPER, BOTH),
    "T2 q 5 to 11, delta 2": Row(SEVERAL, ("2",)),
    "T2 q 5 to 11, delta 2, multi-layer": Row(SEVERAL, BOTH),
    "T3 1st layer": Row(COLOR, ("1",)),
    "T3 2nd layer": Row(COLOR, ("2",)),
    "T3 multi-layer": Row(COLOR, BOTH),
    "T3 1st layer + colour": Row(COLOR, ("1", "other")),
    "T3 2nd layer + colour": Row(COLOR, ("2", "other")),
    "T3 multi-layer + colour": Row(COLOR, (*BOTH, "other")),
    "few components": Row(FEW, BOTH),
    "few components, soft windows": Row(replace(FEW, window_assignment="soft"), BOTH),
    "few components, windows normalised before W": Row(replace(FEW, window_power=True), BOTH),
    "few components, windows soft and normalised": Row(replace(FEW, window_assignment="soft", window_power=True), BOTH),
    "windows side by side in the stack": Row(replace(PAPER, stack_offset=1.0), BOTH),
    "empirical information": Row(replace(PAPER, information="images"), BOTH),
    "cross-fitted W": Row(replace(PAPER, cross_fit=3), BOTH),
    "second layer alone, cross-fitted W": Row(replace(PAPER, cross_fit=3), ("2",)),
    "second layer alone, one-vs-one W, cross-fitted": Row(
        replace(PAPER, projection="one-vs-one", projection_size=64, cross_fit=3), ("2",)
    ),
    "second layer alone, principal directions as W": Row(
        replace(PAPER, projection="principal", projection_size=64), ("2",)
    ),
    "second layer alone, windows at every second position": Row(replace(PAPER, stride=2), ("2",)),
    "second layer alone, windows of 5 to 11": Row(replace(PAPER, windows=SEVERAL.windows), ("2",)),
    "one-vs-one W": Row(replace(PAPER, projection="one-vs-one", projection_size=64), BOTH),
    "one-vs-one W, cross-fitted": Row(replace(PAPER, projection="one-vs-one", projection_size=64, cross_fit=3), BOTH),
    "discriminant W": Row(replace(PAPER, projection="lda", projection_size=64), BOTH),
    "discriminant W, cross-fitted": Row(replace(PAPER, projection="lda", projection_size=64, cross_fit=3), BOTH),
    "softmax W": Row(replace(PAPER, projection="softmax", projection_size=64), BOTH),
    "softmax W, cross-fitted": Row(replace(PAPER, projection="softmax", projection_size=64, cross_fit=3), BOTH),
    "principal directions as W": Row(replace(PAPER, projection="principal", projection_size=64), BOTH),
    "intra-normalisation": Row(PAPER, BOTH, intra=True),
    "generalised max pooling": Row(replace(PAPER, global_pooling="generalised-max"), BOTH),
    "flips": Row(PAPER, BOTH, flips=True),
    "raw patches beside": Row(replace(PAPER, patch_side=6), (*BOTH, "other")),
    "raw patches beside, whitened": Row(replace(PAPER, patch_side=6, patch_whitening=True), (*BOTH, "other")),
}
SETS: dict[str, tuple[Callable[[Path], LabelledSet], dict[str, int]]] = {
    "tiny-imagenet-20": (tiny_imagenet_20, {}),
    "15-scenes": (fifteen_scenes, {}),
    "cifar-10": (cifar_10, {"upsample": 2}),
}
"""Name -> loader, and how images are brought to about the tables' size."""
CONVNET, HYBRID = "T4 ConvNet", "T4 multi-layer + colour + ConvNet"

EXPECTED = {
    "T1: second layer against shallow": ("T1 classifier scores, stacking, L2", "T1 shallow", 1),
    "T1: stacking": ("T1 classifier scores, stacking, L2", "T1 classifier scores, no stacking, L2", 1),
    "T1: L2": ("T1 classifier scores, stacking, L2", "T1 classifier scores, stacking, no L2", 1),
    "T1: bi-convex against classifier scores": (
        "T1 bi-convex, stacking, L2",
        "T1 classifier scores, stacking, L2",
        -1,
    ),
    "T2: second layer against shallow": ("T2 q 5, delta 1", "T2 shallow", 1),
    "T2: coordinates": ("T2 q 5, delta 1", "T1 classifier scores, stacking, L2", 1),
    "T2: several windows": ("T2 q 5 to 11, delta 2", "T2 q 5, delta 1", 1),
    "T2: multi-layer against second": ("T2 q 5 to 11, delta 2, multi-layer", "T2 q 5 to 11, delta 2", 1),
    "T3: second layer against first": ("T3 2nd layer", "T3 1st layer", 1),
    "T3: multi-layer against first": ("T3 multi-layer", "T3 1st layer", 1),
    "T3: colour, first layer": ("T3 1st layer + colour", "T3 1st layer", 1),
    "T3: colour, second layer": ("T3 2nd layer + colour", "T3 2nd layer", 1),
    "T3: colour, multi-layer": ("T3 multi-layer + colour", "T3 multi-layer", 1),
    "T3: multi-layer against first, both with colour": ("T3 multi-layer + colour", "T3 1st layer + colour", 1),
    "T4: ConvNet against the network": (CONVNET, "T3 multi-layer + colour", 1),
    "T4: hybrid against the network": (HYBRID, "T3 multi-layer + colour", 1),
    "T4: hybrid against the ConvNet": (HYBRID, CONVNET, 1),
}
"""Comparison -> (row, against row, sign that the paper leads one to expect)."""

EXPLAINED: dict[str, str] = {
    "T4: ConvNet against the network": (
        "75 images a class are few for a ConvNet: 9 to 15 points behind at 100 a class on three sets (few_labels), 1.2 "
        "at 5,000 (cifar10_images); the paper's had 1,200"
    ),
}
"""Comparison -> why its sign is another one here."""

BASES = {"few components,": "few components", "second layer alone,": "T2 q 5, delta 1"}
BEYOND = {
    name: next((base for start, base in BASES.items() if name.startswith(start)), "T2 q 5, delta 1, multi-layer")
    for name in ROWS
    if not name.startswith("T")
} | {"raw patches beside, whitened": "raw patches beside"}
"""Row -> the row that it is compared with."""

Log = NDArray[np.float64]


def log_probabilities(
    train: Split, other: Split, seed: int, rows: Mapping[str, Row] = ROWS, *, preparation: Mapping[str, int] = {}
) -> tuple[dict[str, Log], float]:
    """Fit rows and return the log-probabilities of the other images, and the seconds of "T3 multi-layer + colour".

    Rows that differ only in what the classifier sees share one network. `preparation` overrides how all rows resample
    the images.
    """
    found, seconds, fits = {}, 0.0, {}
    for name, row in rows.items():
        fits.setdefault((replace(row.settings, **preparation), row.flips), []).append(name)
    for (settings, flips), names in fits.items():
        start = time.perf_counter()
        images = ImageList(train.images).prepared(**settings.preparation)
        network, folds = fit_network(images, train.labels, settings, seed=seed)
        labels = train.labels
        if flips:
            images, labels, folds = images.mirrored(), np.tile(labels, 2), np.tile(folds, 2)
        encodings = np.asarray(encode_images(network, images, folds=folds).rows)
        network = network.for_new_images()
        unseen = np.asarray(encode_images(network, ImageList(other.images).prepared(**settings.preparation)).rows)
        fitting = elapsed = time.perf_counter() - start
        for name in names:
            start = time.perf_counter()
            features = [_visible(network, part, rows[name]) for part in (encodings, unseen)]
            svm = select_svm(features[0], labels, [COST], groups=np.arange(len(labels)) % len(train.labels), seed=seed)
            logs = np.float64(linear_scores(features[1], svm)) * svm.temperature
            found[name] = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
            if name == "T3 multi-layer + colour":
                seconds = fitting + time.perf_counter() - start
            print(f"{name:45} {100 * _right(found[name], other).mean():6.2f} %  {elapsed:6.1f} s", flush=True)
            elapsed = 0.0
    return found, seconds


def _visible(network: Any, rows: NDArray[np.float32], row: Row) -> NDArray[np.float32]:
    stages = [*network.stages, *(stage for stage in (network.color, network.patches) if stage is not None)]
    kinds = [str(level + 1) for level in range(len(network.stages))]
    kinds += ["other"] * (len(stages) - len(kinds))
    members = [place for place, kind in enumerate(kinds) if kind in row.streams]
    columns = stage_columns(rows, stages, members)
    if not row.intra:
        return columns
    parts = np.split(columns, np.cumsum([stages[member].num_outputs for member in members])[:-1], axis=1)
    normalized = [
        l2_normalize(intra_normalize(torch.from_numpy(part), stages[member].mixture.num_components))
        for part, member in zip(parts, members, strict=True)
    ]
    return torch.cat(normalized, dim=1).numpy() / np.float32(np.sqrt(len(parts)))


def _right(logs: Log, split: Split) -> NDArray[np.float64]:
    return np.float64(logs.argmax(axis=1) == split.labels)


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of paired differences and its standard error, in points."""
    paired = first - second
    return 100 * float(paired.mean()), 100 * float(paired.std(ddof=1) / np.sqrt(len(paired)))


def verdict(name: str, points: float, error: float, sign: int) -> str:
    """Say how a comparison stands to what was expected."""
    if abs(points) <= 2 * error:
        return "within the error"
    if points * sign > 0:
        return "as expected"
    return f"explained: {EXPLAINED[name]}" if name in EXPLAINED else "unexplained"


def main() -> None:
    """Measure, print and write benchmarks/results/paper_ablations.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: FISHERLAYERS_DATA")
    parser.add_argument("--train", type=int, default=75, help="images to learn from, a class")
    parser.add_argument("--held-out", type=int, default=75, help="other training images to score, a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the splits and the fits")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="only these; printed, and nothing is written")
    parser.add_argument("--on", choices=list(SETS), default=next(iter(SETS)), help="another set, with --rows")
    parser.add_argument("--pixels", type=int, help="reduce images to that area, with --rows")
    arguments = parser.parse_args()
    rows = ROWS if arguments.rows is None else {name: ROWS[name] for name in arguments.rows}
    load, preparation = SETS[arguments.on]
    if arguments.pixels is not None:
        preparation = preparation | {"max_pixels": arguments.pixels}
    if arguments.rows is None and (preparation or load is not tiny_imagenet_20):
        parser.error("--on and --pixels take other images than the tables': name some --rows")
    torch.set_num_threads(1)
    data = load(data_folder(arguments.data))
    right: dict[str, list[NDArray[np.float64]]] = {}
    for seed in arguments.seeds:
        rng = np.random.default_rng(seed)
        some = data.train.take(per_class(data.train.labels, arguments.train + arguments.held_out, rng))
        train, other = held_out(some, arguments.held_out / (arguments.train + arguments.held_out), rng)
        found, seconds = log_probabilities(train, other, seed, rows, preparation=preparation)
        if arguments.rows:
            first = next(iter(found))
            for name in list(found)[1:]:
                points, error = difference(_right(found[name], other), _right(found[first], other))
                print(f"{name} against {first}: {points:+.2f} (standard error {error:.2f})", flush=True)
            continue
        logs = score(ConvNet(seconds, width=32, random_state=seed), train, other).log_probabilities
        assert logs is not None
        found |= {CONVNET: logs, HYBRID: (logs + found["T3 multi-layer + colour"]) / 2}
        for name, values in found.items():
            right.setdefault(name, []).append(_right(values, other))
    if right:
        report({name: np.concatenate(values) for name, values in right.items()}, arguments)


def report(table: dict[str, NDArray[np.float64]], arguments: argparse.Namespace) -> None:
    """Print rows and comparisons, and write the result file."""
    comparisons: dict[str, dict[str, Any]] = {}
    for name, (first, second, sign) in EXPECTED.items():
        points, error = difference(table[first], table[second])
        comparisons[name] = {
            "points": round(points, 2),
            "standard error": round(error, 2),
            "expected sign": "+" if sign > 0 else "-",
            "verdict": verdict(name, points, error, sign),
        }
    beyond = {}
    for name, base in BEYOND.items():
        points, error = difference(table[name], table[base])
        beyond[name] = {"against": base, "points": round(points, 2), "standard error": round(error, 2)}
    for rows in (comparisons, beyond):
        for name, row in rows.items():
            print(f"{name:50} {row}")
    accuracies = {name: round(100 * float(values.mean()), 2) for name, values in table.items()}
    unexplained = sum(row["verdict"] == "unexplained" for row in comparisons.values())
    figures = [Figure("rows unexplained", unexplained, "rows", seeds=arguments.seeds)]
    figures += [
        Figure(f"held-out accuracy, {name}", value, "%", seeds=arguments.seeds) for name, value in accuracies.items()
    ]
    details = {
        "data": f"{data_note(arguments)}",
        "comparisons": comparisons,
        "beyond": beyond,
        "C": COST,
        "settings of the first row of Table 2": PAPER.to_config(),
    }
    print(write_results("paper_ablations", figures, command=command_line(), threads=1, details=details))


def data_note(arguments: argparse.Namespace) -> str:
    """Say what was learned from and scored."""
    return (
        f"Tiny-ImageNet-20: {arguments.train} training images a class to learn from, {arguments.held_out} others to "
        "score; no test image was read"
    )


if __name__ == "__main__":
    main()
