"""Fisher vectors of a network's maps against their definition."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork, LateFusion, ModuleFisherVectors
from fisherlayers.fisher_vectors.encoding import fisher_vectors
from fisherlayers.fisher_vectors.linear_svm import LinearSVM

IMAGES, LABELS = textures(6)
SIZES = ((20, 24), (14, 14))


def convolution(channels=1):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 10, 5, stride=2), torch.nn.ReLU())


def encoder(**options):
    options = {"components": 3, "dimensions": 4, "channels": 1, "iterations": 5, "random_state": 0, **options}
    return ModuleFisherVectors(convolution(options["channels"]), SIZES, **options)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("information", ["images", "closed-form"])
def test_encodings_are_the_fisher_vectors_of_all_positions_of_all_sizes(mirror, information):
    encode = encoder(mirror=mirror, information=information).fit(IMAGES)
    stage, module = encode.stage_, convolution().eval()
    image = torch.tensor(IMAGES[0]).float()[None, None]
    rows, places = [], []
    for size in SIZES:
        view = torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)
        for turned in (view, view.flip(3)) if mirror else (view,):
            with torch.no_grad():
                (maps,) = module((turned - 0.5) / 0.5)
            height, width = maps.shape[1:]
            for y in range(height):
                for x in range(width):
                    rows.append(maps[:, y, x] / encode.scale_)
                    places.append([(x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5])
    reduced = torch.cat([stage.components.transform(torch.stack(rows)), torch.tensor(places)], dim=1)
    expected = fisher_vectors(stage.mixture, reduced[None])[0]
    expected = expected if stage.gains is None else expected * stage.gains
    assert (stage.gains is None) == (information == "closed-form")
    expected = expected.sign() * expected.abs().sqrt()
    expected /= expected.norm()
    np.testing.assert_allclose(encode.transform(IMAGES[:1])[0], expected, atol=2e-4)


def test_an_image_and_its_mirror_image_are_encoded_alike():
    turned = [image[:, ::-1] for image in IMAGES]
    encode = encoder().fit(IMAGES)
    np.testing.assert_allclose(encode.transform(turned), encode.transform(IMAGES), atol=1e-4)
    alone = encoder(mirror=False).fit(IMAGES)
    assert np.abs(alone.transform(turned) - alone.transform(IMAGES)).max() > 0.01


def test_an_encoding_depends_neither_on_the_other_images_nor_on_the_batches():
    encode = encoder().fit(IMAGES)
    whole = encode.transform(IMAGES)
    np.testing.assert_allclose(encode.transform(IMAGES[5:6]), whole[5:6], atol=1e-5)
    np.testing.assert_allclose(encode.set_params(batch_size=1).transform(IMAGES), whole, atol=1e-5)
    np.testing.assert_array_equal(encode.transform(IMAGES[:2] + IMAGES[:2])[2:], whole[:2])


def test_it_is_fitted_the_same_again_and_survives_copies():
    encode = encoder().fit(IMAGES)
    rows = encode.transform(IMAGES)
    assert rows.shape == (24, encode.n_features_out_) == (24, 2 * 3 * 6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(clone(encode).fit(IMAGES).transform(IMAGES), rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encode)).transform(IMAGES), rows)
    few = encoder(training_images=8, training_descriptors=160).fit(IMAGES)
    assert np.abs(few.transform(IMAGES) - rows).max() > 1e-3


def test_the_module_is_left_in_its_mode_and_sees_three_channels():
    module = torch.nn.Sequential(convolution(3), torch.nn.Dropout(0.5)).train()
    colour = [np.stack([image, 1 - image, image], axis=-1) for image in IMAGES]
    encode = encoder(channels=3).set_params(module=module, position_weight=0.0).fit(colour + IMAGES)
    assert module.training
    assert encode.transform(colour).shape == (24, 2 * 3 * 4)


def test_it_classifies_and_is_a_member_of_a_fusion():
    unseen, truth = textures(5, seed=1)
    maps = make_pipeline(encoder(), LinearSVM(C=10.0))
    assert maps.fit(IMAGES, LABELS).score(unseen, truth) > 0.6
    fisher = DeepFisherNetwork(depth=1, components=3, dimensions=6, bin_sizes=(3,), step=3, random_state=0, C=1.0, cv=0)
    hybrid = LateFusion([("fisher", fisher), ("maps", maps)], cv=2, random_state=0).fit(IMAGES, LABELS)
    assert hybrid.score(unseen, truth) >= maps.score(unseen, truth) - 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, r"sizes must hold at least one \(H, W\)"),
        ({"sizes": 32}, r"sizes must hold at least one \(H, W\)"),
        ({"sizes": (32,)}, r"sizes must be \(H, W\) in pixels"),
        ({"sizes": ((3,),)}, r"sizes must be \(H, W\) in pixels"),
        ({"sizes": ((3, 3), (3, 0))}, r"sizes must be \(H, W\) in pixels"),
        ({"mean": (0.5, 0.5)}, "mean must be one number, or one for each of 1 channels"),
        ({"components": 0}, "components must be at least 1"),
        ({"dimensions": 0}, "dimensions must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"training_images": 0}, "training_images must be at least 1"),
        ({"position_weight": -1.0}, "position_weight must be at least 0"),
        ({"information": "none"}, "information must be 'images' or 'closed-form'"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"std": 0.0}, "std must be positive"),
        ({"components": 500, "training_images": 1}, "have only 210 positions"),
        ({"module": torch.nn.Flatten()}, r"module must return maps \(B, F, h, w\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        encoder().set_params(**options).fit(IMAGES)


def test_a_single_size_needs_no_sequence():
    rows = encoder().set_params(sizes=[(20, 24)]).fit_transform(IMAGES)
    for size in ((20, 24), [20, 24], np.array([20, 24])):
        np.testing.assert_array_equal(encoder().set_params(sizes=size).fit_transform(IMAGES), rows)


def test_entries_have_names():
    pytest.importorskip("pandas")
    frame = encoder().set_output(transform="pandas").fit_transform(IMAGES)
    assert frame.columns[0] == "mean_k0_d0"
    assert frame.columns[6 + 2] == "mean_k1_d2"
    assert frame.columns[-1] == "deviation_k2_d5"
    assert frame.shape == (24, 2 * 3 * 6)
