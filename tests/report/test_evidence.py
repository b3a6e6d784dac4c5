"""Pictures of evidence: colours say the sign, their strength the magnitude."""

import io

import numpy as np
import pytest
from PIL import Image

from fisherlayers.report import evidence_grid, evidence_overlay, png_bytes


def test_red_speaks_for_and_blue_against():
    image = np.full((1, 4), 0.5)
    shown = evidence_overlay(image, np.array([[1.0, -1.0, 0.0, 0.25]])).astype(int)[0]
    assert shown[0, 0] > shown[0, 2]
    assert shown[1, 2] > shown[1, 0]
    assert shown[2].tolist() == [128, 128, 128]
    assert 0 < shown[3, 0] - shown[3, 2] < shown[0, 0] - shown[0, 2]
    weaker = evidence_overlay(image, np.array([[1.0, -1.0, 0.0, 0.25]]), limit=4.0).astype(int)[0]
    np.testing.assert_array_equal(weaker[0], shown[3])


def test_bytes_and_colour_become_grey():
    image = np.uint8(np.random.default_rng(0).integers(0, 256, (3, 5, 3)))
    shown = evidence_overlay(image, np.zeros((3, 5)))
    np.testing.assert_array_equal(shown, np.uint8(np.round(image.mean(axis=2)))[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(shown)))), shown)


def test_a_grid_has_two_pictures_a_title():
    images = [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8)]
    svg = evidence_grid(images, [np.ones((4, 4)), -np.ones((4, 4))], ["one", "two"]).decode()
    assert svg.count("<image") == 4
    assert "<!-- one -->" in svg


def test_bad_arguments():
    with pytest.raises(ValueError, match="evidence must have the image's size"):
        evidence_overlay(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="limit must be positive"):
        evidence_overlay(np.zeros((2, 3)), np.zeros((2, 3)), limit=0.0)
    with pytest.raises(ValueError, match="one map and one title for each"):
        evidence_grid([], [], [])
