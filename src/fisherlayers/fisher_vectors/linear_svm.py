"""The one-vs-rest linear SVM as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fisherlayers.fisher_vectors.class_weights import problem_factors
from fisherlayers.fisher_vectors.svm import Solver, fit_svm, one_vs_rest, svm_scores

__all__ = ["LinearSVM"]

_DTYPES = [np.float64, np.float32, np.float16]


class LinearSVM(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One-vs-rest linear SVM with squared hinge loss: the solutions of scikit-learn's ``LinearSVC``, to a certificate.

    Args:
        C: Cost of the loss against the regulariser, positive.
        class_weight: As in ``LinearSVC``: a factor of C for the rows of each class, ``"balanced"``, or None. With more
            than two classes it acts in the class's own problem only, as in liblinear.
        intercept_scaling: The constant appended to every row; its weight is regularised. 0 for no intercept.
        tol: Largest duality gap, relative to the objective.
        max_iter: Largest number of Newton steps.
        solver: ``"auto"``, ``"gram"`` or ``"primal"``: see `fit_svm`.

    Attributes:
        classes_: Labels, sorted, (C,).
        coef_: Weights, (C, F), or (1, F) for two classes.
        intercept_: (C,) or (1,).
        n_iter_: Newton steps taken.
        n_features_in_: F.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Mapping[object, float] | str | None = None,
        intercept_scaling: float = 1.0,
        tol: float = 1e-6,
        max_iter: int = 100,
        solver: Solver = "auto",
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.intercept_scaling = intercept_scaling
        self.tol = tol
        self.max_iter = max_iter
        self.solver = solver

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit one linear function a class, or one in all for two classes.

        Args:
            X: Rows, (n, F); a memory-mapped array is read block by block.
            y: Labels, (n,).
            sample_weight: Factors of C, (n,); all 1 if None.

        Returns:
            Itself.

        Raises:
            ValueError: If the data or a parameter does not fit; the message names it.
        """
        rows, y = validate_data(self, X, y, dtype=_DTYPES, ensure_all_finite=False)
        check_classification_targets(y)
        if not isinstance(self.C, Real) or not 0 < self.C < float("inf"):
            raise ValueError(f"C must be a positive number, got {self.C!r}")
        if not self.tol > 0:
            raise ValueError(f"tol must be positive, got {self.tol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")
        if not 0 <= self.intercept_scaling < float("inf"):
            raise ValueError(f"intercept_scaling must be 0 or a positive number, got {self.intercept_scaling}")
        classes, indices = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must hold at least two classes, got one class: {classes.tolist()}")
        weight = np.ones(len(indices))
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        class_weight = self._class_weight(classes, indices, weight)
        targets = one_vs_rest(torch.from_numpy(indices), len(classes))[:, len(classes) == 2 :]
        factors = torch.from_numpy(weight)[:, None] * problem_factors(targets, indices, class_weight)
        fit = fit_svm(
            rows,
            targets,
            float(self.C),
            sample_weight=factors,
            bias=self.intercept_scaling,
            tolerance=self.tol,
            max_steps=self.max_iter,
            solver=self.solver,
        )
        self.classes_: np.ndarray = classes
        self.coef_: np.ndarray = fit.weights.numpy()
        self.intercept_: np.ndarray = fit.intercepts.numpy()
        self.n_iter_ = fit.steps
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the scores of rows.

        Args:
            X: (n, F).

        Returns:
            (n, C), or (n,) for two classes, positive for the second.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=_DTYPES, reset=False)
        scores = svm_scores(rows, torch.from_numpy(self.coef_), torch.from_numpy(self.intercept_)).numpy()
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class of largest score.

        Args:
            X: (n, F).

        Returns:
            Labels, (n,).
        """
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def _class_weight(self, classes: np.ndarray, indices: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            mass = np.bincount(indices, weight)
            if not (mass > 0).all():
                raise ValueError("sample_weight must leave some weight in each class for class_weight='balanced'")
            return np.asarray(mass.sum() / (len(classes) * mass))
        return np.asarray(compute_class_weight(self.class_weight, classes=classes, y=classes[indices]))
