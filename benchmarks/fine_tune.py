"""A Deep Fisher Network fine-tuned end to end: is it better on images that it has not seen, and by which optimizer?

Fashion-MNIST with few labels: 100 training images a class, 100 others a class for validation, the 10,000 test images.
The network is fitted greedily as ever, then `to_module` is trained on the same 1,000 images, shifted at random by up to
two pixels in each epoch, with the cross-entropy of the temperature times the scores. Plain Adam and Adam on the network
that `reconstruct` has been over (PCA and classifier) get the same batches, the same number of epochs (linear decay to
zero) and the same learning rates to choose from; rate and epoch are chosen by the validation accuracy, averaged over
the seeds, and the test set is read once, by what was chosen. A network that is fitted to the shifted copies instead
of being fine-tuned shows what the shifts alone are worth. ``--validate`` stops before the test set and writes nothing.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from benchmarks.common import Figure, command_line, data_folder, write_results
from fisherlayers import DeepFisherNetwork, fold, reconstruct
from fisherlayers.data.fashion_mnist import load_fashion_mnist

NETWORK: dict[str, Any] = {
    "depth": 2,
    "preset": "small",
    "components": (32, 32),
    "dimensions": (32, 32),
    "projection_size": 32,
    "C": 3.0,
    "cv": 3,
}
SHIFT = 2
BATCH = 50
RATES = (1e-4, 3e-4, 1e-3)
OPTIMIZERS = ("Adam", "reconstructed Adam")
COPIES = 8

Labelled = tuple[np.ndarray, np.ndarray]


def split(labels: np.ndarray, each: int, seed: int, *, held_out: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of `each` training images a class and of `held_out` others a class."""
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    train = np.concatenate([places[:each] for places in order])
    return rng.permutation(train), np.concatenate([places[each : each + held_out] for places in order])


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image by up to `SHIFT` pixels; the border is continued."""
    height, width = images.shape[-2:]
    padded = pad(images[:, None], (SHIFT,) * 4, mode="replicate")[:, 0]
    places = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([
        image[top : top + height, left : left + width] for image, (top, left) in zip(padded, places, strict=True)
    ])


def accuracy(score: Callable[[Tensor], Tensor], data: Labelled) -> float:
    """Return the share of right classes in per cent."""
    images, labels = torch.tensor(data[0]).float() / 255, torch.tensor(data[1])
    with torch.no_grad():
        right = sum(
            int((score(part).argmax(dim=1) == target).sum())
            for part, target in zip(images.split(250), labels.split(250), strict=True)
        )
    return 100 * right / len(labels)


def fine_tune(
    model: DeepFisherNetwork,
    train: Labelled,
    validation: Labelled,
    *,
    optimizer: str,
    rate: float,
    epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Train a copy of a fitted network.

    Args:
        model: fitted to `train`.
        train: bytes and labels.
        validation: scored after every epoch.
        optimizer: one of `OPTIMIZERS`.
        rate: the learning rate at the start.
        epochs: passes over the training images.
        seed: of the batches and shifts.

    Returns:
        Validation accuracies and losses by epoch, the CPU seconds of training, and the plain states after each epoch.
    """
    module = model.to_module()
    if optimizer.startswith("reconstructed"):
        reconstruct(module, include=["*reduction", "classifier"])
    adam = torch.optim.Adam(module.parameters(), lr=rate)
    steps = epochs * -(-len(train[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.tensor(train[0]).float() / 255, torch.tensor(train[1])
    run: dict[str, Any] = {"validation": [], "loss": [], "states": [], "seconds": 0.0}
    for _ in range(epochs):
        started, losses = time.process_time(), []
        for places in torch.randperm(len(labels), generator=generator).split(BATCH):
            adam.zero_grad()
            scores = module.temperature * module(shifted(images[places], generator))
            loss = cross_entropy(scores, labels[places])
            loss.backward()
            adam.step()
            schedule.step()
            losses.append(loss.item())
        run["seconds"] += time.process_time() - started
        run["loss"].append(float(np.mean(losses)))
        run["validation"].append(accuracy(module, validation))
        plain = model.to_module()
        plain.load_state_dict(fold(_copy(model, module, optimizer)).state_dict())
        run["states"].append(plain)
    return run


def _copy(model: DeepFisherNetwork, module: torch.nn.Module, optimizer: str) -> torch.nn.Module:
    copy = model.to_module()
    if optimizer.startswith("reconstructed"):
        reconstruct(copy, include=["*reduction", "classifier"])
    copy.load_state_dict(module.state_dict())
    return copy


def main() -> None:
    """Fit, fine-tune, choose on validation images, test once, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: FISHERLAYERS_DATA")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--each", type=int, default=100, help="training images a class")
    parser.add_argument("--validate", action="store_true", help="do not read the test set, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_fashion_mnist(data_folder(arguments.data) / "fashion-mnist")
    seeds = list(range(arguments.seeds))
    fitted: list[DeepFisherNetwork] = []
    parts: list[tuple[Labelled, Labelled]] = []
    fit_seconds, before, copies = [], [], []
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in seeds:
        places = split(data.train_labels, arguments.each, seed)
        train, validation = ((data.train_images[p], data.train_labels[p]) for p in places)
        parts.append((train, validation))
        started = time.process_time()
        model = DeepFisherNetwork(random_state=seed, **NETWORK).fit(*train)
        fit_seconds.append(time.process_time() - started)
        fitted.append(model)
        before.append(accuracy(model.to_module(), validation))
        generator = torch.Generator().manual_seed(seed)
        more = np.concatenate([
            train[0],
            *(shifted(torch.tensor(train[0]).float(), generator).byte().numpy() for _ in range(COPIES - 1)),
        ])
        copies.append(DeepFisherNetwork(random_state=seed, **NETWORK).fit(more, np.tile(train[1], COPIES)))
        shifts_alone = accuracy(copies[-1].to_module(), validation)
        print(f"seed {seed}: fitted {before[-1]:.2f}, to shifted copies {shifts_alone:.2f}", flush=True)
        for optimizer in OPTIMIZERS:
            for rate in RATES:
                run = fine_tune(
                    model, train, validation, optimizer=optimizer, rate=rate, epochs=arguments.epochs, seed=seed
                )
                runs.setdefault((optimizer, rate), []).append(run)
                print(
                    f"seed {seed} {optimizer:20} {rate:g}",
                    [f"{value:.2f}" for value in run["validation"]],
                    [f"{value:.3f}" for value in run["loss"]],
                    f"{run['seconds']:.0f} s",
                    flush=True,
                )

    chosen = {}
    for optimizer in OPTIMIZERS:
        means = {
            (rate, epoch): float(np.mean([run["validation"][epoch] for run in runs[optimizer, rate]]))
            for rate in RATES
            for epoch in range(arguments.epochs)
        }
        chosen[optimizer] = max(means, key=lambda key: means[key])
        print(optimizer, chosen[optimizer], f"{means[chosen[optimizer]]:.2f}")
    if arguments.validate:
        return
    test = data.test_images, data.test_labels
    tested = {
        "greedy": [accuracy(model.to_module(), test) for model in fitted],
        "greedy, shifted copies": [accuracy(model.to_module(), test) for model in copies],
    }
    for optimizer, (rate, epoch) in chosen.items():
        tested[f"fine-tuned, {optimizer}"] = [accuracy(run["states"][epoch], test) for run in runs[optimizer, rate]]
    figures = [
        Figure(f"test accuracy, {name}", float(np.mean(values)), "%", (min(values), max(values)), seeds)
        for name, values in tested.items()
    ]
    figures.append(Figure("fit, greedy", float(np.mean(fit_seconds)), "s", (min(fit_seconds), max(fit_seconds)), seeds))
    for optimizer, (rate, _) in chosen.items():
        seconds = [run["seconds"] / arguments.epochs for run in runs[optimizer, rate]]
        figures.append(
            Figure(f"an epoch, {optimizer}", float(np.mean(seconds)), "s", (min(seconds), max(seconds)), seeds)
        )
    details = {
        "protocol": __doc__,
        "network": NETWORK,
        "rates": RATES,
        "chosen": {name: {"rate": rate, "epochs": epoch + 1} for name, (rate, epoch) in chosen.items()},
        "validation before": before,
        "validation": {
            f"{name}, {rate:g}": [run["validation"] for run in group] for (name, rate), group in runs.items()
        },
        "loss": {f"{name}, {rate:g}": [run["loss"] for run in group] for (name, rate), group in runs.items()},
        "seconds": "CPU seconds of this process on one thread",
    }
    path = write_results("fine_tune", figures, command=command_line(), threads=1, details=details)
    for figure in figures:
        print(f"{figure.name:45} {figure.value:8.2f} {figure.unit}")
    print(path)


if __name__ == "__main__":
    main()
