"""The softmax classifier against its objective written out, and the rows of W against another fit of it."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fisher_vectors.labelled_rows import blobs
from fisherlayers.fisher_vectors.projection import learn_projection
from fisherlayers.fisher_vectors.softmax_regression import softmax_regression


def peer_weights(encodings, labels, cost):
    peer = LogisticRegression(C=cost, tol=1e-9, max_iter=5000)
    peer.fit(encodings.numpy(), labels.numpy())
    return torch.from_numpy(peer.coef_ - peer.coef_.mean(axis=0))


def objective(weights, intercepts, rows, labels, cost):
    total = 0.5 * weights.square().sum()
    for row, label in zip(rows, labels.tolist(), strict=True):
        exponentials = (weights @ row + intercepts).exp()
        total = total - cost * (exponentials[label] / exponentials.sum()).log()
    return total


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_the_weights_minimise_the_objective_image_by_image(classes, cost):
    # It is convex in V and b: where the gradient is zero, is the minimum.
    rows, labels = blobs(classes)
    fit = softmax_regression(rows, labels, classes, cost=cost, tolerance=1e-9, iterations=5000)
    point = [part.clone().requires_grad_() for part in fit]
    start = [torch.zeros_like(part).requires_grad_() for part in fit]
    found = torch.autograd.grad(objective(*point, rows, labels, cost), point)
    initial = torch.autograd.grad(objective(*start, rows, labels, cost), start)
    for gradient, part in zip(found, ("weights", "intercepts"), strict=True):
        assert gradient.abs().max() < 1e-5 * initial[0].abs().max(), part
    torch.testing.assert_close(fit.weights.sum(dim=0), torch.zeros(30, dtype=torch.float64), rtol=0, atol=1e-12)
    # At the default tolerance the directions are there.
    quick = softmax_regression(rows, labels, classes, cost=cost).weights
    torch.testing.assert_close(quick, fit.weights, rtol=0, atol=0.02 * float(fit.weights.abs().max()))


def test_rows_are_the_leading_singular_directions():
    encodings, labels = blobs(each=6, features=50)
    whole = torch.full_like(labels, -1)
    weights = peer_weights(encodings, labels, 0.3)
    _, values, right = torch.linalg.svd(weights)
    for size, rank in ((None, 3), (2, 2), (3, 3)):
        found = learn_projection(encodings, labels, whole, kind="softmax", size=size, cost=0.3)[0]
        expected = right[:rank].T * values[:rank].square() @ right[:rank]
        torch.testing.assert_close(found.T @ found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
        assert found.shape == (rank, 50)
    more = learn_projection(encodings, labels, whole, kind="softmax", size=9, cost=0.3)[0]
    torch.testing.assert_close(more[3:].norm(dim=1), more[:3].norm(dim=1).mean().expand(6))


def test_folds_are_reduced_by_one_rotation_and_do_not_know_their_images():
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 3
    learned = learn_projection(encodings, labels, folds, kind="softmax", size=2)
    torch.testing.assert_close(learned[3], learned[:3].mean(dim=0))
    full = learn_projection(encodings, labels, folds, kind="softmax")
    mixtures = torch.linalg.lstsq(full[3].T, learned[3].T).solution.T
    torch.testing.assert_close(mixtures @ full[0], learned[0])
    alone = peer_weights(encodings[folds != 1], labels[folds != 1], 1.0)
    torch.testing.assert_close(
        full[1].T @ full[1], alone.T @ alone, rtol=0, atol=0.02 * float((alone.T @ alone).abs().max())
    )


def test_two_classes_have_one_direction():
    encodings, labels = blobs(classes=2)
    (row,) = learn_projection(encodings, labels, torch.full_like(labels, -1), kind="softmax")[0]
    margins = encodings @ row
    assert (margins[labels == 1].min() - margins[labels == 0].max()) * (
        margins[labels == 0].min() - margins[labels == 1].max()
    ) < 0


@pytest.mark.parametrize("bad", [{"cost": 0.0}, {"tolerance": 0.0}, {"iterations": 0}, {"classes": 1}])
def test_bad_arguments_are_named(bad):
    rows, labels = blobs()
    with pytest.raises(ValueError, match="classes must be at least 2, iterations at least 1, cost and tolerance"):
        softmax_regression(rows, labels, bad.pop("classes", 4), **bad)
