"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, inside its wheel."""

import numpy as np

from fisherlayers.data.image_sets import TrainTest


def load_digits(*, test_fraction: float = 0.25, seed: int = 0) -> TrainTest:
    """Return the digits, split at random with equal shares of each class.

    Args:
        test_fraction: share of the 1,797 images held out, in (0, 1).
        seed: of the split.

    Returns:
        float32 images (n, 8, 8) in [0, 1], and labels 0..9.

    Raises:
        ValueError: `test_fraction` is outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie in (0, 1); got {test_fraction}")
    from sklearn import datasets  # a second's import, which the other loaders do not need
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        np.float32(digits.images) / 16,
        np.int64(digits.target),
        test_size=test_fraction,
        random_state=seed,
        stratify=digits.target,
    )
    return TrainTest(train_images, train_labels, test_images, test_labels, [str(digit) for digit in range(10)])
