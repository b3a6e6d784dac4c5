"""A Fisher-vector layer on a ConvNet's feature maps: fitted and left alone, or fine-tuned end to end with the ConvNet.

Fashion-MNIST with 2,000 training images a class, 300 others a class for validation, the 10,000 test images. A small
ConvNet is trained first, with a linear classifier on its pooled maps. *Greedy*: the body is kept, a mixture is fitted
to its maps, and a logistic regression (cost by cross-validation) to the Fisher vectors. *Fine-tuned*: from there all
parameters, mixture included, go on with the cross-entropy, by Adam on the network as it is and by Adam on the
reconstructed one. *ConvNet*: without a Fisher vector the first network goes on for as many epochs. All have the same
batches, the same epochs, the same number of learning rates to choose from (each with a linear decay to zero); rate and
epoch are chosen by validation accuracy, averaged over the seeds, and the test set is read once, by what was chosen.
``--validate`` stops before the test set and writes nothing.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import Figure, command_line, data_folder, write_results
from benchmarks.fine_tune import Labelled, accuracy, split
from fisherlayers import FisherVectorLayer, fold, reconstruct
from fisherlayers.data.fashion_mnist import load_fashion_mnist

CHANNELS, COMPONENTS = (32, 64, 32), 8
BATCH = 50
FIRST_EPOCHS, FIRST_RATE = 3, 3e-3
RATES = {
    "ConvNet": (3e-3, 1e-2),
    "fine-tuned, Adam": (1e-3, 3e-3),
    "fine-tuned, reconstructed Adam": (1e-3, 3e-3),
}
COSTS = (0.1, 1.0, 10.0, 100.0)
HELD_OUT = 300


class Trained(NamedTuple):
    """One run: validation accuracy and mean training loss of every epoch, its plain networks, the CPU seconds."""

    validation: list[float]
    loss: list[float]
    networks: list[nn.Module]
    seconds: float


def body() -> nn.Sequential:
    """Return two convolutions with pooling and one that reduces the channels: (B, H, W) to (B, 32, H / 4, W / 4)."""
    first, second, last = CHANNELS
    return nn.Sequential(
        nn.Unflatten(1, (1, -1)),
        *(nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(second, last, 1),
    )


def convnet(classes: int) -> nn.Sequential:
    """Return the body with a linear classifier on its pooled maps."""
    return nn.Sequential(body(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], classes))


def with_fisher_vectors(trained: nn.Sequential, train: Labelled, seed: int) -> nn.Sequential:
    """Fit a mixture and a classifier to the maps of a trained ConvNet.

    Args:
        trained: from `convnet`.
        train: bytes and labels.
        seed: of the mixture.

    Returns:
        Body, Fisher-vector layer, linear classifier.
    """
    features = copy.deepcopy(trained[0]).eval()
    images = pixels(train[0])
    with torch.no_grad():
        maps = torch.cat([features(part) for part in images.split(250)])
        rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        layer = FisherVectorLayer.from_descriptors(rows[torch.randperm(len(rows))[:50_000]], COMPONENTS, seed=seed)
        encodings = torch.cat([layer(part) for part in maps.split(250)])
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": COSTS}, cv=3).fit(encodings.numpy(), train[1])
    fitted = search.best_estimator_
    classifier = nn.Linear(layer.num_outputs, len(fitted.classes_))
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor(fitted.coef_))
        classifier.bias.copy_(torch.tensor(fitted.intercept_))
    return nn.Sequential(features, layer, classifier)


def pixels(images: np.ndarray) -> Tensor:
    """Return bytes as floats in [0, 1]."""
    return torch.tensor(images).float() / 255


def go_on(
    network: nn.Module,
    train: Labelled,
    validation: Labelled,
    *,
    reconstructed: bool,
    rate: float,
    epochs: int,
    seed: int,
) -> Trained:
    """Train a copy of a network by Adam.

    Args:
        network: where to start; is left alone.
        train: bytes and labels.
        validation: scored after every epoch.
        reconstructed: whether `reconstruct` goes over the copy before.
        rate: the learning rate at the start, falling to zero.
        epochs: passes over the training images.
        seed: of the batches.

    Returns:
        The run; its networks are folded.
    """
    model = copy.deepcopy(network)
    if reconstructed:
        reconstruct(model)
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(train[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    images, labels = pixels(train[0]), torch.tensor(train[1])
    run = Trained([], [], [], 0.0)
    for _ in range(epochs):
        model.train()
        started, losses = time.process_time(), []
        for places in torch.randperm(len(labels), generator=generator).split(BATCH):
            adam.zero_grad()
            loss = cross_entropy(model(images[places]), labels[places])
            loss.backward()
            adam.step()
            schedule.step()
            losses.append(loss.item())
        run = run._replace(seconds=run.seconds + time.process_time() - started)
        plain = copy.deepcopy(model)
        plain = (fold(plain) if reconstructed else plain).eval()
        run.validation.append(accuracy(plain, validation))
        run.loss.append(float(np.mean(losses)))
        run.networks.append(plain)
    return run


def chosen(runs: dict[float, list[Trained]]) -> tuple[float, int]:
    """Return rate and epoch of the highest validation accuracy, averaged over the seeds."""
    means = {
        (rate, epoch): float(np.mean([run.validation[epoch] for run in group]))
        for rate, group in runs.items()
        for epoch in range(len(group[0].validation))
    }
    return max(means, key=lambda key: means[key])


def main() -> None:
    """Train, fit, fine-tune, choose on validation images, test once, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: FISHERLAYERS_DATA")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--each", type=int, default=2000, help="training images a class")
    parser.add_argument("--validate", action="store_true", help="do not read the test set, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="left alone")
    data = load_fashion_mnist(data_folder(arguments.data) / "fashion-mnist")
    seeds = range(arguments.seeds)
    greedy: list[tuple[nn.Module, float]] = []
    runs: dict[str, dict[float, list[Trained]]] = {name: {rate: [] for rate in rates} for name, rates in RATES.items()}
    for seed in seeds:
        places = split(data.train_labels, arguments.each, seed, held_out=HELD_OUT)
        train, validation = ((data.train_images[p], data.train_labels[p]) for p in places)
        torch.manual_seed(seed)
        first = go_on(
            convnet(int(data.train_labels.max()) + 1),
            train,
            validation,
            reconstructed=False,
            rate=FIRST_RATE,
            epochs=FIRST_EPOCHS,
            seed=seed,
        )
        start = first.networks[-1]
        assert isinstance(start, nn.Sequential)
        fitted = with_fisher_vectors(start, train, seed).eval()
        greedy.append((fitted, accuracy(fitted, validation)))
        print(f"seed {seed}: first ConvNet {first.validation[-1]:.2f}, greedy {greedy[-1][1]:.2f}", flush=True)
        for name, group in runs.items():
            for rate, found in group.items():
                found.append(
                    go_on(
                        start if name == "ConvNet" else fitted,
                        train,
                        validation,
                        reconstructed="reconstructed" in name,
                        rate=rate,
                        epochs=arguments.epochs,
                        seed=seed,
                    )
                )
                run = found[-1]
                print(
                    f"seed {seed} {name:32} {rate:g}",
                    " ".join(f"{value:.2f}" for value in run.validation),
                    "loss",
                    " ".join(f"{value:.3f}" for value in run.loss),
                    f"{run.seconds:.0f} s",
                    flush=True,
                )
    choices = {name: chosen(group) for name, group in runs.items()}
    print("greedy", f"{np.mean([value for _, value in greedy]):.2f}")
    for name, (rate, epoch) in choices.items():
        values = [run.validation[epoch] for run in runs[name][rate]]
        print(name, f"rate {rate:g}, {epoch + 1} epochs: {np.mean(values):.2f}")
    if not arguments.validate:
        test = data.test_images, data.test_labels
        write(greedy, runs, choices, test, seeds)


def write(
    greedy: Sequence[tuple[nn.Module, float]],
    runs: dict[str, dict[float, list[Trained]]],
    choices: dict[str, tuple[float, int]],
    test: Labelled,
    seeds: Sequence[int],
) -> None:
    """Read the test set and write the result file."""
    scored: dict[str, Sequence[Callable[[Tensor], Tensor]]] = {"greedy": [network for network, _ in greedy]}
    for name, (rate, epoch) in choices.items():
        scored[name] = [run.networks[epoch] for run in runs[name][rate]]
    tested = {name: [accuracy(network, test) for network in networks] for name, networks in scored.items()}
    figures = [
        Figure(f"test accuracy, {name}", float(np.mean(values)), "%", (min(values), max(values)), list(seeds))
        for name, values in tested.items()
    ]
    for name in ("fine-tuned, Adam", "fine-tuned, reconstructed Adam"):
        gains = [after - before for after, before in zip(tested[name], tested["greedy"], strict=True)]
        figures.append(Figure(f"gain, {name}", float(np.mean(gains)), "points", (min(gains), max(gains)), list(seeds)))
    details: dict[str, Any] = {
        "protocol": __doc__,
        "channels": CHANNELS,
        "components": COMPONENTS,
        "rates": RATES,
        "chosen": {name: {"rate": rate, "epochs": epoch + 1} for name, (rate, epoch) in choices.items()},
        "validation, greedy": [value for _, value in greedy],
        "validation": {
            f"{name}, {rate:g}": [r.validation for r in g] for name, x in runs.items() for rate, g in x.items()
        },
        "loss": {f"{name}, {rate:g}": [r.loss for r in g] for name, x in runs.items() for rate, g in x.items()},
        "seconds": {f"{name}, {rate:g}": [r.seconds for r in g] for name, x in runs.items() for rate, g in x.items()},
    }
    path = write_results("fine_tune_maps", figures, command=command_line(), threads=1, details=details)
    for figure in figures:
        print(f"{figure.name:45} {figure.value:8.2f} {figure.unit}")
    print(path)


if __name__ == "__main__":
    main()
