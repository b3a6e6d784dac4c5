"""Local colour statistics against loops over the pixels of each cell, and their invariances."""

import json
from math import ceil, floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.fisher_vectors.color import LocalColorStatistics, local_color_statistics
from fisherlayers.fisher_vectors.sift import dense_sift


def random_images(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def slow_patch(image, centre, bin_size):
    """The 96 statistics of one patch of an RGB image (3, H, W), by loops over cells, channels and pixels."""
    height, width = image.shape[1:]
    values = []
    for y_bin in range(4):
        for x_bin in range(4):
            left, right = (centre[0] + bin_size * (x_bin - 1.5) + side * bin_size / 2 for side in (-1, 1))
            top, bottom = (centre[1] + bin_size * (y_bin - 1.5) + side * bin_size / 2 for side in (-1, 1))
            means, deviations = [], []
            for channel in image:
                pixels, shares = [], []
                for y in range(floor(top), ceil(bottom) + 1):
                    for x in range(floor(left), ceil(right) + 1):
                        # The overlap of the cell with the unit square of the pixel.
                        across = max(0.0, min(right, x + 0.5) - max(left, x - 0.5))
                        along = max(0.0, min(bottom, y + 0.5) - max(top, y - 0.5))
                        pixels.append(channel[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
                        shares.append(across * along)
                pixels, shares = torch.stack(pixels), torch.tensor(shares, dtype=image.dtype) / bin_size**2
                mean = (shares * pixels).sum()
                means.append(mean)
                deviations.append((shares * (pixels - mean) ** 2).sum().sqrt())
            values += means + deviations
    return torch.stack(values)


def patch_centres(grid, height, width):
    """Pixel coordinates (x, y) of the grid's patches."""
    return (grid.positions.double() + 0.5) * torch.tensor([width, height]) - 0.5


@pytest.mark.parametrize("bin_size", [1, 2, 3, 4, 5])
def test_equals_loops(bin_size):
    image = random_images(3, 3 * bin_size + 5, 3 * bin_size + 8)
    grid = local_color_statistics(image[None], bin_size=bin_size, step=3)
    centres = patch_centres(grid, *image.shape[1:])
    assert grid.descriptors.shape[1:3] == (2, 3)
    for row, col in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        expected = slow_patch(image, centres[row, col].tolist(), bin_size)
        torch.testing.assert_close(grid.descriptors[0, row, col], expected, rtol=1e-10, atol=1e-10)


def test_patches_far_into_a_large_image_equal_loops():
    # Long enough for several blocks of the axes' matrices and several bands of rows.
    image = random_images(3, 310, 620)
    grid = local_color_statistics(image[None], bin_size=2, step=2)
    centres = patch_centres(grid, 310, 620)
    rows, cols = grid.descriptors.shape[1:3]
    for row, col in [(0, cols - 1), (31, 32), (32, 31), (107, 200), (rows - 1, 0), (rows - 1, cols - 1)]:
        expected = slow_patch(image, centres[row, col].tolist(), 2)
        torch.testing.assert_close(grid.descriptors[0, row, col], expected, rtol=1e-10, atol=1e-10)


def test_stands_on_the_grid_of_sift():
    images = random_images(1, 3, 37, 52)
    for color, bin_size in zip(LocalColorStatistics((2, 4, 5), step=3)(images), (2, 4, 5), strict=True):
        sift = dense_sift(images, bin_size=bin_size, step=3)
        assert torch.equal(color.positions, sift.positions)
        assert color.scale == sift.scale == bin_size
        assert color.descriptors.shape == (*sift.descriptors.shape[:3], 96)


@settings(deadline=None, max_examples=20)
@given(
    colors=st.tuples(*[st.floats(0, 1, width=32)] * 3),
    background=st.floats(0, 1, width=32),
    bin_size=st.integers(1, 6),
)
def test_cells_of_one_color_have_no_deviation(colors, background, bin_size):
    images = torch.full((1, 3, 40, 60), background)
    images[:, :, :, 15:] = torch.tensor(colors)[:, None, None]
    grid = local_color_statistics(images, bin_size=bin_size, step=2)
    inside = patch_centres(grid, 40, 60)[0, :, 0] - 2 * bin_size >= 15
    cells = grid.descriptors[0, :, inside].unflatten(-1, (16, 6))
    assert inside.any()
    assert (cells[..., 3:] == 0).all()
    torch.testing.assert_close(cells[..., :3], torch.tensor(colors).expand_as(cells[..., :3]), rtol=1e-6, atol=1e-6)


def test_brightness_moves_means_and_contrast_scales_all():
    images = random_images(2, 3, 30, 26)

    def means_and_deviations(images):
        grid = local_color_statistics(images, bin_size=4, step=2)
        return grid.descriptors.unflatten(-1, (16, 2, 3)).unbind(-2)

    mean, deviation = means_and_deviations(images)
    changed_mean, changed_deviation = means_and_deviations(0.3 * images + 0.2)
    torch.testing.assert_close(changed_mean, 0.3 * mean + 0.2)
    torch.testing.assert_close(changed_deviation, 0.3 * deviation)


def test_a_quarter_turn_permutes_cells_and_positions():
    images = random_images(1, 3, 25, 31)  # both axes leave an even remainder, so that the grid is symmetric
    grid = local_color_statistics(images, bin_size=4, step=2)
    turned = local_color_statistics(images.rot90(dims=(2, 3)), bin_size=4, step=2)
    cells = grid.descriptors.unflatten(-1, (4, 4, 6))
    expected = cells.rot90(dims=(1, 2)).rot90(dims=(3, 4))
    torch.testing.assert_close(turned.descriptors.unflatten(-1, (4, 4, 6)), expected)


def test_a_shift_by_the_step_shifts_the_grid():
    images = random_images(1, 3, 60, 60)
    here, there = (
        local_color_statistics(images[:, :, shift : shift + 40, shift : shift + 40], bin_size=3, step=4).descriptors
        for shift in (0, 4)
    )
    # The first and last bins may see the border.
    torch.testing.assert_close(here[:, 2:-1, 2:-1], there[:, 1:-2, 1:-2])


def test_a_batch_equals_its_images_one_by_one():
    images = random_images(5, 3, 128, 160)  # more pixels than are worked off at once
    batched = local_color_statistics(images, bin_size=6, step=5).descriptors
    for image, descriptors in zip(images, batched, strict=True):
        torch.testing.assert_close(
            descriptors[None], local_color_statistics(image[None], bin_size=6, step=5).descriptors
        )


def test_float32_is_close_to_float64():
    images = random_images(1, 3, 64, 64)
    exact, single = (local_color_statistics(x, bin_size=4, step=4).descriptors for x in (images, images.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)


def test_grey_counts_as_equal_channels():
    grey = random_images(2, 20, 24)
    as_rgb = local_color_statistics(grey[:, None].repeat(1, 3, 1, 1), bin_size=3, step=2).descriptors
    assert torch.equal(local_color_statistics(grey, bin_size=3, step=2).descriptors, as_rgb)
    assert torch.equal(local_color_statistics(grey[:, None], bin_size=3, step=2).descriptors, as_rgb)


def test_gradients_match_finite_differences_and_vanish_where_flat():
    images = random_images(1, 3, 9, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_color_statistics(x, bin_size=2, step=1).descriptors, images)
    flat = torch.full((1, 3, 9, 8), 0.25, requires_grad=True)
    local_color_statistics(flat, bin_size=2, step=1).descriptors.sum().backward()
    # A mean is 1-homogeneous in the pixels: 2 x 3 patches of 16 cells of 3 means.
    assert flat.grad.sum().item() == pytest.approx(3 * 2 * 3 * 16)


@pytest.mark.parametrize(("height", "width", "grid_shape"), [(1, 1, (0, 0)), (12, 40, (0, 14)), (40, 12, (14, 0))])
def test_images_smaller_than_a_patch_give_an_empty_grid(height, width, grid_shape):
    grid = local_color_statistics(torch.rand(2, 3, height, width), bin_size=4, step=2)
    assert grid.descriptors.shape == (2, *grid_shape, 96)
    assert grid.positions.shape == (*grid_shape, 2)


def test_the_settings_survive_json():
    extractor = LocalColorStatistics((3, 5), step=2)
    again = LocalColorStatistics.from_config(json.loads(json.dumps(extractor.to_config())))
    assert again == extractor
    assert again.num_features == 96


@pytest.mark.parametrize(
    ("images", "sizes", "message"),
    [
        (torch.rand(1, 2, 30, 30), {}, r"\(B, 3, H, W\) RGB, got shape \(1, 2, 30, 30\)"),
        (torch.full((1, 3, 30, 30), torch.nan), {}, "NaN or infinite"),
        (torch.rand(1, 3, 30, 30), {"bin_size": 0}, "bin_size must be a whole number of pixels, at least 1, got 0"),
        (torch.rand(1, 3, 30, 30), {"step": 1.5}, "step must be a whole number of pixels, at least 1, got 1.5"),
    ],
)
def test_bad_input_is_refused_by_name(images, sizes, message):
    with pytest.raises(ValueError, match=message):
        local_color_statistics(images, **{"bin_size": 4, "step": 4, **sizes})
