"""Choosing C and the temperature, against scikit-learn's cross-validation."""

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC

from fisherlayers.fisher_vectors import selection
from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.selection import select_svm


def rows(classes=3, seed=0, n=150):
    return make_classification(
        n, 20, n_informative=6, n_classes=classes, class_sep=0.8, flip_y=0.1, random_state=seed, n_clusters_per_class=1
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_accuracies_and_temperature_are_those_of_cross_validation(classes):
    X, y = rows(classes)
    costs = (0.001, 0.1, 1.0)
    chosen = select_svm(X, y, costs, folds=3, seed=5)
    folds = StratifiedKFold(3, shuffle=True, random_state=5)
    expected, temperatures = {}, {}
    for cost in costs:
        peer = LinearSVC(C=cost, tol=1e-10, max_iter=100_000, random_state=0)
        scores = cross_val_predict(peer, X, y, cv=folds, method="decision_function")
        scores = np.stack([-scores / 2, scores / 2], axis=1) if classes == 2 else scores
        expected[cost] = (scores.argmax(axis=1) == y).mean()
        temperatures[cost] = fit_temperature(scores, y)
    assert chosen.accuracies == pytest.approx(expected)
    assert expected[chosen.cost] == max(expected.values())
    assert chosen.temperature == pytest.approx(temperatures[chosen.cost], rel=1e-2)
    peer = LinearSVC(C=chosen.cost, tol=1e-10, max_iter=100_000, random_state=0).fit(X, y)
    np.testing.assert_allclose(chosen.coef, peer.coef_, atol=2e-2 * np.abs(peer.coef_).max())
    np.testing.assert_allclose(chosen.intercept, peer.intercept_, atol=2e-2)


def test_groups_are_held_out_together():
    """A copy of every image in training would make the held-out accuracy perfect at large C."""
    X, y = rows(n=60)
    y = np.random.default_rng(0).permutation(y)
    doubled, labels = np.concatenate([X, X]), np.concatenate([y, y])
    wide = np.concatenate([doubled, np.tile(np.eye(60), (2, 1))], axis=1) * 10
    apart = select_svm(wide, labels, (10.0,), folds=3)
    together = select_svm(wide, labels, (10.0,), folds=3, groups=np.arange(120) % 60)
    assert apart.accuracies[10.0] > 0.6
    assert together.accuracies[10.0] < 0.55


def test_one_image_in_a_class():
    X, y = rows(n=30)
    X, y = np.concatenate([X, 9 + X[:1]]), np.concatenate([y, [3]])
    chosen = select_svm(X, y, (0.1, 1.0, 10.0))
    assert (chosen.cost, chosen.accuracies) == (1.0, {})
    assert np.isfinite(chosen.temperature)


def test_one_fold_for_many_images(monkeypatch):
    monkeypatch.setattr(selection, "_ONE_FOLD", 100)
    X, y = rows(n=150)
    seen = []
    monkeypatch.setattr(selection, "fit_temperature", lambda scores, labels: seen.append(len(labels)) or 1.0)
    assert 0.3 < select_svm(X, y, (1.0,)).accuracies[1.0] <= 1
    assert seen == [25]
