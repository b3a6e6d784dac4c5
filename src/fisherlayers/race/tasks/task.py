"""What a task of a race is: data, a model to train from scratch, a loss and a validation metric."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlayers.race.arguments import positive_number, whole_number


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
        loss_scale: the terms that the loss sums in an example; 1 for a mean.
        validation_size: validation examples that are evaluated during training; None for all of them.

    Raises:
        ValueError: there are no examples, not as tensors or not one target an input, `make_model` is no function, or a
            size is no whole number of at least 1.
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
    validation_size: int | None = None
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        for part in ("train", "validation"):
            pair = getattr(self, part)
            if not isinstance(pair, Examples) or not all(isinstance(entry, Tensor) for entry in pair):
                raise ValueError(
                    f"{part} must be Examples(inputs, targets), two tensors; got {type(pair).__name__}: "
                    "put all batches of a loader together by torch.cat"
                )
            inputs, targets = map(len, pair)
            if not inputs or inputs != targets:
                raise ValueError(
                    f"{part} must hold examples, one target an input; got {inputs} inputs and {targets} targets"
                )
        if isinstance(self.make_model, nn.Module) or not callable(self.make_model):
            kind = type(self.make_model).__name__
            raise ValueError(f"make_model must be a function that builds a new model at every call; got {kind}")
        for name in ("batch_size", "steps"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("evaluation_size", "validation_size"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least=1)
        positive_number("loss_scale", self.loss_scale)

    def batches(self, seed: int) -> Iterator[Examples]:
        """Yield training batches; they never end. Each epoch is a fresh permutation, cut into full batches.

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

    def evaluated_validation(self) -> Examples:
        """Return the validation examples that are evaluated: the first `validation_size`."""
        return Examples(self.validation.inputs[: self.validation_size], self.validation.targets[: self.validation_size])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, from scores (..., classes) and class indices (...)."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right classes in percent, from scores (..., classes) and class indices (...)."""
    return 100 * (outputs.argmax(-1) == targets).double().mean()


def pixel_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy summed over the pixels, a mean over the images.

    Args:
        outputs: logits (N, ...).
        targets: of the same shape, in [0, 1].

    Returns:
        A scalar in nats an image.
    """
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)


def explained_variance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 100 (1 - squared error / squared distance to the mean image), with sigmoid(outputs) as the reconstruction.

    Args:
        outputs: logits (N, pixels).
        targets: of the same shape, in [0, 1].

    Returns:
        A scalar in percent.
    """
    error = (outputs.sigmoid() - targets).square().sum()
    return 100 * (1 - error / (targets - targets.mean(0)).square().sum())
