"""The classifier against scikit-learn's LinearSVC, and scikit-learn's own checks."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from fisherlayers.fisher_vectors.linear_svm import LinearSVM


def problem(classes, rows=120, features=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(classes, rows, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2)))
    return 0.7 * rng.normal(size=(classes, features))[labels] + rng.normal(size=(rows, features)), labels


def liblinear(**options):
    return LinearSVC(dual=False, tol=1e-10, max_iter=10_000, **options)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"C": 0.05, "intercept_scaling": 5.0},
        {"class_weight": {0: 7.0, 1: 0.5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_linear_svc(classes, options, weighted):
    points, labels = problem(classes)
    weight = np.linspace(0, 2, len(points)) if weighted else None
    ours = LinearSVM(tol=1e-13, **options).fit(points, labels, sample_weight=weight)
    reference = liblinear(**options).fit(points, labels, sample_weight=weight)
    np.testing.assert_allclose(ours.coef_, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, reference.intercept_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        ours.decision_function(points), reference.decision_function(points), rtol=1e-4, atol=1e-5
    )
    assert (ours.predict(points) == reference.predict(points)).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_balanced_classes_have_equal_mass(classes):
    points, labels = problem(classes)
    weight = np.linspace(0.5, 2, len(points))
    mass = np.bincount(labels, weight)
    explicit = dict(enumerate(mass.sum() / (classes * mass)))
    balanced = LinearSVM(class_weight="balanced").fit(points, labels, sample_weight=weight)
    expected = LinearSVM(class_weight=explicit).fit(points, labels, sample_weight=weight)
    np.testing.assert_allclose(balanced.coef_, expected.coef_, rtol=1e-9)
    reference = liblinear(class_weight="balanced").fit(points, labels)
    ours = LinearSVM(class_weight="balanced", tol=1e-13).fit(points, labels)
    np.testing.assert_allclose(ours.coef_, reference.coef_, rtol=1e-4, atol=1e-6)


def test_digits_in_float16_with_names_for_labels():
    points, digits = load_digits(return_X_y=True)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)
    names = np.array([f"digit {digit}" for digit in digits])
    ours = LinearSVM().fit(points[:1000], names[:1000])
    reference = liblinear().fit(points[:1000].astype(np.float64), names[:1000])
    assert ours.classes_.tolist() == sorted(set(names))
    assert ours.score(points[1000:], names[1000:]) == pytest.approx(
        reference.score(points[1000:].astype(np.float64), names[1000:]), abs=2e-3
    )


def test_tensors_are_welcome():
    points, labels = problem(3)
    from_tensor = LinearSVM().fit(torch.from_numpy(points), torch.from_numpy(labels))
    assert (from_tensor.coef_ == LinearSVM().fit(points, labels).coef_).all()


def test_errors_name_the_argument():
    points, labels = problem(3)
    with pytest.raises(ValueError, match="y must hold at least two classes, got one class"):
        LinearSVM().fit(points, np.zeros(len(points)))
    with pytest.raises(ValueError, match="C must be a positive number, got 'large'"):
        LinearSVM(C="large").fit(points, labels)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^C must be a positive number, got"):
            LinearSVM(C=bad).fit(points, labels)
    with pytest.raises(ValueError, match=r"^tol must be positive, got 0"):
        LinearSVM(tol=0.0).fit(points, labels)
    with pytest.raises(ValueError, match=r"^max_iter must be at least 1, got 0"):
        LinearSVM(max_iter=0).fit(points, labels)
    with pytest.raises(ValueError, match=r"^intercept_scaling must be 0 or a positive number, got -1"):
        LinearSVM(intercept_scaling=-1.0).fit(points, labels)
    with pytest.raises(ValueError, match="sample_weight must leave some weight in each class"):
        LinearSVM(class_weight="balanced").fit(points, labels, sample_weight=labels > 0)
    points[3, 2] = np.inf
    with pytest.raises(ValueError, match="must be finite: found NaN or infinity"):
        LinearSVM().fit(points, labels)


def test_an_unreached_tolerance_is_said_without_inner_names():
    points, labels = problem(3)
    with pytest.warns(ConvergenceWarning, match="stopped after 1 steps") as caught:
        LinearSVM(max_iter=1, tol=1e-13).fit(points, labels)
    assert not any(name in str(caught[0].message) for name in ("max_steps", "costs", "float64"))


# Weighted and repeated rows must agree to 1e-7: that takes a tight gap.
@parametrize_with_checks([LinearSVM(tol=1e-20)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)
