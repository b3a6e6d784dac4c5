"""Images at the estimator's door: every kind that is taken, every kind that is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from fisherlayers.fisher_vectors.images import ImageList


def load_all(images, **preparation):
    prepared = images.prepared(**({"max_pixels": 10**6, "upsample": 1, "padding": 0} | preparation))
    loaded = {}
    for batch in prepared.batches():
        loaded |= zip(batch.indices, prepared.load(batch), strict=True)
    return [loaded[index] for index in range(len(prepared))]


def test_all_number_types_mean_the_same_pixels():
    pixels = np.array([[0, 51], [102, 255]], dtype=np.uint8)
    kinds = [
        pixels,
        pixels.astype(int),
        pixels / 255,
        (pixels / 255).astype(np.float32),
        pixels.astype(np.uint16) * 257,
    ]
    for image in load_all(ImageList([*kinds, pixels[:, :, None], torch.tensor(pixels)])):
        torch.testing.assert_close(image, torch.tensor([[[0, 0.2], [0.4, 1.0]]]), rtol=0, atol=1e-6)
    (image,) = load_all(ImageList([np.array([[True, False]])]))
    assert image.tolist() == [[[1.0, 0.0]]]


def test_colour_paths_and_arrays(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = ImageList([pixels, tmp_path / "a.png", str(tmp_path / "a.png"), pixels[:, :, 0]])
    first, second, third, grey = load_all(images)
    torch.testing.assert_close(first, torch.tensor(pixels).permute(2, 0, 1) / 255)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert grey.shape == (1, 4, 5)
    assert images.has_color
    assert not ImageList([pixels[:, :, 0]]).has_color


def test_array_of_images():
    stack = np.random.default_rng(0).random((3, 4, 5))
    assert [image.shape for image in load_all(ImageList(stack))] == [(1, 4, 5)] * 3
    assert [image.shape for image in load_all(ImageList(np.repeat(stack[..., None], 3, axis=-1)))] == [(3, 4, 5)] * 3


def test_batches_have_one_shape_and_key_and_cover_everything():
    rng = np.random.default_rng(0)
    images = ImageList([rng.random((int(rng.integers(1, 4)), 3)) for _ in range(40)])
    keys = [index % 3 for index in range(40)]
    batches = images.batches(keys=keys)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(40))
    for batch in batches:
        assert {keys[index] for index in batch.indices} == {batch.key}
        assert len({images.shapes[index] for index in batch.indices}) == 1
    assert [batch.indices for batch in images.batches(indices=[5])] == [(5,)]


def test_batches_are_bounded_by_pixels():
    images = ImageList([np.zeros((200, 200), np.uint8)] * 5)
    assert max(len(batch.indices) for batch in images.batches()) == 1
    small = images.prepared(max_pixels=100, upsample=1, padding=0)
    assert max(len(batch.indices) for batch in small.batches()) == 5


def test_large_images_are_reduced_and_small_ones_enlarged():
    (large,) = load_all(ImageList([np.full((50, 8000), 100, np.uint8)]), max_pixels=10_000)
    assert large.shape[1] * large.shape[2] <= 10_000
    torch.testing.assert_close(large, torch.full_like(large, 100 / 255))
    (small,) = load_all(ImageList([np.array([[0.0, 1.0]])]), upsample=2)
    assert small[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_padding_continues_the_border():
    (padded,) = load_all(ImageList([np.array([[0.0, 1.0]])]), padding=2)
    assert padded.shape == (1, 5, 6)
    assert padded[0, 4].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_mirrored_images_follow_the_originals():
    loaded = load_all(ImageList([np.array([[0.0, 1.0]]), np.array([[0.25, 0.5]])]).mirrored())
    assert [image[0, 0].tolist() for image in loaded] == [[0, 1], [0.25, 0.5], [1, 0], [0.5, 0.25]]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        (np.zeros((0, 4, 4)), ValueError, "images is empty"),
        ("a.png", TypeError, "single path 'a.png'"),
        (iter([]), TypeError, "images must be a list"),
        (3, TypeError, "images must be a list"),
        (np.zeros((4, 4)), ValueError, r"pass \[image\]"),
        (np.zeros((4, 4, 3)), ValueError, r"pass \[image\]"),
        ([np.zeros((4, 4)), np.zeros(4)], ValueError, r"images\[1\] must have shape"),
        ([np.zeros((4, 4, 2))], ValueError, r"images\[0\] must have shape .* got \(4, 4, 2\)"),
        ([np.zeros((0, 4))], ValueError, r"images\[0\] has no pixels"),
        ([np.array([[np.nan]])], ValueError, r"images\[0\] has NaN"),
        ([np.array([[0.0, 16.0]])], ValueError, r"images\[0\] has float pixels in 0..16, expected \[0, 1\]"),
        ([np.array([[0, 300]])], ValueError, r"images\[0\] has integer pixels in 0..300"),
        ([np.array([["a"]])], ValueError, r"images\[0\] has pixels of type"),
        (["missing.png"], ValueError, r"images\[0\]: cannot read image missing.png"),
    ],
)
def test_refused(images, error, message):
    with pytest.raises(error, match=message):
        ImageList(images)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "LA", "RGBA", "1", "I;16"])
def test_opened_images_are_those_of_their_files(tmp_path, mode):
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(256, size=(9, 7, 3), dtype=np.uint8))
    image = (
        colour.quantize(8)
        if mode == "P"
        else colour.convert("L").convert(mode)
        if mode == "I;16"
        else colour.convert(mode)
    )
    path = tmp_path / ("a.tif" if mode in {"CMYK", "YCbCr", "I;16"} else "a.png")
    image.save(path)
    opened, from_file = load_all(ImageList([image, path]))
    torch.testing.assert_close(opened, from_file, rtol=0, atol=2 / 255)  # YCbCr is rounded twice


def test_the_orientation_of_an_opened_photograph_is_applied(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        first, second = load_all(ImageList([opened, tmp_path / "a.png"]))
    assert first.shape == (1, 4, 3)
    assert torch.equal(first, second)


def test_arrays_of_paths_and_of_images_of_several_sizes(tmp_path):
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    several = np.empty(2, dtype=object)
    several[0], several[1] = pixels, pixels[:3]
    for images, shapes in ((np.array([path, path]), [(1, 4, 5)] * 2), (several, [(1, 4, 5), (1, 3, 5)])):
        assert ImageList(images).shapes == shapes


def test_either_byte_order_of_sixteen_bits():
    pixels = np.array([[0, 20_000], [40_000, 65_535]], dtype="<u2")
    first, second = load_all(ImageList([pixels, pixels.astype(">u2")]))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "item", [(np.zeros((4, 4)), 1), torch.rand(4, 4, requires_grad=True), torch.rand(4, 4).bfloat16()]
)
def test_what_is_no_image_is_named_by_its_place(item):
    with pytest.raises(ValueError, match=r"images\[1\] is no image but a (tuple|Tensor)"):
        ImageList([np.zeros((4, 4)), item])
