"""The projection W of the semi-local layer, learned from globally pooled Fisher vectors of labelled images.

Labels exist only for whole images. Simonyan et al. (NIPS 2013) therefore learn W on image-level Fisher vectors, and
additivity carries it over: the mean of projected local Fisher vectors is the projected global one. Their rows are the
weights of one-vs-rest linear SVMs, which gives as many directions as classes. With few classes, one SVM a pair of
classes gives C (C - 1) / 2. Discriminant analysis and the softmax classifier give C - 1. Principal directions of the
encodings fill up what is missing; what is too much is reduced to the principal directions of the rows: a rotation of W
changes nothing, since stacking, L2 and PCA follow.

W over-fits the images that it is learned on, and the next layer would see better descriptors in training than it ever
will again. Cross-fitting learns one W a fold, from the other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fisherlayers.fisher_vectors.bi_convex import bi_convex_rows
from fisherlayers.fisher_vectors.discriminant import discriminant_rows
from fisherlayers.fisher_vectors.rows import Rows, row_blocks
from fisherlayers.fisher_vectors.softmax_regression import softmax_regression
from fisherlayers.fisher_vectors.svm import one_vs_rest, svm_path
from fisherlayers.fisher_vectors.svm_spaces import RowSpace, gram_matrix

__all__ = ["KINDS", "check_projection", "learn_projection", "pair_targets", "principal_rows", "svm_rows"]

KINDS = ("auto", "one-vs-rest", "one-vs-one", "both", "bi-convex", "lda", "softmax", "principal")
_WITH_SEVERAL_LABELS = ("auto", "one-vs-rest", "principal")
# With more classes, pairs are too many problems and one-vs-rest has rows enough.
_MOST_CLASSES_IN_PAIRS = 32
# More are solved in turn: each takes a few numbers a row.
_MOST_PROBLEMS = 512
# The rows of W are directions, not classifiers: their optimum need not be exact.
_TOLERANCE = 1e-4
# Discriminant analysis and softmax: coordinates beyond so many principal ones cost more than they add.
_MOST_COORDINATES = 1024
# Variances below so many rounding errors of the largest are noise.
_ROUNDINGS = 8
# Squared lengths below this share of the longest encoding's are rounding errors.
_NO_VARIANCE = 1e-12
# More rows than this have their principal directions by iteration: directions beyond those wanted, and rounds.
_MOST_EXACT = 2048
_SPARE = 16
_POWERS = 6


def learn_projection(
    encodings: Rows,
    labels: Tensor,
    folds: Tensor,
    *,
    kind: str = "auto",
    size: int | None = None,
    cost: float = 1.0,
    **options: Any,
) -> Tensor:
    """Learn W, once for each fold from the images outside it.

    Args:
        encodings: Global hard-assignment Fisher vectors, L2-normalised without the signed square root, (n, E), in
            memory or on disk.
        labels: Class indices 0 .. C - 1, (n,); or for several labels an image 0 and 1, (n, C).
        folds: Fold of each image from 0, (n,), at least two images of every class outside each; all -1 for no
            cross-fitting.
        kind: One that `check_projection` lets pass: ``"one-vs-rest"`` (the paper's, C rows), ``"one-vs-one"``
            (C (C - 1) / 2 rows), ``"both"``, or ``"auto"``: pairs up to 32 classes, one-vs-rest above. ``"bi-convex"``
            is the paper's other objective (`fisherlayers.fisher_vectors.bi_convex`). ``"lda"`` is linear discriminant
            analysis (`fisherlayers.fisher_vectors.discriminant`), ``"softmax"`` the leading directions of multinomial
            logistic regression (`fisherlayers.fisher_vectors.softmax_regression`): C - 1 rows each, learned on up to
            1,024 principal coordinates of all encodings. ``"principal"`` learns nothing from the labels.
        size: Rows of W; None for those of ``kind``. Missing ones are principal directions of the encodings, as far as
            the images differ in any. Too many are reduced to their own principal directions; of ``"lda"`` the first
            are taken.
        cost: C of the SVMs, of the bi-convex objective and of the softmax classifier.
        **options: Further arguments of `svm_path`.

    Returns:
        (F, h, E): W of each fold, then, for images outside all folds, their mean; (1, h, E) without cross-fitting.
    """
    check_projection(kind, several_labels=labels.ndim == 2)
    classes = int(labels.max()) + 1
    if labels.ndim == 2:
        kind = "one-vs-rest"
    elif kind == "auto":
        kind = "one-vs-one" if classes <= _MOST_CLASSES_IN_PAIRS else "one-vs-rest"

    seen = [folds != fold for fold in range(int(folds.max()) + 1)] or [torch.full_like(folds, True, dtype=torch.bool)]
    if kind == "principal":
        rows = principal_rows(encodings, min(size or 2 * classes, len(encodings) - 1), n_jobs=options.get("n_jobs"))
        learned = rows.expand(len(seen), -1, -1)
    elif kind == "bi-convex":
        whole = encodings.to(encodings.dtype)
        rank = size or 2 * classes
        found = [bi_convex_rows(whole[m], labels[m], rank, cost=cost).projection for m in seen]
        rank = min(map(len, found))  # images outside a fold may span fewer dimensions than others
        learned = _aligned(torch.stack([projection[:rank] for projection in found]))
    elif kind in {"lda", "softmax"}:
        basis, coordinates = _principal_coordinates(encodings, options.get("n_jobs"))
        if kind == "lda":
            rows = discriminant_rows(coordinates, labels, seen)[:, :size]
        else:
            rows = _softmax_rows(coordinates, labels, seen, size, cost)
        learned = (rows @ basis.to(rows)).to(basis)
    else:
        targets = _targets(labels, classes, kind)
        # Folds are problems side by side on the same rows, of which each leaves some out.
        at_once = max(1, _MOST_PROBLEMS // targets.shape[1])
        groups = [seen[start : start + at_once] for start in range(0, len(seen), at_once)]
        problems = [torch.cat([targets * mask[:, None] for mask in group], dim=1) for group in groups]
        learned = torch.cat([svm_rows(encodings, columns, cost=cost, **options) for columns in problems])
        learned = learned.reshape(len(seen), targets.shape[1], -1)
    if size is not None and size < learned.shape[1]:
        learned = _principal_mixtures(learned.mean(dim=0), size) @ learned
    elif size is not None and size > learned.shape[1]:
        # Principal directions know no labels: one set serves all folds. They take the scale of the learned rows.
        missing = min(size - learned.shape[1], len(encodings) - 1)
        extra = principal_rows(encodings, missing, n_jobs=options.get("n_jobs")) * learned.norm(dim=-1).mean()
        learned = torch.cat([learned, extra.expand(len(learned), -1, -1)], dim=1)
    return learned if len(seen) < 2 else torch.cat([learned, learned.mean(dim=0, keepdim=True)])


def check_projection(kind: str, *, several_labels: bool = False) -> None:
    """Refuse what cannot be learned.

    Args:
        kind: As for `learn_projection`.
        several_labels: Whether an image may have several labels.

    Raises:
        ValueError: If ``kind`` is unknown, or has no meaning for several labels an image.
    """
    if kind not in KINDS:
        raise ValueError(f"projection must be one of {KINDS}, got {kind!r}")
    if several_labels and kind not in _WITH_SEVERAL_LABELS:
        raise ValueError(f"projection must be one of {_WITH_SEVERAL_LABELS} for several labels an image, got {kind!r}")


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


def _targets(labels: Tensor, classes: int, kind: str) -> Tensor:
    if labels.ndim == 2:
        return 2.0 * labels.double() - 1.0
    targets = []
    if classes == 2 or kind != "one-vs-one":
        targets.append(one_vs_rest(labels, classes)[:, classes == 2 :])
    if classes > 2 and kind != "one-vs-rest":
        targets.append(pair_targets(labels, classes))
    return torch.cat(targets, dim=1)


def principal_rows(encodings: Rows, size: int, *, n_jobs: int | None = None) -> Tensor:
    """Directions of the largest variance of the encodings.

    Of up to 2,048 encodings they are exact, from the matrix of their inner products; of more they come from subspace
    iteration over blocks of rows, whose memory does not grow with the number of encodings, nor its time with the
    square: the span of the leading directions is found, those at its edge roughly.

    Args:
        encodings: (n, E), in memory or on disk.
        size: Number of directions, at most n - 1 and E.
        n_jobs: Threads over blocks of rows.

    Returns:
        (size, E), orthonormal; fewer where the encodings, up to 2,048, differ in fewer.
    """
    if len(encodings) > _MOST_EXACT:
        return _iterated_rows(encodings, size, n_jobs)
    # The Gram matrix of the centred rows is H G H with H = I - 1 1ᵀ / n; a direction is a combination of centred rows.
    gram = gram_matrix(encodings, n_jobs=n_jobs, precision=torch.float64)
    largest = gram.diagonal().max()
    gram = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    values, vectors = (part[..., -size:].flip(-1) for part in torch.linalg.eigh(gram))
    chosen = vectors[:, values > _NO_VARIANCE * largest]
    combinations_of_rows = chosen - chosen.mean(dim=0)
    space = RowSpace(encodings, bias=0.0, n_jobs=n_jobs, precision=torch.float64)
    rows = space.combine(combinations_of_rows)[:-1].T
    return (rows / rows.norm(dim=1, keepdim=True)).to(encodings.dtype)


def _principal_coordinates(encodings: Rows, n_jobs: int | None) -> tuple[Tensor, Tensor]:
    # Directions as rows, (r, E), and the centred encodings along them, (n, r) in float64. Below 1,024 images these are
    # all directions in which encodings differ: what is isotropic outside them has its solutions inside.
    basis = principal_rows(encodings, min(_MOST_COORDINATES, len(encodings) - 1, encodings.shape[1]), n_jobs=n_jobs)
    coordinates = torch.cat([(block @ basis.T.to(block)).double() for _, block in row_blocks(encodings)])
    coordinates -= coordinates.mean(dim=0)
    variances = coordinates.square().mean(dim=0)
    kept = variances > _ROUNDINGS * torch.finfo(basis.dtype).eps * variances.max()
    return basis[kept], coordinates[:, kept]


def _softmax_rows(coordinates: Tensor, labels: Tensor, seen: Sequence[Tensor], size: int | None, cost: float) -> Tensor:
    classes = int(labels.max()) + 1
    # One row a class, in the order of the classes: those of several folds can be averaged and reduced together.
    weights = torch.stack([
        softmax_regression(coordinates[members], labels[members], classes, cost=cost).weights for members in seen
    ])
    rank = min(classes - 1, coordinates.shape[1], size or classes - 1)
    return _principal_mixtures(weights.mean(dim=0), rank) @ weights


def _iterated_rows(encodings: Rows, size: int, n_jobs: int | None) -> Tensor:
    # Halko, Martinsson and Tropp (2011): powers of the covariance on a random block, then Rayleigh and Ritz.
    count, features = encodings.shape
    space = RowSpace(encodings, bias=0.0, n_jobs=n_jobs)
    ones = torch.ones(count, 1, dtype=torch.float64)
    mean = space.combine(ones / count)[:-1]
    block = torch.randn(features, min(size + _SPARE, features), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(block.double())[0]
    for _ in range(_POWERS):
        with_bias = torch.cat([basis, torch.zeros_like(basis[:1])])
        moments = space.curve(with_bias, ones.expand(-1, basis.shape[1]))[:-1]
        product = moments / count - mean @ (mean.T @ basis)
        previous, basis = basis, torch.linalg.qr(product)[0]
    _, mixing = torch.linalg.eigh(previous.T @ product)
    leading = torch.linalg.qr(product @ mixing.flip(1))[0][:, :size]
    return leading.T.to(encodings.dtype)


def svm_rows(encodings: Rows, targets: Tensor, *, cost: float = 1.0, **options: Any) -> Tensor:
    """Weights of linear separators with squared hinge loss, without their biases.

    Args:
        encodings: (n, E).
        targets: One problem a column, (n, h): 1, -1, or 0 for images that do not take part.
        cost: C, positive.
        **options: Further arguments of `svm_path`.

    Returns:
        (h, E).
    """
    (fit,) = svm_path(encodings, targets, [cost], tolerance=_TOLERANCE, **options)
    return fit.weights.to(encodings.dtype)


def _principal_mixtures(rows: Tensor, size: int) -> Tensor:
    """Return the orthonormal mixtures of rows, (size, h), that keep most of their squares."""
    return torch.linalg.eigh((rows @ rows.T).double())[1][:, -size:].flip(1).T.to(rows)


def _aligned(projections: Tensor) -> Tensor:
    """Return every W with its rows rotated to those of the first, which is all the same to its user (Procrustes)."""
    left, _, right = torch.linalg.svd(projections[:1] @ projections.mT)
    return torch.cat([projections[:1], (left @ right)[1:] @ projections[1:]])
