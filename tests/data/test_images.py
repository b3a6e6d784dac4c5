"""Reading image files: every mode becomes 8-bit grey or RGB, every failure names the file and the cause."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fisherlayers.data.images import MAX_PIXELS, ImageReadError, read_image, to_grey, to_uint8

GRADIENT = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURS = np.stack([GRADIENT, 255 - GRADIENT, GRADIENT // 2], axis=-1)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "pgm"])
def test_grey_files_come_back_bit_for_bit(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GRADIENT).save(path)
    np.testing.assert_array_equal(read_image(path), GRADIENT)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_rgb_files_come_back_bit_for_bit(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).save(path)
    np.testing.assert_array_equal(read_image(str(path)), COLOURS)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_any_rgb_pixels_survive_the_conversion(pixels):
    np.testing.assert_array_equal(to_uint8(Image.fromarray(pixels)), pixels)


def test_one_pixel(tmp_path):
    Image.fromarray(np.array([[7]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[7]])


def test_the_largest_side_that_users_have(tmp_path):
    Image.new("L", (8000, 8000), 9).save(tmp_path / "a.png", compress_level=1)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (8000, 8000)
    assert pixels[-1, -1] == 9


# EXIF 274: the number says which corner of the stored picture belongs at the top left.
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright(COLOURS))


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60]]])


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.array([[[0, 100, 200, 255], [0, 100, 200, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[0, 100, 200], [255, 255, 255]]])


def test_grey_with_transparency_stays_grey(tmp_path):
    Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[50, 255]])


def test_black_and_white(tmp_path):
    Image.fromarray(GRADIENT > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.where(GRADIENT > 100, 255, 0))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, ending):
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}"), [[0, 1, 255]])


@pytest.mark.parametrize("full", [1.0, 255.0])
def test_floating_point_grey_is_scaled(tmp_path, full):
    Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32) * np.float32(full)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), [[0, 51, 255]])


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.full((2, 2, 3), [255, 0, 0]))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.full((2, 2), 10))


def test_luma_of_rgb():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(to_grey(primaries), [[76, 150, 29]])
    assert to_grey(GRADIENT) is GRADIENT


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nan_is_refused(tmp_path, number):
    Image.fromarray(np.array([[0, number]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif: it holds pixels that are NaN or infinite"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("number", [-1.0, 256.0])
def test_pixels_out_of_range_are_refused(tmp_path, number):
    Image.fromarray(np.array([[0, number]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif: its pixels lie in .* expected 0\.\.1 or 0\.\.255"):
        read_image(tmp_path / "a.tif")


def test_truncated_file(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageReadError, match=r"cannot read image .*a\.jpg: image file is truncated"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "cause"), [(b"", "it is empty"), (b"<html>404</html>", "its content is not an image")]
)
def test_not_an_image(tmp_path, content, cause):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"a\.png: {cause}"):
        read_image(tmp_path / "a.png")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageReadError, match=r"none\.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageReadError, match=re.escape(f"{tmp_path}: it is a folder")):
        read_image(tmp_path)


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    assert MAX_PIXELS >= 8000 * 8000
    monkeypatch.setattr("fisherlayers.data.images.MAX_PIXELS", 11)
    with pytest.raises(ImageReadError, match=r"a\.png: it has 4 x 3 pixels; at most 11 are read"):
        read_image(tmp_path / "a.png")


def test_decompression_bomb(tmp_path):
    head = b"P5 60000 60000 255\n"  # claims 3.6 gigapixels, holds none
    (tmp_path / "a.pgm").write_bytes(head)
    with pytest.raises(ImageReadError, match=r"a\.pgm: .*(decompression bomb|at most)"):
        read_image(tmp_path / "a.pgm")
