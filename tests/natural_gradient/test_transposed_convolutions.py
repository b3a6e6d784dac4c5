"""Transposed convolutions are the linear layers of the rows that they are observed with, and train as such."""

import copy
import itertools

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import Layout, fold, plain_state_dict, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import layers_of, rows_of
from natural_gradient.references_natural_gradient import PreconditionedDescent

LAYERS = {
    "1d": (lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 5)),
    "1d stride, dilation": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, dilation=2, padding=1), (2, 3, 5)),
    "1d padding beyond the kernel": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2, padding=2), (2, 2, 6)),
    "2d": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 5)),
    "2d oblong": (
        lambda: nn.ConvTranspose2d(2, 4, (3, 2), stride=(1, 2), padding=(0, 1), output_padding=(0, 1)),
        (2, 2, 4, 3),
    ),
    "2d groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, padding=1), (2, 4, 3, 4)),
    "3d groups": (lambda: nn.ConvTranspose3d(4, 2, 2, groups=2, stride=(1, 2, 1)), (2, 4, 3, 2, 3)),
}


def by_loops(layer, inputs):
    """Every row, written out: entry (i, k) of position p is the input whose product with W[i, :, k] reaches p."""
    outputs = layer(inputs).shape[2:]
    groups = []
    for group in inputs.chunk(layer.groups, 1):
        rows = []
        for image in group:
            for position in itertools.product(*map(range, outputs)):
                row = []
                for channel in image:
                    for k in itertools.product(*map(range, layer.kernel_size)):
                        spread = [
                            p + pad - o * d
                            for p, pad, o, d in zip(position, layer.padding, k, layer.dilation, strict=True)
                        ]
                        source = [divmod(q, s) for q, s in zip(spread, layer.stride, strict=True)]
                        inside = all(
                            rest == 0 and 0 <= q < size for (q, rest), size in zip(source, channel.shape, strict=True)
                        )
                        row.append(channel[tuple(q for q, _ in source)] if inside else torch.zeros(()))
                rows.append(torch.stack(row))
        groups.append(torch.stack(rows))
    return torch.stack(groups)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_equal_loops_over_positions(name):
    make, shape = LAYERS[name]
    layer, inputs = make(), torch.randn(shape)
    rows = rows_of(layer, inputs)
    torch.testing.assert_close(rows if layer.groups > 1 else rows[None], by_loops(layer, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_transposed_convolution_is_the_linear_layer_of_its_rows(name):
    make, shape = LAYERS[name]
    layer, inputs = make(), torch.randn(shape)
    layout = Layout(layer.groups, transposed=True)
    rows, weight, bias = rows_of(layer, inputs), layout.rows(layer.weight), layout.entries(layer.bias)
    outputs = rows @ weight.mT + bias.unsqueeze(-2)
    expected = layer(inputs).movedim(1, -1).reshape(-1, layer.groups, layer.out_channels // layer.groups)
    torch.testing.assert_close(outputs if layer.groups > 1 else outputs[None], expected.transpose(0, 1))


def test_a_wanted_output_size_counts():
    layer, inputs = reconstruct(nn.ConvTranspose2d(2, 3, 3, stride=2)), torch.randn(2, 2, 4, 4)
    outputs = layer(inputs, output_size=[10, 9])
    assert fisher_of(layer).pending.number == outputs[:, 0].numel()


def test_an_input_without_batch():
    layer, inputs = nn.ConvTranspose1d(2, 3, 3, stride=2), torch.randn(2, 4)
    assert torch.equal(rows_of(layer, inputs), rows_of(layer, inputs[None]))


@pytest.mark.parametrize("groups", [1, 2])
def test_descent_is_preconditioned_descent_on_the_rows(groups):
    torch.manual_seed(0)
    plain, inputs = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), torch.randn(3, 4, 3, 3) + 1
    model = reconstruct(copy.deepcopy(plain), damping=0.1, decay=0.9, refresh_every=4, statistics_every=1, rank=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    aim, layout = torch.randn_like(plain(inputs)), Layout(groups, transposed=True)
    # The reference holds one linear layer a group: the rows of the weight, and their part of the bias.
    split = (lambda t: t) if groups > 1 else (lambda t: t[None])
    parts = [nn.Linear(rows.shape[1], len(rows)) for rows in split(layout.rows(plain.weight))]
    reference = PreconditionedDescent(parts, lr=0.05, damping=0.1, decay=0.9, refresh_every=4, momentum=0.9)
    for part, rows, bias in zip(
        parts, split(layout.rows(plain.weight)), split(layout.entries(plain.bias)), strict=True
    ):
        with torch.no_grad():
            part.weight.copy_(rows), part.bias.copy_(bias)
    seen = split(rows_of(plain, inputs))
    for _ in range(25):
        optimizer.zero_grad()
        loss = (model(inputs) - aim).square().mean()
        loss.backward()
        optimizer.step()
        outputs = torch.stack([part(rows) for part, rows in zip(parts, seen, strict=True)])
        expected = (outputs.transpose(0, 1).flatten(1) - aim.movedim(1, -1).flatten(0, -2)).square().mean()
        for part in parts:
            part.zero_grad()
        expected.backward()
        reference.step(list(seen))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    plain_weight = layout.tensor(torch.stack([part.weight for part in parts]), plain.weight.shape)
    torch.testing.assert_close(model.weight, plain_weight)
    torch.testing.assert_close(model.bias, torch.cat([part.bias for part in parts]))


@pytest.mark.parametrize("name", LAYERS)
def test_refresh_fold_and_plain_keys(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain, inputs = make(), torch.randn(shape) + 1
    model = reconstruct(copy.deepcopy(plain), refresh_every=2, statistics_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    before, exported = model(inputs), plain_state_dict(model)
    refresh(model)
    torch.testing.assert_close(model(inputs), before)
    fold(model)
    torch.testing.assert_close(model(inputs), before)
    plain.load_state_dict(exported)
    torch.testing.assert_close(plain(inputs), before)
    fresh = reconstruct(make())
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(inputs), before)
    assert layers_of(model) == []
