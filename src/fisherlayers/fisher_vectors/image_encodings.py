"""Encodings of many images by a fitted network, with what its fit has left of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from fisherlayers.fisher_vectors.execution import Encoded, Execution
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.passes import Encode
from fisherlayers.fisher_vectors.persistence import network_tensors

__all__ = ["encode_images", "kept_name", "network_digest"]


def encode_images(
    network: FisherNetwork,
    images: ImageList,
    *,
    folds: np.ndarray | None = None,
    dtype: str = "float32",
    execution: Execution | None = None,
) -> Encoded:
    """Encode all images.

    Args:
        network: A fitted network.
        images: n images, set to be prepared as the network's settings say.
        folds: Fold of each image's W; -1 for all if None. With those of a fit by the same execution, what that fit kept
            of its images is used, and given up.
        dtype: In which the encodings are kept.
        execution: How it is run; in this thread and in memory if None.

    Returns:
        (n, `network.num_features`), and the number of images too small for a single descriptor; their rows are zero.
    """
    keys = np.full(len(images), -1) if folds is None else folds
    execution = execution or Execution()
    kept = execution.take(kept_name(network, images))
    if not np.array_equal(keys[: len(kept.folds)], kept.folds):
        kept = Kept()
    return execution.rows(
        f"encodings-{network_digest(network)}",
        Encode(network, kept, execution.device),
        images,
        network.num_features,
        keys=keys,
        dtype=dtype,
        known=_Known(network, kept.pooled(network.streams)),
    )


class _Known(Mapping[int, np.ndarray]):
    """Encodings of images whose Fisher vectors before normalisation are known, made when they are asked for."""

    def __init__(self, network: FisherNetwork, pooled: Mapping[int, Sequence[Tensor]]) -> None:
        self._network, self._pooled = network, pooled

    def __getitem__(self, index: int) -> np.ndarray:
        network, pooled = self._network, self._pooled[index]
        parts = [network.stage(s).normalize(rows[None]) for s, rows in zip(network.streams, pooled, strict=True)]
        return network.concatenate(parts)[0].numpy()

    def __iter__(self) -> Iterator[int]:
        return iter(self._pooled)

    def __len__(self) -> int:
        return len(self._pooled)


def kept_name(network: FisherNetwork, images: ImageList) -> str:
    """Return the name under which a fit leaves what it kept of its images: it serves that network alone.

    Args:
        network: The fitted network.
        images: Those that it was fitted on, or they and their mirror images.

    Returns:
        A text that differs for other networks, pixels and preparations.
    """
    prepared = f"{images.max_pixels} {images.upsample} {images.padding}"
    return f"{network_digest(network)} {images.fingerprint} {prepared}"


def network_digest(network: FisherNetwork) -> str:
    """Return a fingerprint of a network: encodings belong to it to the last bit.

    Args:
        network: With all stages that it has so far.

    Returns:
        Twelve hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network_tensors(network).items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
