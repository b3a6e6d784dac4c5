"""The networks of the races, small enough for one CPU core."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def multilayer_perceptron(widths: list[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return Linear layers of the given widths with the activation between them, the inputs flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [activation()] * (index > 0) + [nn.Linear(before, after)]
    return nn.Sequential(*layers)


def autoencoder(widths: list[int]) -> nn.Sequential:
    """Return the deep autoencoder of Hinton and Salakhutdinov (2006): widths and back, tanh, a linear code, logits out.

    Args:
        widths: from the input to the code.

    Returns:
        2 (len(widths) - 1) Linear layers.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    around = [*widths, *reversed(widths[:-1])]
    for index, (before, after) in enumerate(pairwise(around)):
        linear = index in {0, len(widths) - 1}  # nothing before the input, and nothing after the code
        layers += ([] if linear else [nn.Tanh()]) + [nn.Linear(before, after)]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to the input (He et al., 2016).

    Args:
        before: input channels.
        after: output channels.
        stride: of the first convolution; other than 1, or with more channels, the input takes a 1 x 1 convolution.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs.

        Args:
            x: shape (N, before, height, width).

        Returns:
            Shape (N, after, height / stride, width / stride).
        """
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def residual_network(widths: list[int], classes: int) -> nn.Sequential:
    """Return a ResNet for 32 x 32 colour images: a stem of stride 2, one block a width, a global mean, a classifier.

    Args:
        widths: channels of the stages; all but the first halve the resolution.
        classes: of the output.

    Returns:
        The network, (N, 3, 32, 32) to scores (N, classes).
    """
    blocks = [ResidualBlock(before, after, 2) for before, after in pairwise(widths)]
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        ResidualBlock(widths[0], widths[0]),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    )


class RecurrentLanguageModel(nn.Module):
    """Embedding, LSTM, scores of the next token; every window begins from a zero state.

    Args:
        tokens: size of the vocabulary.
        width: of the embedding and of the LSTM.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, tokens)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the outputs.

        Args:
            tokens: integers, shape (N, T).

        Returns:
            Scores, shape (N, T, vocabulary).
        """
        return self.head(self.recurrent(self.embedding(tokens))[0])


class CausalAttention(nn.Module):
    """Multi-head attention to the past.

    Args:
        width: of the tokens; a multiple of `heads`.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs.

        Args:
            x: shape (N, T, width).

        Returns:
            Shape (N, T, width).
        """
        query, key, value = self.inward(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.outward(found.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a two-layer perceptron of four times the width, each on normalised input and added to it.

    Args:
        width: of the tokens.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs.

        Args:
            x: shape (N, T, width).

        Returns:
            Shape (N, T, width).
        """
        x = x + self.attention(self.attention_norm(x))
        return x + self.perceptron(self.perceptron_norm(x))


class Transformer(nn.Module):
    """A causal transformer on tokens, with learned positions.

    Args:
        tokens: size of the vocabulary.
        length: longest window.
        width: of the tokens.
        heads: of the attention.
        blocks: how many.
    """

    def __init__(self, tokens: int, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the outputs.

        Args:
            tokens: integers, shape (N, T).

        Returns:
            Scores, shape (N, T, vocabulary).
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.positions(places))))
