"""Raw patches against loops over the pixels, and their invariances."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.fisher_vectors.patches import RawPatches, raw_patches


def random_images(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def slow_patches(image, side, cell_size, step, contrast):
    """Patches of an image (C, H, W) by loops over patches, cells and channels; the centres in pixels beside them."""
    image = image.numpy()
    extent = side * cell_size
    corners = []
    for length in image.shape[1:]:
        count = (length - extent) // step + 1
        used = extent + (count - 1) * step
        corners.append([(length - used) // 2 + index * step for index in range(count)])
    patches, centres = [], []
    for top in corners[0]:
        for left in corners[1]:
            cells = []
            for y in range(top, top + extent, cell_size):
                for x in range(left, left + extent, cell_size):
                    cells += [channel[y : y + cell_size, x : x + cell_size].mean() for channel in image]
            cells = np.array(cells)
            patches.append((cells - cells.mean()) / np.sqrt(cells.var() + contrast))
            centres.append((left + (extent - 1) / 2, top + (extent - 1) / 2))
    shape = len(corners[0]), len(corners[1]), -1
    return torch.tensor(np.array(patches)).reshape(shape), torch.tensor(centres, dtype=torch.float64).reshape(shape)


@settings(deadline=None, max_examples=30)
@given(
    side=st.integers(1, 5),
    cell_size=st.integers(1, 3),
    step=st.integers(1, 4),
    color=st.booleans(),
    height=st.integers(15, 22),
    width=st.integers(15, 22),
)
def test_equals_loops(side, cell_size, step, color, height, width):
    images = random_images(2, 3, height, width)
    if not color:
        images = images[:, 0]
    grid = raw_patches(images, side=side, cell_size=cell_size, step=step, color=color, contrast=0.01)
    for image, patches in zip(images, grid.descriptors, strict=True):
        expected, centres = slow_patches(image if color else image[None], side, cell_size, step, 0.01)
        torch.testing.assert_close(patches, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close((grid.positions + 0.5) * torch.tensor([width, height]) - 0.5, centres)
    assert grid.scale == side * cell_size / 4


def test_brightness_changes_nothing_and_contrast_saturates():
    images = random_images(1, 20, 20)
    plain, brighter, stronger = (
        raw_patches(x, side=6, contrast=1e-6).descriptors for x in (images, images + 0.3, 0.5 * images)
    )
    torch.testing.assert_close(brighter, plain)
    torch.testing.assert_close(stronger, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plain.square().mean(dim=-1), torch.ones_like(plain[..., 0]), rtol=1e-3, atol=0)


def test_faint_patches_stay_small():
    images = 0.5 + 1e-4 * random_images(1, 12, 12)
    assert raw_patches(images, side=6).descriptors.abs().max() < 0.02


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0])
def test_flat_patches_are_zero(value):
    descriptors = raw_patches(torch.full((1, 3, 9, 9), value), side=6, color=True).descriptors
    assert descriptors.abs().max() < 1e-4


def test_color_of_grey_images_counts_as_equal_channels():
    grey = random_images(2, 9, 10)
    expected = raw_patches(grey[:, None].repeat(1, 3, 1, 1), side=3, color=True).descriptors
    assert torch.equal(raw_patches(grey, side=3, color=True).descriptors, expected)


def test_luminance_of_color_images():
    rgb = random_images(2, 3, 9, 10)
    grey = torch.einsum("bchw,c->bhw", rgb, torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))
    torch.testing.assert_close(raw_patches(rgb, side=3).descriptors, raw_patches(grey, side=3).descriptors)


def test_a_quarter_turn_turns_the_patches():
    images = random_images(1, 15, 19)
    grid, turned = (
        raw_patches(x, side=3, step=2).descriptors.unflatten(-1, (3, 3)) for x in (images, images.rot90(dims=(1, 2)))
    )
    torch.testing.assert_close(turned, grid.rot90(dims=(1, 2)).rot90(dims=(3, 4)))


def test_gradients_match_finite_differences_and_are_finite_where_flat():
    images = random_images(1, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: raw_patches(x, side=3, cell_size=2).descriptors, images)
    flat = torch.full((1, 8, 8), 0.5, requires_grad=True)
    raw_patches(flat, side=3).descriptors[..., 0].sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert flat.grad.abs().max() > 0


def test_float32_is_close_to_float64():
    images = random_images(1, 30, 30)
    exact, single = (raw_patches(x, side=6).descriptors for x in (images, images.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "grid_shape"), [(1, 1, (0, 0)), (5, 9, (0, 4)), (9, 5, (4, 0))])
def test_images_smaller_than_a_patch_give_an_empty_grid(height, width, grid_shape):
    grid = raw_patches(torch.rand(2, height, width), side=3, cell_size=2)
    assert grid.descriptors.shape == (2, *grid_shape, 9)
    assert grid.positions.shape == (*grid_shape, 2)


def test_one_grid_a_cell_size_and_the_settings_survive_json():
    extractor = RawPatches(side=4, cell_sizes=(1, 2), step=2, color=True, contrast=0.1)
    again = RawPatches.from_config(json.loads(json.dumps(extractor.to_config())))
    assert again == extractor
    assert again.num_features == 48
    images = random_images(2, 3, 12, 12)
    for grid, cell_size in zip(again(images), (1, 2), strict=True):
        expected = raw_patches(images, side=4, cell_size=cell_size, step=2, color=True, contrast=0.1)
        assert torch.equal(grid.descriptors, expected.descriptors)
        assert grid.scale == cell_size


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (torch.rand(1, 2, 9, 9), {}, r"\(B, 3, H, W\) RGB, got shape \(1, 2, 9, 9\)"),
        (torch.full((1, 9, 9), torch.inf), {}, "NaN or infinite"),
        (torch.rand(1, 9, 9), {"side": 0}, "side must be a whole number of pixels, at least 1, got 0"),
        (torch.rand(1, 9, 9), {"cell_size": -1}, "cell_size must be a whole number of pixels, at least 1, got -1"),
        (torch.rand(1, 9, 9), {"step": 0}, "step must be a whole number of pixels, at least 1, got 0"),
        (torch.rand(1, 9, 9), {"contrast": 0.0}, r"contrast must be positive .*, got 0.0"),
    ],
)
def test_bad_input_is_refused_by_name(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        raw_patches(images, **{"side": 3, **arguments})
