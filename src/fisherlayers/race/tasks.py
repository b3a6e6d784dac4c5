"""Tasks of a race: data, a model to train from scratch, a loss and a validation metric.

A new task is one function that returns a `Task`, and one line in `TASKS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlayers.data import load_digits, load_fashion_mnist


class Examples(NamedTuple):
    """Inputs and targets with a common first dimension, the examples."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Task:
    """What every method of a race has in common.

    Attributes:
        name: the key in `TASKS`.
        title: for people: the data and the model.
        train: the examples that are trained on.
        validation: the examples that are only evaluated.
        make_model: builds the model with fresh random weights from torch's default generator.
        loss: (outputs, targets) -> scalar, a mean over the examples.
        metric: (outputs, targets) -> scalar in percent, a mean over the examples, higher is better.
        metric_name: what the metric is called.
        batch_size: examples a step.
        steps: the usual length of a run.
        evaluation_size: training examples on which the training loss is evaluated; None for all of them.
    """

    name: str
    title: str
    train: Examples
    validation: Examples
    make_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    metric_name: str
    batch_size: int
    steps: int
    evaluation_size: int | None = None

    def batches(self, seed: int) -> Iterator[Examples]:
        """Yield training batches without end: each epoch is a fresh permutation, cut into full batches.

        Args:
            seed: of the permutations; the same seed gives the same batches.

        Yields:
            `batch_size` examples, or all of them where there are fewer.
        """
        generator = torch.Generator().manual_seed(seed)
        count = len(self.train.inputs)
        size = min(self.batch_size, count)
        while True:
            order = torch.randperm(count, generator=generator)
            for start in range(0, count - size + 1, size):
                chosen = order[start : start + size]
                yield Examples(self.train.inputs[chosen], self.train.targets[chosen])

    def evaluated_train(self) -> Examples:
        """Return the training examples on which the training loss is evaluated: the first `evaluation_size`."""
        return Examples(self.train.inputs[: self.evaluation_size], self.train.targets[: self.evaluation_size])


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right classes in percent, from scores (N, classes) and class indices (N,)."""
    return 100 * (outputs.argmax(1) == targets).double().mean()


def multilayer_perceptron(widths: list[int]) -> nn.Sequential:
    """Return Linear layers of the given widths with ReLU between them, the inputs flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (index > 0) + [nn.Linear(before, after)]
    return nn.Sequential(*layers)


def digits() -> Task:
    """Return scikit-learn's 8 x 8 digits, 1,437 to train on and 360 to validate, with an MLP 64-128-128-128-10."""
    images, labels, held_out_images, held_out_labels, _ = load_digits(test_fraction=0.2)
    return Task(
        name="digits",
        title="digits, MLP 64-128-128-128-10",
        train=Examples(torch.from_numpy(images), torch.from_numpy(labels)),
        validation=Examples(torch.from_numpy(held_out_images), torch.from_numpy(held_out_labels)),
        make_model=lambda: multilayer_perceptron([64, 128, 128, 128, 10]),
        loss=functional.cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        batch_size=128,
        steps=300,
    )


def fashion_mnist() -> Task:
    """Return Fashion-MNIST, 55,000 of its training images to train on and 5,000 to validate.

    The model is an MLP 784-512-512-512-10. The ten thousand test images are not touched.

    Returns:
        The task.
    """
    images, labels, *_ = load_fashion_mnist()
    inputs, targets = torch.tensor(images).float() / 255, torch.tensor(labels).long()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, validation = order[5000:], order[:5000]
    return Task(
        name="fashion-mnist",
        title="Fashion-MNIST, MLP 784-512-512-512-10",
        train=Examples(inputs[train], targets[train]),
        validation=Examples(inputs[validation], targets[validation]),
        make_model=lambda: multilayer_perceptron([784, 512, 512, 512, 10]),
        loss=functional.cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        batch_size=500,
        steps=550,
        evaluation_size=10_000,
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "fashion-mnist": fashion_mnist}


def load_task(name: str) -> Task:
    """Return the task of that name.

    Args:
        name: a key of `TASKS`.

    Returns:
        The task with its data in memory.

    Raises:
        ValueError: no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {sorted(TASKS)}; got {name!r}")
    return TASKS[name]()
