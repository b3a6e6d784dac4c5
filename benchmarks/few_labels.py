"""Few labels: 10, 50 and 100 training images a class, the shallow Fisher vector and the peers without pretraining.

Every contender learns from the same images, drawn at random; the ConvNet trains for the seconds that the Fisher
vector's fit took. A set that has fewer images a class than asked for is left out at that number. The margin is the
lowest, over the numbers, of the Fisher vector's accuracy over the best peer's, in points. Results of a set stay when
another is run.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, data_folder, read_results, write_results
from benchmarks.image_outcomes import fisher_outcomes, score
from benchmarks.image_peers import BagOfWords, resized
from benchmarks.image_sets import LabelledSet, Split, cifar_10, fifteen_scenes, flowers_12, per_class, tiny_imagenet_20
from fisherlayers.demo.baselines import ConvNet, LinearClassifier, hog_features

NUMBERS = (10, 50, 100)
COSTS = (3.0, 10.0)
# Measured before preset "photos" had patches, and preset "small" a smaller weight for its own.
PHOTOS = {"preset": "photos", "step": 6, "components": (256,), "color_weight": 0.5, "patch_side": 0, "C": COSTS}
GRID = {"step": 3, "patch_step": 2}
SMALL = {
    "preset": "small",
    **GRID,
    "components": (128,),
    "mirror": True,
    "color": False,
    "patch_weight": 1.0,
    "C": COSTS,
}
# Loader, settings, side of the images for HOG and the ConvNet, the bag of words' scales and step.
SETS: dict[str, tuple[Any, dict[str, Any], int, dict[str, Any]]] = {
    "15-Scenes": (fifteen_scenes, PHOTOS, 128, {"step": 8}),
    "Flowers-12": (flowers_12, PHOTOS, 128, {"step": 8}),
    "CIFAR-10": (cifar_10, SMALL, 32, {"bin_sizes": (2, 3, 4), "step": 2}),
    "Tiny-ImageNet-20": (tiny_imagenet_20, SMALL, 64, {"bin_sizes": (2, 3, 4, 6), "step": 3}),
}


def accuracies(data: LabelledSet, number: int, name: str, threads: int) -> dict[str, float]:
    """Return each contender's test accuracy in per cent with `number` training images a class."""
    _, settings, side, words = SETS[name]
    data = data._replace(train=data.train.take(per_class(data.train.labels, number, np.random.default_rng(number))))
    ours = fisher_outcomes(data, settings, threads, 1)["shallow"]
    peers: dict[str, Any] = {
        "HOG + SVM": LinearClassifier(hog_features),
        "bag of words + chi2": BagOfWords(**words),
        "ConvNet": ConvNet(ours.fit_seconds),
    }

    def small(split: Split) -> Any:
        return resized(split.images, side)

    found = {"Fisher vector": ours.accuracy}
    for peer, classifier in peers.items():
        view = None if peer == "bag of words + chi2" else small
        found[peer] = score(classifier, data.train, data.test, view).accuracy
    print(name, number, {peer: round(value, 2) for peer, value in found.items()}, flush=True)
    return found


def main() -> None:
    """Measure the chosen sets, and write the results of all sets measured so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: FISHERLAYERS_DATA")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="which sets")
    parser.add_argument("--threads", type=int, default=2, help="of all contenders")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = data_folder(arguments.data)
    earlier = read_results("few_labels")
    rows: dict[str, dict[str, dict[str, float]]] = dict(earlier["details"]["accuracies"]) if earlier else {}
    for name in arguments.sets:
        data = SETS[name][0](folder)
        least = int(np.bincount(data.train.labels).min())
        rows[name] = {
            str(number): accuracies(data, number, name, arguments.threads) for number in NUMBERS if number <= least
        }
        figures = []
        for measured, by_number in rows.items():
            margins = []
            for number, found in by_number.items():
                figures += [
                    Figure(f"{measured}, {number} a class, {peer}", value, "%") for peer, value in found.items()
                ]
                margins.append(found["Fisher vector"] - max(v for peer, v in found.items() if peer != "Fisher vector"))
            figures.append(Figure(f"margin, {measured}", min(margins), "points"))
        details = {"protocol": __doc__, "settings": {name: SETS[name][1] for name in rows}, "accuracies": rows}
        # Of all sets, those of earlier runs too.
        command = f"python -m benchmarks.few_labels --threads {arguments.threads}"
        write_results("few_labels", figures, command=command, threads=arguments.threads, details=details)


if __name__ == "__main__":
    main()
