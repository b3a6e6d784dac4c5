import time

import numpy as np
import pytest
import torch
from sklearn.base import clone

from fisherlayers.demo.baselines import (
    ConvNet,
    LinearClassifier,
    augment,
    convolutional_network,
    hog_features,
    one_cycle,
    pixel_features,
)


def stripes(count, *, size=16, colour=False, seed=0):
    """Horizontal, vertical and diagonal stripes with random phase, and noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.arange(count) % 3
    angles = np.stack([y, x, x + y])[labels]
    waves = np.sin(2 * np.pi * (angles / 6 + generator.random((count, 1, 1))))
    images = np.uint8(np.clip(128 + 90 * waves + generator.normal(0, 10, angles.shape), 0, 255))
    return (np.repeat(images[..., None], 3, axis=-1) if colour else images), np.array(["h", "v", "d"])[labels]


@pytest.mark.parametrize("colour", [False, True])
def test_hog_tells_directions_apart_and_pixels_do_not_know_phase(colour):
    images, labels = stripes(60, colour=colour)
    test_images, test_labels = stripes(60, colour=colour, seed=1)
    assert LinearClassifier(hog_features).fit(images, labels).score(test_images, test_labels) > 0.95


def test_pixels_are_one_row_an_image():
    images, _ = stripes(2, colour=True)
    assert np.array_equal(pixel_features(images)[1], images[1].ravel())


def test_two_classes_are_told_apart():
    images = np.zeros((20, 8, 8), np.uint8)
    images[10:] = 200
    images += np.random.default_rng(0).integers(0, 50, images.shape, dtype=np.uint8)
    labels = np.repeat([3, 7], 10)
    model = LinearClassifier(pixel_features).fit(images, labels)
    assert model.predict(images).tolist() == labels.tolist()


def test_the_convnet_learns_within_its_time():
    images, labels = stripes(60)
    test_images, test_labels = stripes(60, seed=1)
    shares = []
    model = ConvNet(1.5, width=8, progress=shares.append)
    start = time.perf_counter()
    model.fit(images, labels)
    assert time.perf_counter() - start >= 1.5
    assert model.steps_ == len(shares)
    assert shares == sorted(shares)
    assert shares[-1] < 1
    if model.steps_ >= 30:  # a machine that is very busy may not get that far
        assert model.score(test_images, test_labels) > 0.8


def test_the_convnet_is_a_scikit_learn_estimator():
    assert clone(ConvNet(2.0, width=4)).get_params()["width"] == 4


@pytest.mark.parametrize(("shape", "convolutions"), [((1, 1, 64, 64), 4), ((1, 3, 28, 28), 3), ((1, 1, 3, 3), 1)])
def test_the_network_shrinks_maps_to_a_few_pixels(shape, convolutions):
    network = convolutional_network(torch.Size(shape), 5, 4)
    found = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    assert len(found) == convolutions
    assert max(layer.out_channels for layer in found) <= 16
    assert network.eval()(torch.zeros(2, *shape[1:])).shape == (2, 5)


def test_the_cycle_rises_then_falls_to_zero():
    assert [one_cycle(share) for share in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_augmented_images_are_shifted_and_some_mirrored():
    torch.manual_seed(0)
    ramp = torch.arange(32.0).expand(64, 1, 32, 32)
    batch = augment(ramp)
    assert batch.shape == ramp.shape
    slopes = (batch[..., 20] - batch[..., 10]).mean((1, 2))
    assert set(slopes.tolist()) == {10.0, -10.0}
    assert torch.equal(batch[slopes > 0][0, 0, 0, 4:28], ramp[0, 0, 0, 4:28] + batch[slopes > 0][0, 0, 0, 4] - 4)
