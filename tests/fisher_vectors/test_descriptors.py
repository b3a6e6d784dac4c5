"""What all extractors share: the grid, the checks of images, luminance, rescaling, configurations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fisherlayers.fisher_vectors.descriptors import (
    Configurable,
    DescriptorExtractor,
    check_grid,
    check_images,
    grid_axis,
    grid_positions,
    luminance,
    rescale_to_max_pixels,
    safe_sqrt,
)
from fisherlayers.fisher_vectors.sift import DenseSift

CPU = torch.device("cpu")


@given(length=st.integers(1, 200), span=st.integers(0, 60), step=st.integers(1, 20))
def test_grid_holds_as_many_patches_as_fit_and_is_centred(length, span, step):
    first, count = grid_axis(length, span, step)
    starts = [start for start in range(0, length) if start + span <= length - 1]
    assert count == len(starts[::step])
    if count > 0:
        left, right = first, length - 1 - (first + step * (count - 1) + span)
        assert 0 <= right - left <= 1
        assert left + right < step


@given(height=st.integers(1, 60), width=st.integers(1, 60), span=st.sampled_from([5, 12]), step=st.integers(1, 7))
def test_positions_are_the_centres_of_patches(height, width, span, step):
    positions = grid_positions(height, width, span, step, torch.float64, CPU)
    (top, rows), (left, cols) = grid_axis(height, span, step), grid_axis(width, span, step)
    assert positions.shape == (rows, cols, 2)
    for row in range(rows):
        for col in range(cols):
            x, y = positions[row, col].tolist()
            # Undone: pixel x covers [x, x + 1] of the width.
            assert (x + 0.5) * width == pytest.approx(left + step * col + span / 2 + 0.5)
            assert (y + 0.5) * height == pytest.approx(top + step * row + span / 2 + 0.5)
    assert bool((positions.abs() < 0.5).all())


def test_luminance():
    images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]]).reshape(4, 3, 1, 1)
    torch.testing.assert_close(luminance(images).flatten(), torch.tensor([0.299, 0.587, 0.114, 0.5]))
    assert torch.equal(luminance(images[:, 0]), images[:, 0])
    torch.testing.assert_close(luminance(images[:, :1]), luminance(images[:, 0]))


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    max_pixels=st.integers(1, 3000),
    channels=st.sampled_from([1, 3]),
)
def test_rescaled_images_have_at_most_max_pixels(height, width, max_pixels, channels):
    image = torch.linspace(0, 1, channels * height * width).reshape(channels, height, width)
    small = rescale_to_max_pixels(image, max_pixels)
    rows, cols = small.shape[-2:]
    if height * width <= max_pixels:
        assert small is image
        return
    assert small.shape == (channels, rows, cols)
    assert 1 <= rows * cols <= max_pixels
    assert 0 <= small.min() <= small.max() <= 1
    if min(rows, cols) > 1:
        # Each side is rounded down from the exact ratio, and no more.
        factor = (max_pixels / (height * width)) ** 0.5
        assert rows == int(height * factor)
        assert cols == int(width * factor)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1), (2, 500_000)])
def test_extreme_panoramas_are_rescaled(shape):
    rows, cols = rescale_to_max_pixels(torch.rand(shape), 1000).shape
    assert 500 <= rows * cols <= 1000


def test_rescaling_filters_as_pillow_does():
    image = torch.rand(60, 90, generator=torch.Generator().manual_seed(3))
    small = rescale_to_max_pixels(image, 30 * 45)
    assert small.shape == (30, 45)
    expected = Image.fromarray(image.numpy()).resize((45, 30), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(small.numpy(), np.asarray(expected), atol=1e-5)
    batch = rescale_to_max_pixels(torch.stack([image, 1 - image]).expand(2, 2, 60, 90), 30 * 45)
    torch.testing.assert_close(batch[0, 1], 1 - small)


def test_max_pixels_below_one_is_refused():
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        rescale_to_max_pixels(torch.rand(3, 3), 0)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 1, 5, 6), (2, 3, 5, 6), (0, 5, 6), (1, 1, 1)])
def test_good_images_pass(shape):
    check_images(torch.rand(shape))
    check_images(torch.rand(shape, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (np.zeros((1, 4, 4)), TypeError, "must be a torch.Tensor, got ndarray: use torch.from_numpy"),
        (
            torch.zeros(1, 4, 4, dtype=torch.uint8),
            TypeError,
            "got torch.uint8: convert, and divide 8-bit images by 255",
        ),
        (torch.zeros(1, 4, 4, dtype=torch.float16), TypeError, "must be float32 or float64"),
        (torch.zeros(4, 4), ValueError, r"must be \(B, H, W\) grey, .* got shape \(4, 4\)"),
        (torch.zeros(1, 4, 4, 3), ValueError, r"got shape \(1, 4, 4, 3\)"),
        (torch.zeros(1, 2, 4, 4), ValueError, r"got shape \(1, 2, 4, 4\)"),
        (torch.zeros(1, 0, 4), ValueError, r"at least one pixel, got shape \(1, 0, 4\)"),
        (torch.full((2, 4, 4), torch.nan), ValueError, "NaN or infinite pixels"),
        (torch.tensor([[[0.0, -torch.inf]]]), ValueError, "NaN or infinite pixels"),
    ],
)
def test_bad_images_are_refused(images, error, match):
    with pytest.raises(error, match=match):
        check_images(images)


def test_one_nan_among_good_pixels_is_found():
    images = torch.rand(2, 3, 20, 20)
    images[1, 2, 7, 11] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        check_images(images)


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "4"])
def test_sizes_of_a_grid_are_whole_pixels(size):
    check_grid(step=1, bin_size=7)
    with pytest.raises(ValueError, match="cell must be a whole number of pixels, at least 1, got"):
        check_grid(step=1, cell=size)


def test_safe_sqrt_has_gradient_zero_at_zero():
    values = torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(safe_sqrt(values), values.sqrt())
    values.requires_grad_()
    roots = safe_sqrt(values)
    roots.sum().backward()
    torch.testing.assert_close(roots.detach(), values.detach().sqrt())
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Settings(Configurable):
    type_name: ClassVar[str] = "settings"
    sizes: tuple[int, ...] = (1, 2)
    power: float = 0.5


def test_configuration_of_plain_types():
    assert Settings((3,)).to_config() == {"type": "settings", "sizes": [3], "power": 0.5}
    assert Settings.from_config({"type": "settings", "sizes": [3], "power": 0.5}) == Settings((3,))
    assert Settings.from_config({"power": 1.0}) == Settings(power=1.0)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"type": "other"}, "config is of type 'other', expected 'settings'"),
        (
            {"type": "settings", "strength": 1},
            r"unknown settings \['strength'\], expected some of \['sizes', 'power'\]",
        ),
    ],
)
def test_foreign_configurations_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        Settings.from_config(config)


def test_extractors_satisfy_the_protocol():
    assert isinstance(DenseSift(), DescriptorExtractor)
    assert not isinstance(Settings(), DescriptorExtractor)
