"""What a layer sees: a convolution is the linear layer of its unfolded patches."""

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import reconstruct
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.rules.convolution import patches
from natural_gradient.cases_natural_gradient import rows_of
from natural_gradient.references_natural_gradient import unfolded

CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 9)),
    "1d stride, dilation": (lambda: nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=2), (2, 3, 11)),
    "1d circular": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7)),
    "1d same, odd kernel": (lambda: nn.Conv1d(3, 4, 3, dilation=2, padding="same"), (2, 3, 7)),
    "2d": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 6)),
    "2d oblong": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (2, 2, 7, 6)),
    "2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 4)),
    "2d depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, stride=2), (2, 3, 6, 7)),
    "2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    "2d replicate": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 2), padding_mode="replicate"), (2, 2, 5, 5)),
    "2d valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 5)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (2, 2, 3, 4, 3)),
    "3d groups": (lambda: nn.Conv3d(2, 4, (1, 2, 2), groups=2), (1, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_equal_loops_over_patches(name):
    make, shape = CONVOLUTIONS[name]
    layer, images = make(), torch.randn(shape)
    rows = rows_of(layer, images)
    expected = unfolded(layer, images)
    torch.testing.assert_close(rows if layer.groups > 1 else rows[None], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_linear_layer_of_its_rows(name):
    make, shape = CONVOLUTIONS[name]
    layer, images = make(), torch.randn(shape)
    rows = rows_of(layer, images)
    layout = Layout(layer.groups)
    weight, bias = layout.rows(layer.weight), layout.entries(layer.bias)
    outputs = rows @ weight.mT + bias.unsqueeze(-2)  # (groups, batch x positions, out / groups)
    by_convolution = layer(images)
    expected = by_convolution.movedim(1, -1).reshape(-1, layer.groups, layer.out_channels // layer.groups)
    torch.testing.assert_close(outputs if layer.groups > 1 else outputs[None], expected.transpose(0, 1))


def test_an_image_without_batch_is_a_batch_of_one():
    layer, image = nn.Conv2d(2, 3, 3), torch.randn(2, 5, 5)
    assert torch.equal(patches(layer, image), patches(layer, image[None]))


def test_a_linear_layer_sees_every_leading_position():
    layer, inputs = nn.Linear(4, 2), torch.randn(3, 5, 4)
    assert torch.equal(rows_of(layer, inputs), inputs.reshape(15, 4))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)])
def test_many_rows_are_thinned_out_evenly_and_the_same_at_every_call(layer):
    # Every position and channel holds its own number, so a row says where it comes from.
    positions = torch.arange(40.0 * 25).reshape(40, 1, 5, 5) + torch.zeros(1, 4, 1, 1)
    rows = rows_of(layer, positions, max_rows=200)
    assert rows.shape[-2] == 200
    assert torch.equal(rows, rows_of(layer, positions, max_rows=200))
    drawn = rows.reshape(-1, 200, rows.shape[-1])[0, :, 0].long()
    assert len(drawn.unique()) == 200
    assert len((drawn % 25).unique()) == 25  # every position of the image
    assert (drawn // 25).bincount(minlength=40).min() >= 4  # every image, 5 times on average


@pytest.mark.parametrize(("inputs", "counted"), [(4, 1024), (700, 1400), (2500, 4096)])
def test_a_linear_layer_with_many_rows_counts_as_many_as_its_directions_need(inputs, counted):
    layer = reconstruct(nn.Linear(inputs, 2))
    rows = torch.arange(5_000.0).unsqueeze(1) + torch.zeros(inputs)
    layer(rows)
    pending = fisher_of(layer).pending
    assert pending.number == counted
    mean = (pending.origin + pending.sums[-1, :-1] / counted)[0]
    assert abs(mean - rows.mean()) < 10


def test_the_relative_information_of_units_counts_all_rows_that_are_allowed():
    model = reconstruct(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)), mode="unit")
    model(torch.randn(5_000, 4, generator=torch.Generator().manual_seed(0)))
    assert fisher_of(model[0])._rows == 4096
