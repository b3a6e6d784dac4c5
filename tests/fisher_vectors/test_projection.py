"""Learned projections against scikit-learn's SVM, one problem at a time."""

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from fisher_vectors.labelled_rows import blobs
from fisherlayers.fisher_vectors import projection
from fisherlayers.fisher_vectors.projection import learn_projection, pair_targets, principal_rows, svm_rows
from fisherlayers.fisher_vectors.rows import StoredRows
from fisherlayers.fisher_vectors.svm import one_vs_rest


def peer_row(encodings, targets, cost):
    """One separator by liblinear: its dual form, bias as the weight of a constant feature."""
    used = targets != 0
    peer = LinearSVC(C=cost, tol=1e-10, max_iter=100_000, random_state=0)
    return torch.tensor(peer.fit(encodings[used].numpy(), targets[used].numpy()).coef_[0])


def no_folds(labels):
    return torch.full_like(labels, -1)


@pytest.mark.parametrize("cost", [0.01, 1.0])
def test_rows_are_the_separators_weights(cost):
    encodings, labels = blobs()
    for targets in (one_vs_rest(labels, 4), pair_targets(labels, 4)):
        rows = svm_rows(encodings, targets, cost=cost)
        expected = torch.stack([peer_row(encodings, column, cost) for column in targets.T])
        torch.testing.assert_close(rows, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_kinds_and_their_numbers_of_rows():
    encodings, labels = blobs()
    learn = {k: learn_projection(encodings, labels, no_folds(labels), kind=k) for k in ("one-vs-rest", "one-vs-one")}
    both = learn_projection(encodings, labels, no_folds(labels), kind="both")
    assert {kind: len(w[0]) for kind, w in learn.items()} == {"one-vs-rest": 4, "one-vs-one": 6}
    torch.testing.assert_close(
        both, torch.cat([learn["one-vs-rest"], learn["one-vs-one"]], dim=1), rtol=1e-3, atol=1e-3
    )


def test_two_classes_have_one_direction():
    encodings, labels = blobs(classes=2)
    for kind in ("one-vs-rest", "one-vs-one", "both"):
        (row,) = learn_projection(encodings, labels, no_folds(labels), kind=kind)[0]
        margins = encodings @ row
        assert margins[labels == 1].min() > margins[labels == 0].max()


def test_cross_fitted_rows_do_not_know_their_fold(monkeypatch):
    # Solved side by side, folds stop together; in turn, what one sees cannot move another by even a rounding error.
    monkeypatch.setattr(projection, "_MOST_PROBLEMS", 1)
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 3
    learned = learn_projection(encodings, labels, folds)
    assert len(learned) == 4
    torch.testing.assert_close(learned[3], learned[:3].mean(dim=0))
    changed = encodings.clone()
    changed[folds == 1] += 5.0
    again = learn_projection(changed, labels, folds)
    assert torch.equal(again[1], learned[1])
    assert not torch.allclose(again[0], learned[0])


def test_size_cuts_or_fills_up():
    encodings, labels = blobs()
    full = learn_projection(encodings, labels, no_folds(labels))[0]
    smaller = learn_projection(encodings, labels, no_folds(labels), size=3)[0]
    _, values, right = np.linalg.svd(full.numpy(), full_matrices=False)
    np.testing.assert_allclose(np.linalg.svd(smaller.numpy())[1], values[:3], rtol=1e-6)
    np.testing.assert_allclose(smaller.T @ smaller, right[:3].T * values[:3] ** 2 @ right[:3], atol=1e-8)
    larger = learn_projection(encodings, labels, no_folds(labels), size=9)[0]
    assert torch.equal(larger[:6], full)
    torch.testing.assert_close(larger[6:].norm(dim=1), full.norm(dim=1).mean().expand(3))
    assert len(learn_projection(encodings, labels, no_folds(labels), size=100)[0]) == 6 + 30


def test_reduction_is_one_rotation_for_all_folds():
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 2
    full = learn_projection(encodings, labels, folds)
    reduced = learn_projection(encodings, labels, folds, size=5)
    mixtures = torch.linalg.lstsq(full[2].T, reduced[2].T).solution.T
    torch.testing.assert_close(mixtures @ mixtures.T, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(mixtures @ full[0], reduced[0])


def test_many_classes_take_one_row_each():
    encodings, labels = blobs(classes=33, each=2)
    assert len(learn_projection(encodings, labels, no_folds(labels))[0]) == 33


def test_principal_rows_are_the_singular_vectors():
    encodings, _ = blobs()
    rows = principal_rows(encodings, 5)
    expected = np.linalg.svd((encodings - encodings.mean(dim=0)).numpy(), full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(rows.numpy() @ expected.T), np.eye(5), atol=1e-8)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_principal_rows_of_repeated_encodings_are_those_that_there_are(offset):
    distinct = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) + offset
    rows = principal_rows(distinct.repeat(4, 1), 19)
    assert len(rows) == 4
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-5)
    expected = np.linalg.svd((distinct - distinct.mean(dim=0)).double().numpy(), full_matrices=False)[2][:4]
    np.testing.assert_allclose(np.abs(rows.double().numpy() @ expected.T), np.eye(4), atol=1e-5)


def test_principal_rows_of_many_encodings(monkeypatch, tmp_path):
    """By iteration: the same span as far as the spectrum tells directions apart, bit for bit on disk and in threads."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0, 4, 60).neg().exp()
    encodings = (torch.randn(300, 60, generator=generator) * spread + 3).float()
    exact = principal_rows(encodings, 8)
    encodings.numpy().tofile(tmp_path / "rows.bin")
    on_disk = StoredRows(tmp_path / "rows.bin", tuple(encodings.shape), "float32")
    monkeypatch.setattr(projection, "_MOST_EXACT", 299)
    found = principal_rows(encodings, 8)
    torch.testing.assert_close(found @ found.T, torch.eye(8), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.svd((found @ exact.T).numpy())[1], 1, atol=0.01)
    torch.testing.assert_close((found[0] @ exact[0]).abs(), torch.tensor(1.0), rtol=0, atol=1e-3)
    assert torch.equal(found, principal_rows(on_disk, 8, n_jobs=2))


def test_bad_input():
    encodings, labels = blobs()
    with pytest.raises(ValueError, match="projection must be one of"):
        learn_projection(encodings, labels, no_folds(labels), kind="magic")
    several = torch.nn.functional.one_hot(labels)
    for kind in ("lda", "softmax", "one-vs-one"):
        with pytest.raises(ValueError, match=f"for several labels an image, got '{kind}'"):
            learn_projection(encodings, several, no_folds(labels), kind=kind)


@pytest.mark.parametrize("kind", ["one-vs-one", "one-vs-rest", "both", "principal", "bi-convex", "lda", "softmax"])
def test_encodings_on_disk_and_any_number_of_threads_give_the_same_rows(kind, tmp_path):
    encodings, labels = blobs()
    encodings = encodings.float()
    encodings.numpy().tofile(tmp_path / "rows.bin")
    on_disk = StoredRows(tmp_path / "rows.bin", tuple(encodings.shape), "float32")
    folds = torch.arange(len(labels)) // 4 % 3
    held = learn_projection(encodings, labels, folds, kind=kind, size=12)
    assert torch.equal(learn_projection(on_disk, labels, folds, kind=kind, size=12, n_jobs=2), held)


def test_folds_solved_in_turn_are_those_solved_together(monkeypatch):
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 3
    together = learn_projection(encodings, labels, folds)
    monkeypatch.setattr(projection, "_MOST_PROBLEMS", 1)
    torch.testing.assert_close(learn_projection(encodings, labels, folds), together, rtol=0, atol=2e-3)
