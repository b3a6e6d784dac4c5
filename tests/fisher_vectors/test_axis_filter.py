"""Banded matrices of filters along one axis against convolution with repeated borders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d, gaussian_filter1d

from fisherlayers.fisher_vectors import axis_filter
from fisherlayers.fisher_vectors.axis_filter import filter_bands, filter_first, filter_last, gaussian_filter_matrix

CPU = torch.device("cpu")
DOUBLE = (torch.float64, CPU)


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 90),
    radius=st.integers(0, 12),
    step=st.integers(1, 70),
    kernels=st.integers(1, 3),
    block=st.sampled_from([1, 5, 64]),
)
def test_equals_correlation_with_repeated_borders(length, radius, step, kernels, block):
    random = np.random.default_rng(length)
    taps = random.standard_normal((kernels, 2 * radius + 1))
    signal = random.standard_normal((3, length))
    first = np.arange(0, length, step)
    centres = np.minimum(first[:, None] + np.arange(kernels), length - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(axis_filter, "_BLOCK_PIXELS", block)
        blocks = axis_filter.axis_filter(length, centres, taps, DOUBLE)
    expected = np.empty((3, len(first), kernels))
    for k in range(kernels):
        padded = np.pad(signal, ((0, 0), (radius, radius)), mode="edge")
        for i, centre in enumerate(centres[:, k]):
            expected[:, i, k] = padded[:, centre : centre + 2 * radius + 1] @ taps[k]
    expected = torch.from_numpy(expected.reshape(3, -1))
    torch.testing.assert_close(filter_last(blocks, torch.from_numpy(signal)), expected)
    torch.testing.assert_close(filter_first(blocks, torch.from_numpy(signal.T)), expected.T)


@pytest.mark.parametrize("deviation", [0.4, 1.6, 7.0])
@pytest.mark.parametrize("length", [1, 30, 200])
def test_gaussian_equals_scipy(deviation, length):
    signal = np.random.default_rng(1).standard_normal((2, 5, length))
    blocks = gaussian_filter_matrix(length, deviation, *DOUBLE)
    expected = gaussian_filter1d(signal, deviation, mode="nearest", radius=int(np.ceil(4 * deviation)))
    torch.testing.assert_close(filter_last(blocks, torch.from_numpy(signal)), torch.from_numpy(expected))


def test_matrices_grow_linearly_with_the_axis():
    sizes = [
        sum(block.matrix.numel() for block in gaussian_filter_matrix(length, 1.6, *DOUBLE)) for length in (1000, 8000)
    ]
    assert sizes[1] < 8.5 * sizes[0]
    assert sizes[1] < 8000 * 100


@pytest.mark.parametrize("working_pixels", [1, 700, 10**6])
def test_bands_equal_two_whole_passes(working_pixels, monkeypatch):
    maps = torch.rand(150, 2, 4, 90, dtype=torch.float64)
    taps = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    y_blocks, x_blocks = (
        axis_filter.axis_filter(length, np.arange(1, length - 1, 3)[:, None] + [0, 1], taps, DOUBLE)
        for length in (150, 90)
    )
    monkeypatch.setattr(axis_filter, "_working_pixels", lambda device: working_pixels)
    asked = []

    def rows(low, high):
        asked.append(high - low)
        return maps[low:high]

    pieces = [product for _, product in filter_bands(y_blocks, x_blocks, rows, 2, 90)]
    expected = filter_first(y_blocks, filter_last(x_blocks, maps))
    torch.testing.assert_close(torch.cat(pieces).flatten(end_dim=1).mT, expected)
    slow = correlate1d(correlate1d(maps.numpy(), taps[0], axis=0, mode="nearest"), taps[1], axis=3, mode="nearest")
    x_centres = np.minimum(np.arange(1, 89, 3) + 1, 89)
    torch.testing.assert_close(expected[::2, ..., 1::2], torch.from_numpy(slow[1:149:3][..., x_centres]))
    if working_pixels < 10**6:
        assert max(asked) <= max(working_pixels // 180, 64 + 6)


def test_products_in_place_equal_those_of_autograd():
    blocks = gaussian_filter_matrix(200, 2.0, *DOUBLE)
    assert len(blocks) > 1
    signal = torch.rand(3, 200, dtype=torch.float64)
    plain = filter_last(blocks, signal)
    signal.requires_grad_()
    tracked = filter_last(blocks, signal)
    torch.testing.assert_close(tracked.detach(), plain)
    (gradient,) = torch.autograd.grad(tracked.sum(), signal)
    ones = torch.ones(1, 200, dtype=torch.float64)
    columns = torch.zeros(200, dtype=torch.float64)
    for block in blocks:
        columns[slice(*block.pixels)] += block.matrix.sum(dim=0)
    torch.testing.assert_close(gradient, columns * ones.expand(3, -1))
