"""Small named problems that the natural-gradient tests share."""

import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient.rules import Call, rule_of


def perceptron(seed=0, bias=True):
    """A tanh network 7-9-6-3; without ``bias`` its middle layer has none."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3))


def convolutional(seed=0):
    """Two convolutions, one grouped and strided, and a linear layer, for 3 x 8 x 8 images."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 3),
    )


def vectors(rows=64, seed=1):
    """Correlated inputs with a mean, and three classes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(7, 7, generator=generator)
    inputs = torch.randn(rows, 7, generator=generator) @ mixing + torch.arange(7.0) / 3
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def images(rows=8, seed=1):
    """Random 3 x 8 x 8 images with a mean, and three classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 3, 8, 8, generator=generator).cumsum(-1) + 0.5
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def train(model, optimizer, inputs, targets, steps):
    """Take ``steps`` full-batch steps in the ordinary way; return the losses."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def layers_of(model):
    """The linear layers and convolutions of a model."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]


def rows_of(layer, inputs, max_rows=10**6, name="weight"):
    """The rows that a weight of a layer meets when the layer is called with ``inputs``."""
    return rule_of(layer).input_rows(layer, Call((inputs,), {}, max_rows))[name]
