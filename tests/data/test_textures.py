"""Texture patches: what they are cut from, and that no pixel is in both train and test."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlayers.data import load_texture_patches, read_image, textures
from fisherlayers.data.images import to_grey
from fisherlayers.data.textures import GUARD, MIN_CONTRAST, TEXTURES, Rectangle, alternating_bands, spread_out


@pytest.fixture(scope="module")
def patches():
    return load_texture_patches()


def sides(patches):
    return (
        (patches.train_images, patches.train_labels, patches.train_rectangles),
        (patches.test_images, patches.test_labels, patches.test_rectangles),
    )


def test_twenty_classes_or_more_with_equal_shares(patches):
    assert len(patches.classes) >= 20
    for _, labels, _ in sides(patches):
        np.testing.assert_array_equal(np.bincount(labels), [30] * len(patches.classes))


@pytest.mark.parametrize("size", [32, 48, 64, 72])
def test_no_train_patch_shares_a_pixel_with_a_test_patch_of_the_same_photograph(size):
    patches = load_texture_patches(patch_size=size, per_class=15)
    files = [TEXTURES[name].file for name in patches.classes]
    train = list(zip(patches.train_labels, patches.train_rectangles, strict=True))
    test = list(zip(patches.test_labels, patches.test_rectangles, strict=True))
    shared = [
        (patches.classes[a], patches.classes[b], one, other)
        for (a, one), (b, other) in product(train, test)
        if files[a] == files[b] and one.overlaps(other)
    ]
    assert shared == []


def test_patches_are_the_pixels_at_their_rectangles_unscaled(patches):
    for images, labels, rectangles in sides(patches):
        for image, label, place in list(zip(images, labels, rectangles, strict=True))[::7]:
            photograph = to_grey(read_image(textures._photograph(TEXTURES[patches.classes[label]].file)))
            np.testing.assert_array_equal(image, photograph[place.top : place.top + 64, place.left : place.left + 64])


def test_no_place_is_used_twice_and_every_patch_has_contrast(patches):
    for images, labels, rectangles in sides(patches):
        assert len(set(zip(labels, rectangles, strict=True))) == len(images)
        assert images.std(axis=(1, 2)).min() >= MIN_CONTRAST


def test_colour_keeps_the_places_and_greys_to_the_same_patches(patches):
    colour = load_texture_patches(grey=False)
    assert colour.test_rectangles == patches.test_rectangles
    assert colour.test_images.shape == (*patches.test_images.shape, 3)
    np.testing.assert_array_equal([to_grey(image) for image in colour.test_images], patches.test_images)
    brick = colour.classes.index("brick")
    assert np.ptp(colour.train_images[colour.train_labels == brick].astype(int), axis=-1).max() == 0


def test_the_seed_decides(patches):
    again, other = load_texture_patches(seed=0), load_texture_patches(seed=1)
    np.testing.assert_array_equal(again.test_images, patches.test_images)
    assert other.test_rectangles != patches.test_rectangles


@given(st.integers(0, 50), st.integers(0, 50), st.integers(150, 500), st.integers(80, 500), st.integers(16, 64))
def test_bands_lie_in_the_region_a_guard_gap_apart_and_hold_a_patch(left, top, width, height, size):
    region = Rectangle(left, top, left + width, top + height)
    bands = alternating_bands(region, size)
    assert len(bands) >= 2
    for band in bands:
        assert (max(band.left, left), max(band.top, top)) == (band.left, band.top)
        assert (min(band.right, region.right), min(band.bottom, region.bottom)) == (band.right, band.bottom)
        assert min(band.right - band.left, band.bottom - band.top) >= min(size, width, height)
    for one, other in pairwise(bands):
        grown = Rectangle(one.left, one.top, one.right + GUARD, one.bottom + GUARD)
        assert max(other.left - one.right, other.top - one.bottom) == GUARD
        assert not grown.overlaps(other)


def test_overlap_against_pixel_sets():
    rng = np.random.default_rng(0)

    def cells(place):
        return set(product(range(place.left, place.right), range(place.top, place.bottom)))

    places = [
        Rectangle(x, y, x + width, y + height)
        for x, y, width, height in zip(*rng.integers(0, 8, (2, 30)), *rng.integers(1, 5, (2, 30)), strict=True)
    ]
    for one, other in product(places, places):
        assert one.overlaps(other) == bool(cells(one) & cells(other))


def test_spread_out_takes_the_farthest():
    places = [Rectangle(x, 0, x + 1, 1) for x in (0, 1, 2, 10)]
    for seed in range(8):
        first, second = spread_out(places, 2, np.random.default_rng(seed))
        assert second == max(places, key=lambda place: abs(place.left - first.left))
    assert sorted(spread_out(places, 4, np.random.default_rng(0))) == places


def test_bad_arguments(monkeypatch):
    with pytest.raises(ValueError, match=r"patch_size must lie in 16\.\.72.*got 80"):
        load_texture_patches(patch_size=80)
    with pytest.raises(ValueError, match="per_class must be at least 1; got 0"):
        load_texture_patches(per_class=0)
    with pytest.raises(ValueError, match=r"per_class must be at most \d+ with patch_size=64: the texture '.*' has no"):
        load_texture_patches(per_class=1000)
    monkeypatch.setattr(textures, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fisherlayers\[demo\]'"):
        load_texture_patches()
