"""The tasks on images: classifiers on digits, MNIST, Fashion-MNIST and CIFAR-10, and an autoencoder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fisherlayers.data import TrainTest, load_cifar10, load_digits, load_fashion_mnist, load_mnist
from fisherlayers.race.models import autoencoder, multilayer_perceptron, residual_network
from fisherlayers.race.tasks.task import (
    Examples,
    Task,
    accuracy,
    cross_entropy,
    explained_variance,
    pixel_cross_entropy,
)

MNIST_SHAPES = {
    "mnist": [784, 80, 80, 80, 10],
    "mnist-tapered": [784, 80, 60, 40, 40, 40, 20, 10],
    "mnist-narrow": [784, 20, 20, 20, 10],
    "mnist-deep": [784, 80, 80, 80, 80, 80, 80, 10],
}
"""The four shapes of the experiments that came with SNGD's code."""


def digits() -> Task:
    """Return scikit-learn's 8 x 8 digits, 1,437 to train on and 360 to validate, with an MLP 64-128-128-128-10."""
    images, labels, held_out_images, held_out_labels, _ = load_digits(test_fraction=0.2)
    return _classification(
        "digits",
        "digits, MLP 64-128-128-128-10",
        (Examples(torch.from_numpy(images), torch.from_numpy(labels))),
        (Examples(torch.from_numpy(held_out_images), torch.from_numpy(held_out_labels))),
        lambda: multilayer_perceptron([64, 128, 128, 128, 10]),
        batch_size=128,
        steps=300,
    )


def mnist(name: str = "mnist") -> Task:
    """Return MNIST with one of the multilayer perceptrons of `MNIST_SHAPES`, batches of 50.

    Args:
        name: a key of `MNIST_SHAPES`.

    Returns:
        The task: 55,000 of the training images to train on, 5,000 to validate; the test images are not touched.
    """
    widths = MNIST_SHAPES[name]
    train, validation = held_out(load_mnist())
    return _classification(
        name,
        "MNIST, MLP " + "-".join(map(str, widths)),
        train,
        validation,
        lambda: multilayer_perceptron(widths),
        batch_size=50,
        steps=1650,
        evaluation_size=1000,
        validation_size=2500,
    )


def fashion_mnist() -> Task:
    """Return Fashion-MNIST, 55,000 of its training images to train on and 5,000 to validate.

    The model is an MLP 784-512-512-512-10. The ten thousand test images are not touched.

    Returns:
        The task.
    """
    train, validation = held_out(load_fashion_mnist())
    return _classification(
        "fashion-mnist",
        "Fashion-MNIST, MLP 784-512-512-512-10",
        train,
        validation,
        lambda: multilayer_perceptron([784, 512, 512, 512, 10]),
        batch_size=500,
        steps=440,
        evaluation_size=1000,
        validation_size=2000,
    )


def mnist_autoencoder() -> Task:
    """Return the deep autoencoder 784-1000-500-250-30-mirror on MNIST, with the split of `mnist`."""
    train, validation = held_out(load_mnist())
    return Task(
        name="autoencoder",
        title="MNIST, autoencoder 784-1000-500-250-30-250-500-1000-784",
        train=Examples(train.inputs.flatten(1), train.inputs.flatten(1)),
        validation=Examples(validation.inputs.flatten(1), validation.inputs.flatten(1)),
        make_model=lambda: autoencoder([784, 1000, 500, 250, 30]),
        loss=pixel_cross_entropy,
        metric=explained_variance,
        metric_name="explained variance",
        batch_size=250,
        steps=440,
        evaluation_size=500,
        validation_size=1000,
        loss_scale=784,
    )


def cifar10() -> Task:
    """Return CIFAR-10 with a small ResNet of widths 16, 32, 64; 45,000 training images and 5,000 to validate."""
    train, validation = held_out(load_cifar10())
    mean, deviation = train.inputs.mean((0, 2, 3), keepdim=True), train.inputs.std((0, 2, 3), keepdim=True)
    return _classification(
        "cifar10",
        "CIFAR-10, ResNet with widths 16, 32, 64",
        Examples((train.inputs - mean) / deviation, train.targets),
        Examples((validation.inputs - mean) / deviation, validation.targets),
        lambda: residual_network([16, 32, 64], 10),
        batch_size=100,
        steps=200,
        evaluation_size=300,
        validation_size=1000,
    )


def held_out(data: TrainTest, *, count: int = 5000) -> tuple[Examples, Examples]:
    """Split the training images of a set; the same images are held out whenever it is called.

    Args:
        data: uint8 images, grey (n, height, width) or colour (n, height, width, 3). Its test images are not touched.
        count: how many are held out.

    Returns:
        Examples to train on and to validate: pixels in [0, 1], (n, height, width) or (n, 3, height, width).
    """
    images: NDArray[Any] = data.train_images
    if images.ndim == 4:
        images = np.moveaxis(images, -1, 1)
    inputs, targets = torch.tensor(images).float() / 255, torch.tensor(data.train_labels).long()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, validation = order[count:], order[:count]
    return Examples(inputs[train], targets[train]), Examples(inputs[validation], targets[validation])


def _classification(
    name: str, title: str, train: Examples, validation: Examples, make_model: Callable[[], nn.Module], **sizes: Any
) -> Task:
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    return Task(name, title, train, validation, make_model, loss, accuracy, "accuracy", **sizes)
