"""Encodings of several sources together: the hybrid of the Deep Fisher Network with pretrained features.

Two ways: all encodings side by side before one SVM, or `LateFusion` of an SVM a source, whose weights are learned on
training images that its members had not seen. Encodings are made once; what sees no label (PCA, mixtures, a pretrained
network) was learned without the folds, what sees labels (the projection of the second layer) is cross-fitted already.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from benchmarks.image_peers import linear_scores
from fisherlayers import LateFusion
from fisherlayers.fisher_vectors.selection import SelectedSVM, select_svm


class Rows(NamedTuple):
    """The encodings of one source.

    Attributes:
        train: (m, F); m is n, or 2 n where mirror images follow as training images of their own.
        test: (t, F).
        cost: C of the SVM, chosen on the training images.
    """

    train: NDArray[Any]
    test: NDArray[Any]
    cost: float


def together(members: Sequence[Rows], labels: NDArray[np.int64], costs: Sequence[float]) -> tuple[Rows, SelectedSVM]:
    """Put the encodings of all sources side by side, with equal weights, and learn one SVM.

    Args:
        members: of the same images.
        labels: of the training images, (n,).
        costs: candidates for C.

    Returns:
        The joined encodings and their SVM.
    """
    views = max(len(member.train) // len(labels) for member in members)
    scale = len(members) ** -0.5
    train = np.concatenate([scale * _tiled(member.train, views * len(labels)) for member in members], axis=1)
    svm = select_svm(train, np.tile(labels, views), costs, groups=np.arange(len(train)) % len(labels))
    test = np.concatenate([scale * np.float32(member.test) for member in members], axis=1)
    return Rows(train, test, svm.cost), svm


def late_fusion(members: dict[str, Rows], labels: NDArray[np.int64], *, folds: int = 3) -> tuple[LateFusion, Any]:
    """Fuse an SVM a source.

    Args:
        members: by name, of the same images.
        labels: of the training images, (n,).
        folds: in which the members' held-out scores are made.

    Returns:
        The fitted fusion, whose "images" are places in the rows, and the scores of the test images, (t, C).
    """
    estimators = [(name, RowsSVM(_Shared(rows, len(labels)), rows.cost)) for name, rows in members.items()]
    fusion = LateFusion(estimators, cv=folds, random_state=0).fit(np.arange(len(labels)), labels)
    count = len(next(iter(members.values())).test)
    # Places below 0 are test images.
    return fusion, fusion.decision_function(-1 - np.arange(count))


class RowsSVM(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear SVM on encodings that are made already; its images are places in their rows.

    Args:
        shared: the encodings.
        cost: C.
    """

    def __init__(self, shared: "_Shared", cost: float) -> None:
        self.shared = shared
        self.cost = cost

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.int64]) -> Self:
        """Learn from training images.

        Args:
            places: of the training images, (n',).
            labels: (n',).

        Returns:
            This classifier.
        """
        rows = self.shared.rows
        views = range(0, len(rows.train), self.shared.count)
        self.classes_, indices = np.unique(labels, return_inverse=True)
        train = np.concatenate([rows.train[places + view] for view in views])
        self.svm_ = select_svm(train, np.tile(indices, len(views)), (self.cost,), folds=0)
        return self

    def decision_function(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores, (n', C), of training images, or of test images, which places below 0 count from -1 down."""
        rows = self.shared.rows
        return linear_scores(np.float32(rows.test[-1 - places] if places[0] < 0 else rows.train[places]), self.svm_)


class _Shared:
    """Rows that scikit-learn's `clone` does not copy."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.rows = rows
        self.count = count

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _tiled(rows: NDArray[Any], count: int) -> NDArray[np.float32]:
    return np.float32(np.tile(rows, (count // len(rows), 1)))
