"""The tasks on text: the next word of the Penn Treebank, the next character of tiny-shakespeare."""

import numpy as np
import torch
from numpy.typing import NDArray

from fisherlayers.data import load_penn_treebank, load_tiny_shakespeare
from fisherlayers.race.models import RecurrentLanguageModel, Transformer
from fisherlayers.race.tasks.task import Examples, Task, accuracy, cross_entropy


def penn_treebank() -> Task:
    """Return the Penn Treebank with an LSTM of one layer and 200 units, on windows of 20 words from a zero state."""
    corpus = load_penn_treebank()
    tokens = len(corpus.vocabulary)
    return Task(
        name="ptb",
        title="Penn Treebank, LSTM of 200 units",
        train=windows(corpus.train, 20),
        validation=windows(corpus.validation, 20),
        make_model=lambda: RecurrentLanguageModel(tokens, 200),
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        batch_size=20,
        steps=150,
        evaluation_size=40,
        validation_size=100,
    )


def shakespeare() -> Task:
    """Return tiny-shakespeare with a transformer of two blocks and width 96, on windows of 64 characters."""
    corpus = load_tiny_shakespeare()
    tokens = len(corpus.vocabulary)
    return Task(
        name="shakespeare",
        title="tiny-shakespeare, transformer of 2 blocks, width 96",
        train=windows(corpus.train, 64),
        validation=windows(corpus.validation, 64),
        make_model=lambda: Transformer(tokens, 64, width=96, heads=4, blocks=2),
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        batch_size=16,
        steps=400,
        evaluation_size=40,
        validation_size=100,
    )


def windows(text: NDArray[np.int64], length: int) -> Examples:
    """Cut a text into windows that touch; the targets are the tokens one further.

    Args:
        text: tokens (n,), n > length.
        length: of a window.

    Returns:
        Inputs and targets (windows, length); what is left at the end is dropped.
    """
    count = (len(text) - 1) // length
    inputs = torch.from_numpy(text[: count * length].reshape(count, length))
    targets = torch.from_numpy(text[1 : count * length + 1].reshape(count, length))
    return Examples(inputs, targets)
