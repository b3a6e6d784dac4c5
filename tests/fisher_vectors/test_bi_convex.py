"""The bi-convex projection against its objective written out term by term."""

import pytest
import torch

from fisherlayers.fisher_vectors.bi_convex import bi_convex_rows, margin_objective
from fisherlayers.fisher_vectors.projection import learn_projection, principal_rows


def blobs(classes=4, each=10, features=25, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    centres = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), features, generator=generator, dtype=torch.float64), labels


def test_the_objective_term_by_term():
    encodings, labels = blobs()
    generator = torch.Generator().manual_seed(1)
    projection = torch.randn(3, 25, generator=generator, dtype=torch.float64)
    vectors = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    expected = 0.5 * float((projection**2).sum() + (vectors**2).sum())
    for encoding, label in zip(encodings, labels.tolist(), strict=True):
        for other in range(4):
            if other != label:
                margin = float((vectors[other] - vectors[label]) @ (projection @ encoding))
                expected += 0.7 * max(0.0, 1.0 + margin) ** 2
    assert float(margin_objective(projection, vectors, encodings, labels, 0.7)) == pytest.approx(expected, rel=1e-12)


def test_no_half_turn_raises_the_objective():
    encodings, labels = blobs()
    fit = bi_convex_rows(encodings, labels, 5, cost=0.1, turns=6)
    assert all(
        later <= earlier * (1 + 1e-9) for earlier, later in zip(fit.objectives, fit.objectives[1:], strict=False)
    )
    assert fit.objectives[-1] < 0.7 * fit.objectives[0]


def test_the_objective_reported_is_that_of_the_rows_returned():
    encodings, labels = blobs()
    fit = bi_convex_rows(encodings, labels, 5, cost=0.1)
    found = float(margin_objective(fit.projection, fit.class_vectors, encodings, labels, 0.1))
    assert found == pytest.approx(fit.objectives[-1], rel=1e-9)


def test_the_end_is_stationary():
    encodings, labels = blobs(each=6, features=12)
    fit = bi_convex_rows(encodings, labels, 3, cost=0.1, turns=60, iterations=100)
    projection, vectors = fit.projection.clone().requires_grad_(), fit.class_vectors.clone().requires_grad_()
    margin_objective(projection, vectors, encodings, labels, 0.1).backward()
    assert float(projection.grad.norm()) < 1e-2 * float(fit.projection.norm())
    assert float(vectors.grad.norm()) < 1e-2 * float(fit.class_vectors.norm())


def test_rows_separate_new_images_better_than_principal_directions():
    generator = torch.Generator().manual_seed(3)
    encodings, labels = blobs(classes=3, each=40, features=60)
    encodings = torch.cat([encodings, 15 * torch.randn(120, 5, generator=generator, dtype=torch.float64)], dim=1)
    train = torch.arange(120) % 2 == 0
    accuracies = []
    for rows in (
        bi_convex_rows(encodings[train], labels[train], 2, cost=0.01).projection,
        principal_rows(encodings[train], 2),
    ):
        outputs = encodings @ rows.T
        centres = torch.stack([outputs[train & (labels == label)].mean(0) for label in range(3)])
        accuracies.append(float((torch.cdist(outputs[~train], centres).argmin(1) == labels[~train]).double().mean()))
    assert accuracies[0] > accuracies[1] + 0.2


def test_as_a_kind_of_projection():
    encodings, labels = blobs()
    folds = torch.arange(len(labels)) // 4 % 3
    learned = learn_projection(encodings, labels, folds, kind="bi-convex", size=5, cost=0.1)
    first, second = (bi_convex_rows(encodings[folds != f], labels[folds != f], 5, cost=0.1).projection for f in (0, 1))
    torch.testing.assert_close(learned[0], first)
    # A rotation of its rows changes nothing for the user of W: the second comes as near to the first as it can.
    torch.testing.assert_close(learned[1].T @ learned[1], second.T @ second)
    product = learned[1] @ first.T  # symmetric and positive at the best rotation
    torch.testing.assert_close(product, product.T)
    assert torch.linalg.eigvalsh(product).min() > 0
    assert (learned[1] - first).norm() < (second - first).norm()
    torch.testing.assert_close(learned[-1], learned[:-1].mean(dim=0))
    principal = learn_projection(encodings, labels, folds, kind="principal", size=5)
    torch.testing.assert_close(principal[0], principal_rows(encodings, 5))


def test_folds_that_span_fewer_dimensions():
    encodings, labels = blobs(classes=3, each=4)
    folds = torch.tensor([0, 0, -1, -1] * 3)
    encodings[6] = encodings[2]  # outside the fold 5 different images of 6; all others of 12
    learned = learn_projection(encodings, labels, torch.where(folds < 0, 1, folds), kind="bi-convex", size=6, cost=0.1)
    assert learned.shape == (3, 6, 25)
    assert learned.isfinite().all()


@pytest.mark.parametrize("bad", [{"size": 0}, {"cost": 0.0}, {"turns": 0}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match="at least 1"):
        bi_convex_rows(*blobs(), **{"size": 3, **bad})
