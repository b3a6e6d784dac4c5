"""The memory that the documentation states is what reconstructed layers hold."""

import pytest
import torch
from benchmarks.reconstruction_memory import LAYERS, RANK, measured, stated
from torch import nn

from fisherlayers import reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_saves_as_many_numbers_as_stated(name):
    make, shape, sizes = LAYERS[name]
    counters = 8 * 6 * len(sizes)  # five counters and the count of a weight
    assert measured(make(), shape) == stated(sizes) + counters


def test_an_embedding_takes_five_numbers_a_word():
    table = reconstruct(nn.Embedding(1000, 8), include=["*", nn.Embedding])
    assert sum(buffer.numel() for buffer in fisher_of(table).buffers()) == 5 * 1000 + 1


def test_a_low_rank_root_is_held_three_times_more_for_its_products():
    layer = reconstruct(nn.Linear(200, 50))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):  # the root is the identity until the first step
        optimizer.zero_grad()
        layer(torch.randn(64, 200)).square().mean().backward()
        optimizer.step()
    fisher = fisher_of(layer)
    factors = fisher.reading.factors(fisher.root, fisher.shift)
    held = [each for each in factors if isinstance(each, torch.Tensor)]
    saved = {buffer.data_ptr() for buffer in fisher.buffers()}
    assert not saved & {each.data_ptr() for each in held}
    assert sum(each.numel() for each in held) == 3 * 200 * (RANK + 1)
