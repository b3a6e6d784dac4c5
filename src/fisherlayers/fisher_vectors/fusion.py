"""Late fusion: calibrated scores of several image classifiers, added with weights learned on held-out images.

The hybrid of Simonyan, Vedaldi and Zisserman (NIPS 2013) adds the scores of a Deep Fisher Network and of a ConvNet.
Each member's scores are calibrated by a temperature, which makes them comparable; the sum's weights, not negative, are
those of the multinomial logistic loss on scores of images that the member that made them had not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin, clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted, column_or_1d

from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.images import by_position
from fisherlayers.fisher_vectors.selection import two_columns

__all__ = ["LateFusion", "fusion_weights"]

# Of the sum of squared weights, against the mean loss: decides between members that say the same.
_RIDGE = 1e-3


def fusion_weights(scores: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Find the weights, none negative, whose weighted sum of scores has the lowest logistic loss.

    Args:
        scores: Calibrated held-out scores of each member, (n, C) each.
        labels: Class indices, (n,).

    Returns:
        One weight a member. The problem is convex: there is one optimum.
    """
    stacked = np.stack([member.astype(np.float64) for member in scores])
    rows = np.arange(len(labels))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        fused = np.tensordot(weights, stacked, axes=1)
        residual = softmax(fused, axis=1)
        residual[rows, labels] -= 1
        value = -float(log_softmax(fused, axis=1)[rows, labels].mean()) + _RIDGE * float(weights @ weights)
        return value, np.einsum("mnc,nc->m", stacked, residual) / len(rows) + 2 * _RIDGE * weights

    start = np.full(len(stacked), 1 / len(stacked))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(stacked))
    return np.asarray(found.x)


class LateFusion(ClassifierMixin, _BaseComposition):  # type: ignore[misc]
    """Several image classifiers as one, by a weighted sum of their calibrated scores.

    Parameters of a member are set by its name, as in a pipeline: ``set_params(fisher__C=3.0)``.

    Args:
        members: (name, classifier) pairs: a `DeepFisherNetwork`, a `ModuleClassifier`, a pipeline of `ModuleFeatures`
            and `LinearSVM`, or anything with ``fit`` and ``decision_function``.
        cv: Folds in which each member is fitted to make the held-out scores; it is then fitted to all images.
            ``"prefit"`` takes members that are fitted already: the images of `fit` must then be new to all of them.
        random_state: Seed of the folds.

    Attributes:
        classes_: Labels in the order of the scores' columns.
        members_: The fitted classifiers, by name.
        temperatures_: Factor of each member's scores, by name.
        weights_: Weight of each member's calibrated scores, by name.
    """

    def __init__(
        self,
        members: Sequence[tuple[str, Any]],
        *,
        cv: int | str = 3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.members = members
        self.cv = cv
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters.

        Args:
            deep: Whether the members, by their names, and their parameters are among them.

        Returns:
            Name -> value.
        """
        return dict(self._get_params("members", deep=deep))

    def set_params(self, **params: Any) -> Self:
        """Set parameters, members, or parameters of members.

        Args:
            **params: By the names of `get_params`.

        Returns:
            Itself.
        """
        self._set_params("members", **params)
        return self

    def fit(self, images: Any, y: Any) -> Self:
        """Fit the members, and the weights on scores of images that they had not seen.

        Args:
            images: As for `DeepFisherNetwork.fit`.
            y: Labels, (n,), of at least two classes.

        Returns:
            Itself.

        Raises:
            ValueError: If ``members`` are fewer than two or their names not distinct or of no use, ``cv`` has no
                meaning, ``y`` is not one label an image, or the members do not know the same classes.
        """
        pairs = [tuple(member) if isinstance(member, Sequence) else (member,) for member in self.members]
        if not all(len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
            raise ValueError(f"members must be (name, classifier) pairs, got {self.members!r}")
        names = [name for name, _ in pairs]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"members must be at least two (name, classifier) pairs of distinct names, got {names}")
        self._validate_names(names)
        if self.cv != "prefit" and not (isinstance(self.cv, Integral) and self.cv >= 2):
            raise ValueError(f"cv must be at least 2 folds, or 'prefit', got {self.cv!r}")
        images = by_position(images)
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = column_or_1d(labels, warn=True)
        if labels.ndim != 1:
            raise ValueError(
                f"y must hold one label an image, (n,): fusion knows no several labels, got {labels.shape}"
            )
        if len(labels) != len(images):
            raise ValueError(f"y must hold one label an image, got {len(labels)} labels for {len(images)} images")
        classes, indices = np.unique(labels, return_inverse=True)
        if self.cv == "prefit":
            fitted = dict(pairs)
            for member in fitted.values():
                check_is_fitted(member)
            classes = np.asarray(pairs[0][1].classes_)
            indices = _places(classes, labels)
            held_out = {name: _scores(member, images, classes, name) for name, member in fitted.items()}
        else:
            counts = np.bincount(indices)
            if len(classes) < 2 or counts.min() < int(self.cv):
                sizes = dict(zip(classes.tolist(), counts.tolist(), strict=True))
                raise ValueError(f"each of at least two classes needs cv = {self.cv} images or more, got {sizes}")
            seed = check_random_state(self.random_state).randint(2**31 - 1)
            folds = list(StratifiedKFold(int(self.cv), shuffle=True, random_state=seed).split(indices, indices))
            fitted, held_out = {}, {}
            for name, member in pairs:
                scores = np.empty((len(labels), len(classes)))
                for learn, rest in folds:
                    model = clone(member).fit(_take(images, learn), labels[learn])
                    scores[rest] = _scores(model, _take(images, rest), classes, name)
                held_out[name] = scores
                fitted[name] = clone(member).fit(images, labels)
        temperatures = {name: fit_temperature(scores, indices) for name, scores in held_out.items()}
        weights = fusion_weights([temperatures[name] * held_out[name] for name in names], indices)
        self.classes_ = classes
        self.members_, self.temperatures_ = fitted, temperatures
        self.weights_ = dict(zip(names, weights.tolist(), strict=True))
        return self

    def decision_function(self, images: Any) -> np.ndarray:
        """Score images.

        Args:
            images: As for `fit`.

        Returns:
            (n, C), or (n,) for two classes: the fused scores, whose softmax are the probabilities.
        """
        check_is_fitted(self)
        fused = self._fused(images)
        return fused[:, 1] - fused[:, 0] if len(self.classes_) == 2 else fused

    def predict(self, images: Any) -> np.ndarray:
        """Classify images.

        Args:
            images: As for `fit`.

        Returns:
            Labels, (n,).
        """
        check_is_fitted(self)
        return self.classes_[self._fused(images).argmax(axis=1)]

    def predict_proba(self, images: Any) -> np.ndarray:
        """Estimate class probabilities.

        Args:
            images: As for `fit`.

        Returns:
            (n, C), rows summing to one.
        """
        check_is_fitted(self)
        return np.asarray(softmax(self._fused(images), axis=1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.no_validation = True
        return tags

    def _fused(self, images: Any) -> np.ndarray:
        return np.sum(
            [
                self.weights_[name] * self.temperatures_[name] * _scores(member, images, self.classes_, name)
                for name, member in self.members_.items()
            ],
            axis=0,
        )


def _scores(member: Any, images: Any, classes: np.ndarray, name: str) -> np.ndarray:
    if sorted(map(str, member.classes_)) != sorted(map(str, classes)):
        raise ValueError(f"member {name!r} knows the classes {list(member.classes_)}, expected {list(classes)}")
    scores = np.asarray(member.decision_function(images), dtype=np.float64)
    columns = two_columns(scores.reshape(len(scores), -1))
    return columns[:, _places(np.asarray(member.classes_), classes)]


def _places(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    known = {value: place for place, value in enumerate(classes.tolist())}
    if unknown := sorted({str(value) for value in labels.tolist() if value not in known}):
        raise ValueError(f"y has labels that the members do not know: {', '.join(unknown)}")
    return np.array([known[value] for value in labels.tolist()])


def _take(images: Any, indices: np.ndarray) -> Any:
    return images[indices] if isinstance(images, np.ndarray) else [images[int(index)] for index in indices]
