"""scikit-learn's own checks of estimators.

They feed tables, and images are no tables. So an adapter makes an image of every row, and the checks then run on the
real estimators behind it: construction, cloning, parameters, fitting twice, fitted attributes, labels of every kind,
pickling, one image at a time, read-only memory, `set_output` and the rest. What cannot hold is listed with its reason.
"""

import numpy as np
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from fisherlayers.fisher_vectors import DeepFisherNetwork, FisherVectorTransformer

SIDE = 16


def images_of(rows):
    """An image a row: a bump of its own size, place and brightness for every column."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    images = np.full((len(rows), SIDE, SIDE), 0.5)
    columns = rows.shape[1]
    for column in range(columns):
        place = (column + 0.5) / columns
        wave = np.sin(2 * np.pi * (2 + column % 3) * (x * np.cos(3 * place) + y * np.sin(3 * place)))
        images += (np.tanh(rows[:, column] / 4)[:, None, None] * wave) * 0.45 / columns
    return images


class Table:
    """Rows of a table as images."""

    def fit(self, X, y=None):
        if y is None:
            X = validate_data(self, X)
        else:
            X, y = validate_data(self, X, y, multi_output=True)
        return super().fit(images_of(X), y)

    def _unseen(self, X):
        check_is_fitted(self)
        return images_of(validate_data(self, X, reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = True, False
        tags.no_validation = False
        return tags


class ClassifierOfTables(Table, DeepFisherNetwork):
    def decision_function(self, X):
        return super().decision_function(self._unseen(X))


class TransformerOfTables(Table, FisherVectorTransformer):
    def transform(self, X):
        return super().transform(self._unseen(X))

    def fit_transform(self, X, y=None):
        return self.fit(X, y).transform(X)


QUICK = {"depth": 1, "preset": "small", "random_state": 0}
SMALL = {
    "components": 2,
    "dimensions": 4,
    "bin_sizes": (2,),
    "step": 4,
    "training_descriptors": 500,
    "iterations": 3,
    "color": False,
    "patch_side": 0,
}
REASONS = {
    "check_methods_subset_invariance": "images are worked off in batches, and a batch's size shows in the last bits: "
    "test_score_of_an_image_does_not_depend_on_the_others has the bound",
}


def expected_failures(estimator):
    return REASONS if isinstance(estimator, DeepFisherNetwork) else {}


@parametrize_with_checks(
    [ClassifierOfTables(**QUICK, **SMALL, C=3.0), TransformerOfTables(**QUICK, settings=SMALL)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
