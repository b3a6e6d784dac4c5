"""Discriminant analysis against the generalised eigenproblem and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fisher_vectors.labelled_rows import blobs
from fisherlayers.fisher_vectors import projection
from fisherlayers.fisher_vectors.discriminant import class_moments, discriminant_rows, shrunk_covariance
from fisherlayers.fisher_vectors.projection import learn_projection


def everything(labels):
    return torch.ones_like(labels, dtype=torch.bool)


def covariances(rows, labels):
    """Between-class and plain within-class covariance, image by image."""
    between = within = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    mean = rows.mean(dim=0)
    for row, label in zip(rows, labels, strict=True):
        own = rows[labels == label].mean(dim=0)
        between = between + torch.outer(own - mean, own - mean) / len(rows)
        within = within + torch.outer(row - own, row - own) / len(rows)
    return between, within


def test_shrinkage_is_ledoit_and_wolfs():
    # Their lemma 3.2 and theorem 3.2, image by image.
    rows, labels = blobs(each=7)
    residuals = class_moments(rows, labels, 4)[2]
    found, share = shrunk_covariance(residuals)
    plain = covariances(rows, labels)[1]
    target = plain.trace() / 30 * torch.eye(30, dtype=torch.float64)
    error = sum((torch.outer(row, row) - plain).square().sum() for row in residuals) / len(residuals) ** 2
    expected = float(error / (plain - target).square().sum())
    assert share == pytest.approx(expected, rel=1e-10)
    assert 0 < share < 1
    torch.testing.assert_close(found, (1 - share) * plain + share * target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("each", [30, 5], ids=["more images than features", "fewer"])
def test_rows_solve_the_eigenproblem(each):
    rows, labels = blobs(each=each)
    (found,) = discriminant_rows(rows, labels, [everything(labels)])
    between, within = covariances(rows, labels)
    share = ledoit_wolf(class_moments(rows, labels, 4)[2].numpy(), assume_centered=True)[1]
    shrunk = (1 - share) * within + share * within.trace() / 30 * torch.eye(30, dtype=torch.float64)
    values, vectors = eigh(between.numpy(), shrunk.numpy())
    expected = torch.from_numpy(vectors[:, :-4:-1].T.copy())
    signs = (found * expected).sum(dim=1, keepdim=True).sign()
    torch.testing.assert_close(found * signs, expected, rtol=1e-7, atol=1e-9)
    projected = found @ between @ found.T
    torch.testing.assert_close(projected, torch.diag(torch.from_numpy(values[:-4:-1].copy())), rtol=1e-8, atol=1e-10)


def test_encodings_of_more_entries_than_images():
    """In the space of all entries, with the shrinkage of the space that the images span."""
    encodings, labels = blobs(each=5, features=60)
    found = learn_projection(encodings, labels, torch.full_like(labels, -1), kind="lda")[0]
    assert found.shape == (3, 60)
    between, within = covariances(encodings, labels)
    basis = torch.linalg.svd(encodings - encodings.mean(dim=0))[2][:19]
    share = ledoit_wolf((class_moments(encodings, labels, 4)[2] @ basis.T).numpy(), assume_centered=True)[1]
    shrunk = (1 - share) * within + share * within.trace() / 19 * basis.T @ basis
    peer = LinearDiscriminantAnalysis(solver="eigen", shrinkage=share, priors=np.full(4, 0.25))
    assert peer.fit((encodings @ basis.T).numpy(), labels.numpy()).score((encodings @ basis.T).numpy(), labels) == 1
    torch.testing.assert_close(found @ shrunk @ found.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
    expected = torch.linalg.eigvals(torch.linalg.pinv(shrunk) @ between).real.sort(descending=True)[0][:3]
    torch.testing.assert_close(found @ between @ found.T, torch.diag(expected), rtol=1e-6, atol=1e-6)


def test_rows_are_filled_up_or_left_out_from_the_end():
    encodings, labels = blobs()
    whole = torch.full_like(labels, -1)
    three = learn_projection(encodings, labels, whole, kind="lda")[0]
    assert torch.equal(learn_projection(encodings, labels, whole, kind="lda", size=2)[0], three[:2])
    more = learn_projection(encodings, labels, whole, kind="lda", size=8)[0]
    assert torch.equal(more[:3], three)
    torch.testing.assert_close(more[3:].norm(dim=1), three.norm(dim=1).mean().expand(5))


def test_folds_agree_in_their_coordinates():
    """The mean of the folds' W still is a W: it would be near zero if signs were left to chance."""
    encodings, labels = blobs(each=30, seed=1)
    folds = torch.arange(len(labels)) // 4 % 3
    learned = learn_projection(encodings, labels, folds, kind="lda", size=3)
    outputs = encodings @ learned.mT
    for fold in range(3):
        assert torch.corrcoef(torch.stack([outputs[fold].flatten(), outputs[3].flatten()]))[0, 1] > 0.8
    centres = torch.stack([outputs[3][labels == label].mean(dim=0) for label in range(4)])
    assert float((torch.cdist(outputs[3], centres).argmin(dim=1) == labels).double().mean()) > 0.95


def test_a_fold_spans_what_its_own_images_say():
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 3
    learned = learn_projection(encodings, labels, folds, kind="lda")
    rows = encodings[folds != 1]
    (alone,) = discriminant_rows(rows, labels[folds != 1], [everything(rows[:, 0])])
    both = torch.cat([learned[1], alone])
    assert torch.linalg.svdvals(both)[3] < 1e-8 * torch.linalg.svdvals(both)[0]


def test_classes_of_one_image_each_and_two_classes():
    rows, labels = blobs(each=1)
    (found,) = discriminant_rows(rows, labels, [everything(labels)])
    torch.testing.assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))
    rows, labels = blobs(classes=2, each=10)
    (row,) = learn_projection(rows, labels, torch.full_like(labels, -1), kind="lda")[0]
    outputs = rows @ row
    middle = (outputs[labels == 0].mean() + outputs[labels == 1].mean()) / 2
    right = (outputs > middle) == (labels == int(outputs[labels == 1].mean() > middle))
    assert bool(right.all())


def test_coordinates_are_bounded(monkeypatch):
    monkeypatch.setattr(projection, "_MOST_COORDINATES", 9)
    encodings, labels = blobs()
    found = learn_projection(encodings, labels, torch.full_like(labels, -1), kind="lda")[0]
    basis = torch.linalg.svd(encodings - encodings.mean(dim=0))[2][:9]
    torch.testing.assert_close(found, found @ basis.T @ basis)


def test_encodings_that_repeat_themselves():
    encodings, labels = blobs(each=6)
    encodings, labels = torch.cat([encodings] * 2).float(), torch.cat([labels] * 2)
    encodings[:, 20:] = 0
    found = learn_projection(encodings, labels, torch.full_like(labels, -1), kind="lda")[0]
    assert bool(torch.isfinite(found).all())
    assert float(found[:, 20:].abs().max()) < 1e-3 * float(found.abs().max())
