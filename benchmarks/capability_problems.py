"""The tiny networks and batches that the capability checks train on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.capability_contenders import Batch


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (rows, 3) logits of (rows, ...) inputs."""
        return self.outer(self.inner(self.inner(inputs).tanh()).tanh())


class Recurrent(nn.Module):
    """Symbols through an embedding and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(10, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return (rows, 3) logits of (rows, length) symbols."""
        return self.head(self.lstm(self.embedding(symbols))[0][:, -1])


class Attentive(nn.Module):
    """A transformer's encoder layer as torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (rows, 3) logits of (rows, ...) inputs."""
        return self.head(self.encoder(inputs).mean(1))


class Checkpointed(nn.Module):
    """A perceptron whose inner part is computed again in the backward pass; ``reentrant`` None computes it once."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.inner, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (rows, 3) logits of (rows, ...) inputs."""
        hidden = self.first(inputs).tanh()
        if self.reentrant is None:
            return self.last(self.inner(hidden).tanh())
        inner = checkpoint(self.inner, hidden, use_reentrant=self.reentrant)
        return self.last(inner.tanh())


def perceptron(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Return a network 8-16-3."""
    return nn.Sequential(nn.Linear(8, 16), activation(), nn.Linear(16, 3))


def convolutional() -> nn.Sequential:
    """Return a small ConvNet for 3 x 6 x 6 images."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))


def vectors(rows: int = 16) -> Batch:
    """Return correlated vectors and three classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 8, generator=generator).cumsum(1) + 1
    return inputs, torch.randint(3, (rows,), generator=generator)


def images(rows: int = 16) -> Batch:
    """Return images and three classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 6, 6, generator=generator) + 0.5, torch.randint(3, (rows,), generator=generator)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with the same initial weights every time."""
    torch.manual_seed(0)
    return build()
