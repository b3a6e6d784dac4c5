"""The projection W of the semi-local layer, learned from globally pooled Fisher vectors of labelled images.

Labels exist only for whole images. Simonyan et al. (NIPS 2013) therefore learn W on image-level Fisher vectors, and
additivity carries it over: the mean of projected local Fisher vectors is the projected global one. Their rows are the
weights of one-vs-rest linear SVMs, which gives as many directions as classes. With few classes, one SVM a pair of
classes gives C (C - 1) / 2. Principal directions of the encodings fill up what is missing; what is too much is reduced
to the principal directions of the rows: a rotation of W changes nothing, since stacking, L2 and PCA follow.

W over-fits the images that it is learned on, and the next layer would see better descriptors in training than it ever
will again. Cross-fitting learns one W a fold, from the other folds.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.bi_convex import bi_convex_rows
from fisherlayers.fisher_vectors.svm import fit_svm, one_vs_rest

__all__ = ["KINDS", "learn_projection", "pair_targets", "principal_rows", "svm_rows"]

KINDS = ("auto", "one-vs-rest", "one-vs-one", "both", "bi-convex", "principal")
_WITH_SEVERAL_LABELS = ("auto", "one-vs-rest", "principal")
# With more classes, pairs are too many problems and one-vs-rest has rows enough.
_MOST_CLASSES_IN_PAIRS = 32
# The rows of W are directions, not classifiers: their optimum need not be exact.
_TOLERANCE = 1e-4


def learn_projection(
    encodings: Tensor,
    labels: Tensor,
    folds: Tensor,
    *,
    kind: str = "auto",
    size: int | None = None,
    cost: float = 1.0,
) -> Tensor:
    """Learn W, once for each fold from the images outside it.

    Args:
        encodings: Global hard-assignment Fisher vectors, L2-normalised without the signed square root, (n, E).
        labels: Class indices 0 .. C - 1, (n,); or for several labels an image 0 and 1, (n, C).
        folds: Fold of each image from 0, (n,), at least two images of every class outside each; all -1 for no
            cross-fitting.
        kind: ``"one-vs-rest"`` (the paper's, C rows), ``"one-vs-one"`` (C (C - 1) / 2 rows), ``"both"``, or ``"auto"``:
            pairs up to 32 classes, one-vs-rest above; ``"bi-convex"`` is the paper's other objective
            (`fisherlayers.fisher_vectors.bi_convex`), ``"principal"`` learns nothing from the labels.
        size: Rows of W; None for those of ``kind``. Missing ones are principal directions of the encodings, as far as
            the number of images allows; too many are reduced to their own principal directions.
        cost: C of the SVMs.

    Returns:
        (F, h, E): W of each fold, then, for images outside all folds, their mean; (1, h, E) without cross-fitting.

    Raises:
        ValueError: If ``kind`` is unknown, or has no meaning for several labels an image.
    """
    if kind not in KINDS:
        raise ValueError(f"projection must be one of {KINDS}, got {kind!r}")
    if labels.ndim == 2 and kind not in _WITH_SEVERAL_LABELS:
        raise ValueError(f"projection must be one of {_WITH_SEVERAL_LABELS} for several labels an image, got {kind!r}")
    classes = int(labels.max()) + 1
    if labels.ndim == 2:
        kind = "one-vs-rest"
    elif kind == "auto":
        kind = "one-vs-one" if classes <= _MOST_CLASSES_IN_PAIRS else "one-vs-rest"

    def learn(rows: Tensor) -> Tensor:
        if kind == "principal":
            return principal_rows(encodings, min(size or 2 * classes, len(encodings) - 1))
        if kind == "bi-convex":
            return bi_convex_rows(encodings[rows], labels[rows], size or 2 * classes, cost=cost).projection
        targets = []
        if labels.ndim == 2:
            targets.append(2.0 * labels[rows].double() - 1.0)
        elif classes == 2 or kind != "one-vs-one":
            targets.append(one_vs_rest(labels[rows], classes)[:, classes == 2 :])
        if labels.ndim == 1 and classes > 2 and kind != "one-vs-rest":
            targets.append(pair_targets(labels[rows], classes))
        return svm_rows(encodings[rows], torch.cat(targets, dim=1), cost=cost)

    number = int(folds.max()) + 1
    everything = torch.arange(len(labels))
    learned = torch.stack([learn(everything[folds != fold]) for fold in range(number)] or [learn(everything)])
    if size is not None and size < learned.shape[1]:
        learned = _principal_mixtures(learned.mean(dim=0), size) @ learned
    elif size is not None and size > learned.shape[1]:
        # Principal directions know no labels: one set serves all folds. They take the scale of the learned rows.
        missing = min(size - learned.shape[1], len(encodings) - 1)
        extra = principal_rows(encodings, missing) * learned.norm(dim=-1).mean()
        learned = torch.cat([learned, extra.expand(len(learned), -1, -1)], dim=1)
    return learned if number < 2 else torch.cat([learned, learned.mean(dim=0, keepdim=True)])


def pair_targets(labels: Tensor, classes: int) -> Tensor:
    """Targets of one-vs-one separators.

    Args:
        labels: Class indices, (n,).
        classes: C.

    Returns:
        (n, C (C - 1) / 2): 1 for the first class of the pair, -1 for the second, 0 for images that do not take part.
    """
    return torch.stack(
        [(labels == first).double() - (labels == second).double() for first, second in combinations(range(classes), 2)],
        dim=1,
    )


def principal_rows(encodings: Tensor, size: int) -> Tensor:
    """Directions of the largest variance of the encodings, computed in the space of images.

    Args:
        encodings: (n, E).
        size: Number of directions, at most n - 1.

    Returns:
        (size, E), of unit length.
    """
    centred = encodings - encodings.mean(dim=0)
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    rows = vectors[:, -size:].flip(1).T.to(encodings) @ centred
    return rows / values[-size:].flip(0).clamp_min(1e-12).sqrt().to(encodings)[:, None]


def svm_rows(encodings: Tensor, targets: Tensor, *, cost: float = 1.0) -> Tensor:
    """Weights of linear separators with squared hinge loss, without their biases.

    Args:
        encodings: (n, E).
        targets: One problem a column, (n, h): 1, -1, or 0 for images that do not take part.
        cost: C, positive.

    Returns:
        (h, E).
    """
    return fit_svm(encodings, targets, cost, tolerance=_TOLERANCE).weights.to(encodings)


def _principal_mixtures(rows: Tensor, size: int) -> Tensor:
    """Return the orthonormal mixtures of rows, (size, h), that keep most of their squares."""
    return torch.linalg.eigh((rows @ rows.T).double())[1][:, -size:].flip(1).T.to(rows)
