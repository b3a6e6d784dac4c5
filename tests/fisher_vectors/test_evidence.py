"""Evidence maps add up to the score, and lie where the evidence is."""

import numpy as np
import pytest
import torch

from fisher_vectors.fisher_vector_references import posterior, random_mixture, sample
from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork
from fisherlayers.fisher_vectors.encoding import fisher_vectors
from fisherlayers.fisher_vectors.evidence import descriptor_evidence
from fisherlayers.fisher_vectors.mixture import DiagonalMixture

SMALL = {"components": 4, "dimensions": 6, "bin_sizes": (3, 4), "step": 3, "iterations": 5, "random_state": 0}


def colored(images):
    return [np.stack([image, image[::-1], 1 - image], axis=-1) for image in images]


@pytest.mark.parametrize("stabilizer", [0.0, 1.0, 100.0])
def test_terms_are_shared_out_as_defined(stabilizer):
    mixture = random_mixture(3, 2)
    rows = sample(mixture, 9)
    terms = torch.randn(1, 12, dtype=torch.float64)
    pooled = fisher_vectors(mixture, rows)
    single = fisher_vectors(mixture, rows.unsqueeze(1))
    gammas = torch.stack([posterior(mixture, x, threshold=1e-4) for x in rows])
    expected = torch.zeros(9, dtype=torch.float64)
    for j in range(12):
        share = pooled[j] ** 2 / (pooled[j] ** 2 + stabilizer**2 / 9)
        component = j % 6 // 2
        expected += terms[0, j] * share * single[:, j] / (9 * pooled[j])
        expected += terms[0, j] * (1 - share) * gammas[:, component] / gammas[:, component].sum()
    found = descriptor_evidence(mixture, rows.unsqueeze(0), terms, stabilizer=stabilizer)[0]
    torch.testing.assert_close(found, expected)
    assert float(found.sum()) == pytest.approx(float(terms.sum()), abs=1e-12)


def test_single_precision_suffices_far_from_the_origin():
    mixture = random_mixture(3, 2)
    rows = (sample(mixture, 60).float() + 1e4).double()  # what single precision can hold there
    moved = DiagonalMixture(mixture.weights.float(), mixture.means.float() + 1e4, mixture.variances.float())
    terms = torch.randn(1, 12, dtype=torch.float64)
    exact = DiagonalMixture(mixture.weights, moved.means.double(), moved.variances.double())
    expected = descriptor_evidence(exact, rows.unsqueeze(0), terms)
    found = descriptor_evidence(moved, rows.float().unsqueeze(0), terms.float())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert float(found.sum()) == pytest.approx(float(terms.sum()), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1, "upsample": 2, "padding": 3},
        {"depth": 3, "windows": (2, 3), "step": 2, "padding": 4},
        {"max_pixels": 500, "bin_sizes": (2, 9)},
        {"preset": "small"},
        {"preset": "small", "mirror": True, "patch_side": 5},
    ],
)
def test_maps_add_up_to_the_scores(options):
    images, labels = textures(3)
    images = [np.float32(image) for image in colored(images)]
    model = DeepFisherNetwork(**(SMALL | options)).fit(images, labels)
    some = [images[0], images[5][:20], np.full((24, 24), 0.5), images[7]]
    exact = model.to_module(dtype=torch.float64)
    # Resampling is done in single precision.
    tolerance = 1e-4 if {"upsample", "max_pixels"} & set(options) else 1e-6
    for stabilizer in (0.0, 1.0):
        maps = [model.evidence(some, label, stabilizer=stabilizer) for label in model.classes_]
        for index, image in enumerate(some):
            assert maps[0][index].shape == image.shape[:2]
            batch = torch.as_tensor(image).double()
            batch = batch.movedim(-1, 0)[None] if batch.ndim == 3 else batch[None]
            with torch.no_grad():
                scores = exact(batch)[0].numpy()
            sums = np.array([of_class[index].sum() for of_class in maps]) + model.intercept_
            np.testing.assert_allclose(sums, scores, rtol=0, atol=tolerance)
            np.testing.assert_allclose(sums, model.decision_function([image])[0], rtol=0, atol=1e-4)
    best, chosen = model.evidence(some), model.evidence(some, model.predict(some))
    for first, second in zip(best, chosen, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_mirror_image_has_the_mirror_image_of_the_map():
    images, labels = textures(3)
    model = DeepFisherNetwork(**SMALL, patch_side=5, mirror=True).fit(images, labels)
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    for found, other in zip(model.evidence(images), model.evidence(mirrored), strict=True):
        np.testing.assert_allclose(found, other[:, ::-1], rtol=0, atol=1e-6)


def test_two_classes_speak_against_each_other():
    images, labels = textures(4)
    labels = [label in {"lying", "checks"} for label in labels]
    model = DeepFisherNetwork(**SMALL).fit(images, labels)
    positive, negative = model.evidence(images[:2], True), model.evidence(images[:2], False)
    for first, second, score in zip(positive, negative, model.decision_function(images[:2]), strict=True):
        assert first.sum() + model.intercept_[0] == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(first, -second)


def test_evidence_lies_where_the_texture_is():
    # Eight components learned from eight images a class put evidence where the mixture's seed likes it.
    images, labels = textures(16, size=40, noise=0.05)
    labels = list(labels)
    model = DeepFisherNetwork(components=16, dimensions=12, position_weight=0, random_state=0).fit(images, labels)
    lying, upright = (images[labels.index(name)] for name in ("lying", "upright"))
    halves = np.concatenate([lying[:, :20], upright[:, :20]], axis=1)
    for name, side in (("lying", slice(0, 14)), ("upright", slice(26, 40))):
        (evidence,) = model.evidence([halves], name)
        other = slice(26, 40) if side.start == 0 else slice(0, 14)
        assert evidence[:, side].sum() > 0.1 + evidence[:, other].sum()


def test_bad_arguments():
    images, labels = textures(4)
    model = DeepFisherNetwork(**(SMALL | {"depth": 1})).fit(images, labels)
    with pytest.raises(ValueError, match=r"label must be one of the classes .* got plaid"):
        model.evidence(images, "plaid")
    with pytest.raises(ValueError, match="one for each of 2 images"):
        model.evidence(images[:2], ["lying"])
    with pytest.raises(ValueError, match="stabilizer must be at least 0"):
        model.evidence(images, stabilizer=-1.0)
