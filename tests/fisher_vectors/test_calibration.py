"""The temperature of probabilities."""

import numpy as np
import pytest
from scipy.special import softmax

from fisherlayers.fisher_vectors.calibration import fit_temperature, probabilities


def test_recovers_the_factor_that_drew_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(2.5 * scores, axis=1)])
    assert fit_temperature(scores, labels) == pytest.approx(2.5, rel=0.1)


def test_separable_scores_stay_finite():
    factor = fit_temperature(np.tile(np.eye(3), (10, 1)), np.tile(np.arange(3), 10))
    assert probabilities(np.eye(3), factor)[0, 0] == pytest.approx(11 / 12, rel=1e-3)


def test_probabilities_of_two_classes_are_a_sigmoid():
    scores = np.array([[-1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(probabilities(scores, 1.5)[:, 1], 1 / (1 + np.exp(-1.5 * 2 * np.array([1, 0]))))
