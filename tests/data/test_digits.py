"""The digits: a stratified split of scikit-learn's own arrays."""

import numpy as np
import pytest
from sklearn import datasets

from fisherlayers.data import load_digits


def test_the_split_is_a_partition_with_equal_shares():
    data = load_digits(test_fraction=0.2, seed=3)
    rows = np.concatenate([data.train_images, data.test_images]).reshape(1797, 64)
    known = datasets.load_digits().data / 16
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], known[np.lexsort(known.T)].astype(np.float32))
    shares = np.bincount(data.test_labels) / np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_the_seed_decides():
    first, again, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    np.testing.assert_array_equal(first.train_images, again.train_images)
    assert not np.array_equal(first.train_labels, other.train_labels)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"test_fraction must lie in \(0, 1\)"):
        load_digits(test_fraction=fraction)
