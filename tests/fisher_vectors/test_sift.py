"""Dense SIFT against its definition in loops, against VLFeat's values, and its symmetries."""

import itertools
import json
from math import ceil, exp, hypot
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.fisher_vectors import axis_filter, sift
from fisherlayers.fisher_vectors.sift import DenseSift, dense_sift

VLFEAT = np.load(Path(__file__).parent / "fixtures" / "vlfeat_sift.npz")
PLAIN = {"smooth": False, "root": False, "contrast_threshold": 0.0}


def random_images(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def slow_smooth(image, bin_size):
    """Gaussian of variance (b / 6)^2 - 1/4, cut off at 4 standard deviations, the border repeated; pixel by pixel."""
    deviation = max(0.0, (bin_size / 6) ** 2 - 0.25) ** 0.5
    if deviation == 0:
        return image
    radius = ceil(4 * deviation)
    weights = {(v, u): exp(-(u * u + v * v) / (2 * deviation**2)) for v, u in square(radius)}
    total = sum(weights.values())
    padded = np.pad(image, radius, mode="edge")
    smooth = np.zeros_like(image)
    for y, x in np.ndindex(*image.shape):
        for (v, u), weight in weights.items():
            smooth[y, x] += weight / total * padded[y + radius + v, x + radius + u]
    return smooth


def square(radius):
    return itertools.product(range(-radius, radius + 1), repeat=2)


def slow_histogram(image, centre, bin_size, window, window_size):
    """The 128 sums of one patch, by loops over bins, pixels and orientations."""
    height, width = image.shape
    along, across = np.gradient(image)
    histogram = np.zeros((4, 4, 8))
    for j, i in np.ndindex(4, 4):
        from_patch_y, from_patch_x = bin_size * (j - 1.5), bin_size * (i - 1.5)
        near = list(square(bin_size - 1))
        gaussians = {
            (v, u): exp(-((from_patch_x + u) ** 2 + (from_patch_y + v) ** 2) / (2 * (bin_size * window_size) ** 2))
            for v, u in near
        }
        flat = sum(gaussians.values()) / len(near)
        for v, u in near:
            x = min(max(round(centre[0] + from_patch_x + u), 0), width - 1)
            y = min(max(round(centre[1] + from_patch_y + v), 0), height - 1)
            triangle = (1 - abs(u) / bin_size) * (1 - abs(v) / bin_size)
            weight = triangle * (flat if window == "flat" else gaussians[v, u])
            magnitude = hypot(across[y, x], along[y, x])
            direction = np.degrees(np.arctan2(along[y, x], across[y, x]))
            for t in range(8):
                apart = abs((direction - 45 * t + 180) % 360 - 180)
                histogram[j, i, t] += weight * magnitude * max(0.0, 1 - apart / 45)
    return histogram.ravel()


def slow_descriptor(histogram, *, root):
    if not histogram.any():
        return histogram
    clamped = np.minimum(histogram / np.linalg.norm(histogram), 0.2)
    return np.sqrt(clamped / clamped.sum()) if root else clamped / np.linalg.norm(clamped)


def slow_sift(image, *, bin_size, step, window="gaussian", window_size=2.0, smooth=True, root=True):
    image = slow_smooth(image, bin_size) if smooth else image
    centres = []
    for length in image.shape:
        count = (length - 1 - 3 * bin_size) // step + 1
        used = 3 * bin_size + step * (count - 1)
        first = (length - 1 - used) // 2
        centres.append([first + step * k + 1.5 * bin_size for k in range(count)])
    rows = [
        [slow_descriptor(slow_histogram(image, (x, y), bin_size, window, window_size), root=root) for x in centres[1]]
        for y in centres[0]
    ]
    return np.array(rows)


CASES = [
    {"bin_size": 1, "step": 3},
    {"bin_size": 2, "step": 4, "window": "flat"},
    {"bin_size": 3, "step": 5, "window_size": 1.5},
    {"bin_size": 4, "step": 3, "root": False},
    {"bin_size": 4, "step": 2, "window": "flat", "window_size": 1.5},
    {"bin_size": 5, "step": 1, "smooth": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_definition(case):
    side = 3 * case["bin_size"] + 1 + case["step"]
    images = random_images(2, side, side + 2)
    images[1, :, 6:] = 0.25
    grid = dense_sift(images, contrast_threshold=0.0, **case)
    for image, descriptors in zip(images, grid.descriptors, strict=True):
        expected = torch.from_numpy(slow_sift(image.numpy(), **case))
        torch.testing.assert_close(descriptors, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian_4", "flat_4", "gaussian_8", "flat_8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_vlfeat(name, dtype):
    window, bin_size = name.split("_")
    image = torch.from_numpy(VLFEAT["image"]).to(dtype)
    grid = dense_sift(image[None], bin_size=int(bin_size), step=8, window=window, root=False, contrast_threshold=0.0)
    descriptors = grid.descriptors.reshape(-1, 128)
    stored = torch.from_numpy(VLFEAT[f"{name}_descriptors"]).to(dtype)
    # VLFeat approximates the arc tangent and the square root.
    torch.testing.assert_close((512 * descriptors).clamp(max=255) / 512, stored / 512, rtol=0, atol=3e-3)
    cosine = torch.cosine_similarity(descriptors, stored)
    assert cosine.min() > 0.99998

    height, width = image.shape
    centres = torch.from_numpy(VLFEAT[f"{name}_centres"]).to(dtype)
    x, y = grid.positions.reshape(-1, 2).T
    torch.testing.assert_close((x + 0.5) * width - 0.5, centres[:, 1])
    torch.testing.assert_close((y + 0.5) * height - 0.5, centres[:, 0])


@pytest.mark.parametrize("name", ["gaussian_4", "flat_8"])
def test_contrast_threshold_has_vlfeat_s_units(name):
    window, bin_size = name.split("_")
    norms = torch.from_numpy(VLFEAT[f"{name}_norms"])
    image = torch.from_numpy(VLFEAT["image"])[None]
    ordered = norms.sort().values
    widest = int((ordered[1:] - ordered[:-1]).argmax())
    threshold = float(ordered[widest : widest + 2].mean())
    grid = dense_sift(image, bin_size=int(bin_size), step=8, window=window, contrast_threshold=threshold)
    kept = grid.descriptors.reshape(-1, 128).norm(dim=1)
    torch.testing.assert_close(kept, (norms > threshold).float())


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(0.01, 100.0),
    shift=st.floats(-1.0, 1.0),
    bin_size=st.sampled_from([2, 3, 6]),
    root=st.booleans(),
)
def test_contrast_and_brightness_do_not_matter(scale, shift, bin_size, root):
    images = random_images(1, 22, 24)
    settings_ = {"bin_size": bin_size, "step": 3, "root": root, "contrast_threshold": 0.0}
    plain, changed = (dense_sift(version, **settings_).descriptors for version in (images, scale * images + shift))
    torch.testing.assert_close(changed, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bin_size", [2, 5, 8])
def test_quarter_turn_permutes(bin_size):
    # The step leaves no remainder, so that the grid is symmetric.
    step = 3
    images = random_images(2, 3 * bin_size + 1 + 2 * step, 3 * bin_size + 1 + 3 * step)
    descriptors = dense_sift(images, bin_size=bin_size, step=step).descriptors.unflatten(-1, (4, 4, 8))
    turned = dense_sift(torch.rot90(images, 1, (1, 2)), bin_size=bin_size, step=step).descriptors
    # Counter-clockwise on the screen: rows and bins turn, the x-axis (t = 0) becomes minus the y-axis (t = 6).
    expected = torch.rot90(torch.rot90(descriptors, 1, (1, 2)), 1, (3, 4)).roll(-2, dims=-1)
    torch.testing.assert_close(turned, expected.flatten(start_dim=3), rtol=1e-10, atol=1e-10)


def test_mirror_permutes():
    images = random_images(1, 25, 31)
    descriptors = dense_sift(images, bin_size=4, step=2).descriptors.unflatten(-1, (4, 4, 8))
    mirrored = dense_sift(images.flip(2), bin_size=4, step=2).descriptors
    reflected = [(4 - t) % 8 for t in range(8)]
    expected = descriptors.flip(2).flip(4)[..., reflected].flatten(start_dim=3)
    torch.testing.assert_close(mirrored, expected, rtol=1e-10, atol=1e-10)


def test_translation_by_a_step_shifts_the_grid():
    scene = random_images(1, 60, 70)
    bin_size, step = 4, 3
    first = dense_sift(scene[:, :50, :60], bin_size=bin_size, step=step).descriptors
    second = dense_sift(scene[:, step : 50 + step, 2 * step : 60 + 2 * step], bin_size=bin_size, step=step).descriptors
    # Patches away from the border, whose taps and smoothing stay inside both crops.
    torch.testing.assert_close(second[:, 2:-3, 2:-4], first[:, 3:-2, 4:-2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 20, 23), (3, 28, 28)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_single_images(shape, dtype, monkeypatch):
    images = random_images(*shape, dtype=dtype)
    # Chunks of two images: the batch is not a multiple of them.
    monkeypatch.setattr(axis_filter, "_working_pixels", lambda device: 2 * shape[1] * shape[2])
    batch = dense_sift(images, bin_size=3, step=2)
    for image, descriptors in zip(images, batch.descriptors, strict=True):
        alone = dense_sift(image[None], bin_size=3, step=2).descriptors[0]
        torch.testing.assert_close(descriptors, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_pixels", [1, 7, 32])
@pytest.mark.parametrize("working_pixels", [1, 4000, 10**9])
def test_blocks_and_bands_do_not_matter(block_pixels, working_pixels, monkeypatch):
    images = random_images(2, 71, 83)
    grid = {"bin_size": 5, "step": 3, "window_size": 1.5}
    monkeypatch.setattr(axis_filter, "_BLOCK_PIXELS", 10**9)
    monkeypatch.setattr(axis_filter, "_working_pixels", lambda device: 10**9)
    whole = dense_sift(images, **grid).descriptors
    clear_caches()
    monkeypatch.setattr(axis_filter, "_BLOCK_PIXELS", block_pixels)
    monkeypatch.setattr(axis_filter, "_working_pixels", lambda device: working_pixels)
    blocks = dense_sift(images, **grid).descriptors
    clear_caches()
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-10)


def clear_caches():
    sift._bin_matrix.cache_clear()
    axis_filter.gaussian_filter_matrix.cache_clear()


def test_single_precision_is_close():
    images = random_images(2, 64, 64)
    for window, root in itertools.product(("gaussian", "flat"), (True, False)):
        double = dense_sift(images, bin_size=4, step=4, window=window, root=root).descriptors
        single = dense_sift(images.float(), bin_size=4, step=4, window=window, root=root).descriptors
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5 if root else 1e-6)


def test_length_is_one_and_flat_patches_are_zero():
    images = random_images(2, 40, 40, dtype=torch.float32)
    images[1] = 0.7
    for root in (True, False):
        for threshold in (0.0, 0.005):
            lengths = dense_sift(images, bin_size=3, step=3, root=root, contrast_threshold=threshold).descriptors.norm(
                dim=-1
            )
            torch.testing.assert_close(lengths[0], torch.ones_like(lengths[0]))
            assert torch.count_nonzero(lengths[1]) == 0


def test_flat_window_differs_from_the_gaussian_one():
    # VLFeat's two modes agree to a cosine of about 0.99, not more.
    images = random_images(1, 40, 40)
    gaussian, flat = (
        dense_sift(images, bin_size=4, step=4, window=window).descriptors for window in ("gaussian", "flat")
    )
    cosine = (gaussian * flat).sum(dim=-1)
    assert 0.9 < cosine.min() < cosine.max() < 0.9999


@pytest.mark.parametrize("root", [True, False])
def test_gradients_equal_finite_differences(root):
    # A sum over the patch keeps the elements away from the kinks of the clamp at 0.2.
    images = random_images(1, 12, 13).requires_grad_()
    weights = torch.randn(128, dtype=torch.float64)

    def score(pixels):
        return (dense_sift(pixels, bin_size=3, step=2, root=root).descriptors @ weights).sum()

    assert torch.autograd.gradcheck(score, images, eps=1e-7, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_the_image_is_flat(dtype):
    images = random_images(2, 30, 30, dtype=dtype)
    images[0, :, :20] = 0.5
    images[1] = 0.0
    images.requires_grad_()
    score = sum(grid.descriptors.pow(3).sum() for grid in DenseSift((2, 4), step=2)(images))
    score.backward()
    assert bool(torch.isfinite(images.grad).all())
    assert images.grad[0].abs().sum() > 0
    assert torch.count_nonzero(images.grad[1]) == 0


def test_matrices_made_under_inference_mode_serve_autograd():
    clear_caches()
    images = random_images(1, 26, 26)
    with torch.inference_mode():
        expected = dense_sift(images, bin_size=5, step=4).descriptors
    images.requires_grad_()
    descriptors = dense_sift(images, bin_size=5, step=4).descriptors
    descriptors.pow(3).sum().backward()
    torch.testing.assert_close(descriptors.detach(), expected.clone())
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 50), (1, 50, 12), (0, 40, 40), (1, 2, 3)])
def test_images_smaller_than_a_patch_give_empty_grids(shape):
    for grid in DenseSift((4, 10))(torch.rand(shape)):
        batch, rows, cols, features = grid.descriptors.shape
        assert (batch, features) == (shape[0], 128)
        assert grid.descriptors.numel() == 0
        assert grid.positions.shape == (rows, cols, 2)
        assert rows == max(0, (shape[1] - 1 - 3 * grid.scale) // 4 + 1)
        assert cols == max(0, (shape[2] - 1 - 3 * grid.scale) // 4 + 1)


def test_the_smallest_patch_that_fits():
    images = random_images(1, 13, 13)
    (grid,) = DenseSift((4,))(images)
    torch.testing.assert_close(grid.descriptors[0], torch.from_numpy(slow_sift(images[0].numpy(), bin_size=4, step=4)))
    torch.testing.assert_close(grid.positions, torch.zeros(1, 1, 2, dtype=torch.float64))


def test_long_images_take_linear_memory_and_equal_their_parts():
    # 8,000 pixels: a dense matrix would hold 8,000 x 4 x 1,000 elements an axis.
    image = random_images(1, 16, 8000, dtype=torch.float32)
    (long,) = DenseSift((4,), step=8, smooth=False)(image)
    (tall,) = DenseSift((4,), step=8, smooth=False)(image.mT.contiguous())
    blocks = sift._bin_matrix(8000, 4, 8, "gaussian", 2.0, torch.float32, torch.device("cpu"))
    assert sum(block.matrix.numel() for block in blocks) < 8000 * 4 * 100
    assert long.descriptors.shape == (1, 1, 999, 128)
    # Both grids start at pixel 1 of what they see, half of what the step leaves over.
    (part,) = DenseSift((4,), step=8, smooth=False)(image[:, :, 4000:4103])
    torch.testing.assert_close(part.descriptors[:, :, 1:-1], long.descriptors[:, :, 501:511])
    transposed = tall.descriptors.transpose(1, 2).unflatten(-1, (4, 4, 8)).transpose(3, 4)
    swapped = [(2 - t) % 8 for t in range(8)]
    torch.testing.assert_close(transposed[..., swapped].flatten(start_dim=3), long.descriptors)


def test_colour_is_converted_to_luminance():
    images = random_images(2, 3, 30, 30)
    grey = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    expected = dense_sift(grey, bin_size=4, step=4).descriptors
    torch.testing.assert_close(dense_sift(images, bin_size=4, step=4).descriptors, expected)
    torch.testing.assert_close(dense_sift(grey[:, None], bin_size=4, step=4).descriptors, expected)


def test_extractor_is_one_call_a_scale():
    images = random_images(2, 40, 44)
    extractor = DenseSift(
        (3, 5), step=3, window="flat", window_size=1.5, smooth=False, root=False, contrast_threshold=0.1
    )
    grids = extractor(images)
    assert [grid.scale for grid in grids] == [3.0, 5.0]
    for grid in grids:
        expected = dense_sift(
            images,
            bin_size=int(grid.scale),
            step=3,
            window="flat",
            window_size=1.5,
            smooth=False,
            root=False,
            contrast_threshold=0.1,
        )
        torch.testing.assert_close(grid, expected)
        assert grid.descriptors.shape[-1] == extractor.num_features


def test_config_round_trip():
    extractor = DenseSift((2, 3, 4), step=1, window="flat", contrast_threshold=0.01)
    config = json.loads(json.dumps(extractor.to_config()))
    assert config["type"] == "dense_sift"
    assert DenseSift.from_config(config) == extractor
    assert DenseSift.from_config({}) == DenseSift()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bin_size": 0}, "bin_size must be a whole number of pixels, at least 1, got 0"),
        ({"bin_size": 4.5}, "bin_size must be a whole number of pixels, at least 1, got 4.5"),
        ({"step": -2}, "step must be a whole number of pixels, at least 1, got -2"),
        ({"step": True}, "step must be a whole number of pixels, at least 1, got True"),
        ({"window": "box"}, r"window must be one of \('gaussian', 'flat'\), got 'box'"),
        ({"window_size": 0.0}, "window_size must be positive, in bins, got 0.0"),
        ({"window_size": float("nan")}, "window_size must be positive, in bins, got nan"),
        ({"contrast_threshold": -0.1}, "contrast_threshold must be at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, match):
    with pytest.raises(ValueError, match=match):
        dense_sift(torch.rand(1, 30, 30), **({"bin_size": 4, "step": 4} | arguments))


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        dense_sift(torch.full((1, 30, 30), torch.nan), bin_size=4, step=4)
    with pytest.raises(TypeError, match="divide 8-bit images by 255"):
        DenseSift()(torch.zeros(1, 30, 30, dtype=torch.uint8))
