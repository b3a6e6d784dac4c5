"""What the processes that share a fit must all have been given, in few enough words to compare it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.labels import check_labels

__all__ = ["described_call"]

# How each process runs the fit, and the seed, which the first one gives to all.
_OF_ONE_PROCESS = frozenset({"n_jobs", "memory", "workspace", "device", "verbose", "random_state"})
# Images that are compared before all are read.
_COMPARED = 8


def described_call(images: Any, y: Any, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return what must be the same in all processes of a fit.

    Args:
        images: As for `DeepFisherNetwork.fit`; some of them are read.
        y: As for `DeepFisherNetwork.fit`.
        parameters: Of the estimator.

    Returns:
        Name -> description, equal for equal values.
    """
    some = ImageList(images, each=lambda check, places: map(check, places[:: -(-len(places) // _COMPARED)]))
    count = len(some.images)
    classes, labels = check_labels(y, count)
    labelled = hashlib.sha256(repr(classes.tolist()).encode() + labels.tobytes())
    settings = {name: _described(value) for name, value in parameters.items() if name not in _OF_ONE_PROCESS}
    return {
        "number of images": str(count),
        "fingerprint of some images": some.fingerprint[:8],
        "fingerprint of the labels": labelled.hexdigest()[:8],
    } | settings


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(sorted((str(key), str(entry)) for key, entry in value.items()))
    return str(np.asarray(value, dtype=object).tolist())
