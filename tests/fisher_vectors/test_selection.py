"""Choosing C and the temperature, against scikit-learn's cross-validation."""

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from fisherlayers.fisher_vectors import selection
from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.class_weights import class_weights
from fisherlayers.fisher_vectors.rows import StoredRows
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
    with pytest.warns(UserWarning, match="a class has a single image, so that nothing can be held out"):
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


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weights_are_those_of_scikit_learn(classes, class_weight):
    """Weights of the held-out problems come from the rows that those problems see."""
    X, y = rows(classes, n=200)
    keep = (y > 0) | (np.arange(200) % 3 == 0)
    X, y = X[keep], y[keep]
    chosen = select_svm(X, y, (0.1, 1.0), folds=3, seed=5, class_weight=class_weight)
    folds = StratifiedKFold(3, shuffle=True, random_state=5)
    weights = compute_class_weight(class_weight, classes=np.arange(classes), y=y)
    for cost, accuracy in chosen.accuracies.items():
        peer = LinearSVC(C=cost, tol=1e-10, max_iter=100_000, random_state=0, class_weight=class_weight)
        predicted = cross_val_predict(peer, X, y, cv=folds)
        assert accuracy == pytest.approx(np.average(predicted == y, weights=weights[y]))
    peer = LinearSVC(C=chosen.cost, tol=1e-10, max_iter=100_000, random_state=0, class_weight=class_weight).fit(X, y)
    np.testing.assert_allclose(chosen.coef, peer.coef_, atol=2e-2 * np.abs(peer.coef_).max())


def several_labels(n=150):
    X, y = rows(3, n=n)
    return X, np.stack([y == 0, y >= 1, (X[:, 0] > 0) & (y == 2)], axis=1).astype(int)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_several_labels_are_as_many_separate_problems(class_weight):
    X, labels = several_labels()
    chosen = select_svm(X, labels, (0.1, 1.0), folds=3, seed=5, class_weight=class_weight)
    folds = KFold(3, shuffle=True, random_state=5)
    right, held_out = dict.fromkeys((0.1, 1.0), 0.0), {}
    for cost in right:
        peer = LinearSVC(C=cost, tol=1e-10, max_iter=100_000, random_state=0, class_weight=class_weight)
        held_out[cost] = np.stack(
            [cross_val_predict(peer, X, column, cv=folds, method="decision_function") for column in labels.T], axis=1
        )
        right[cost] = ((held_out[cost] > 0) == labels).mean()
    assert chosen.accuracies == pytest.approx(right)
    flat = held_out[chosen.cost].reshape(-1, 1)
    expected = fit_temperature(np.concatenate([-flat / 2, flat / 2], axis=1), labels.reshape(-1))
    assert chosen.temperature == pytest.approx(expected, rel=1e-2)
    for row, column in zip(chosen.coef, labels.T, strict=True):
        peer = LinearSVC(C=chosen.cost, tol=1e-10, max_iter=100_000, random_state=0, class_weight=class_weight)
        np.testing.assert_allclose(row, peer.fit(X, column).coef_[0], atol=2e-2 * np.abs(row).max())


def test_rows_on_disk_give_the_same_separators(tmp_path):
    X, y = rows(n=150)
    X = X.astype(np.float32)
    X.tofile(tmp_path / "rows.bin")
    stored = select_svm(StoredRows(tmp_path / "rows.bin", X.shape, "float32"), y, (0.1, 1.0), seed=1)
    held = select_svm(X, y, (0.1, 1.0), seed=1)
    np.testing.assert_array_equal(stored.coef, held.coef)
    assert stored.accuracies == held.accuracies


@pytest.mark.parametrize("solver", ["gram", "primal"])
def test_any_number_of_threads_gives_the_same_separators(solver):
    X, y = rows(n=150)
    one, two = (select_svm(X, y, (0.1,), solver=solver, block_rows=16, n_jobs=n_jobs) for n_jobs in (1, 2))
    np.testing.assert_array_equal(one.coef, two.coef)


@pytest.mark.parametrize(
    ("class_weight", "labels", "message"),
    [
        ("even", [0, 1], "class_weight must be 'balanced', a dictionary or None, got 'even'"),
        (3, [0, 1], "class_weight must be 'balanced', a dictionary or None, got 3"),
        ({0: -1.0}, [0, 1], "factors that are finite and not negative"),
        ({0: 1.0}, [[0, 1], [1, 0]], "'balanced' or None for several labels an image"),
    ],
)
def test_refused_class_weights(class_weight, labels, message):
    with pytest.raises(ValueError, match=message):
        class_weights(class_weight, np.array(labels))
