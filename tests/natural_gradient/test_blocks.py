"""Roots in blocks: descent with the block-diagonal part of the inputs' covariance."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import perceptron, train, vectors
from natural_gradient.references_natural_gradient import damped_inverse, turns

SETTINGS = {"damping": 0.2, "decay": 0.9, "refresh_every": 3, "statistics_every": 1, "rank": None}


def preconditioner(blocks, moments):
    """Descent on [W b] by the inverse of the homogeneous information whose covariance is cut to blocks."""
    size = sum(len(block) for block in blocks)
    kernel, mean = torch.zeros(size, size), torch.zeros(size)
    for block, moment in zip(blocks, moments, strict=True):
        kernel[block[:, None], block] = damped_inverse(moment, 0.2, centred=True)[:-1, :-1]
        mean[block] = moment[-1, :-1]
    column = (kernel @ mean)[:, None]
    return torch.cat([torch.cat([kernel, -column], 1), torch.cat([-column.T, (1 + mean @ column)[None]], 1)])


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3)])
def test_descent_is_preconditioned_by_the_blocks_of_the_covariance(sizes):
    torch.manual_seed(0)
    size = sum(sizes)
    blocks = torch.arange(size).split(4)
    inputs, targets = torch.randn(50, size) @ torch.randn(size, size) + 1, torch.randint(0, 3, (50,))
    plain = nn.Linear(size, 3)
    model = reconstruct(copy.deepcopy(plain), block_size=4, **SETTINGS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    velocity, sums, total = 0, [0] * len(blocks), 0
    for step in range(12):
        batch = torch.randperm(50)[:30]
        (loss,) = train(model, optimizer, inputs[batch], targets[batch], 1)
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs[batch]), targets[batch])
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-9)
        total = 0.9 * total + 30
        for index, block in enumerate(blocks):
            # A block that is filled up has zeros among its inputs.
            rows = functional.pad(inputs[batch][:, block], (0, 4 - len(block)))
            rows = torch.cat([rows, torch.ones(30, 1)], 1)
            sums[index] = 0.9 * sums[index] + rows.T @ rows
        if step in turns(3, step):
            padded = torch.arange(4 * len(blocks)).split(4)
            inverse = preconditioner(padded, [moment / total for moment in sums])
            kept = [*range(size), len(inverse) - 1]
            inverse = inverse[kept][:, kept]
        velocity = 0.9 * velocity + torch.cat([plain.weight.grad, plain.bias.grad[:, None]], 1)
        change = 0.05 * velocity @ inverse
        with torch.no_grad():
            plain.weight -= change[:, :-1]
            plain.bias -= change[:, -1]


def test_one_block_is_the_dense_root_and_narrow_layers_are_not_cut():
    inputs, targets = vectors()
    finals = []
    for size in (None, 7, 100):
        model = reconstruct(perceptron(), block_size=size, **SETTINGS)
        finals.append(train(model, torch.optim.SGD(model.parameters(), lr=0.02), inputs, targets, 10)[-1])
    assert finals[1] != finals[0]  # its second layer has 9 inputs
    assert finals[2] == finals[0]


def test_a_block_that_never_varies_keeps_its_inputs():
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(20, 4) + 1, torch.zeros(20, 4)], 1)
    model = reconstruct(nn.Linear(8, 2), block_size=4, **SETTINGS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        (model(inputs) - 1).square().sum(1).mean().backward()
        optimizer.step()
    root = fisher_of(model).root.dense()
    torch.testing.assert_close(root[4:, 4:], torch.eye(4))
    assert not torch.allclose(root[:4, :4], torch.eye(4))


def test_a_checkpoint_resumes_fold_keeps_the_outputs_and_memory_is_that_of_the_blocks():
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 300), torch.randint(0, 3, (40,))
    model = reconstruct(nn.Sequential(nn.Linear(300, 3)), block_size=50, **SETTINGS)
    assert sum(buffer.numel() for buffer in model.buffers()) < 2 * 6 * 51**2 + 4 * 301
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    train(model, optimizer, inputs, targets, 4)
    other = reconstruct(nn.Sequential(nn.Linear(300, 3)), block_size=50, **SETTINGS)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    follower = torch.optim.SGD(other.parameters(), lr=0.02, momentum=0.9)
    follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, inputs, targets, 5) == train(other, follower, inputs, targets, 5)
    weights = plain_state_dict(model)
    before = model(inputs)
    torch.testing.assert_close(fold(model, optimizer)(inputs), before)
    torch.testing.assert_close(weights, dict(model.state_dict()))


@pytest.mark.parametrize("size", [0, 2.5, "wide"])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="block_size must be a whole number of inputs"):
        reconstruct(perceptron(), block_size=size)
