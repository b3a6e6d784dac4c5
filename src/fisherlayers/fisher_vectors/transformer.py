"""`FisherVectorTransformer`: images to Fisher vectors, for pipelines of scikit-learn."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fisherlayers.fisher_vectors.encoding import entry_names
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import ImageList, warn_empty
from fisherlayers.fisher_vectors.labels import check_labels
from fisherlayers.fisher_vectors.memory import parse_bytes
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import on_cpu, reporter, single_torch_thread
from fisherlayers.fisher_vectors.setting_values import check_device
from fisherlayers.fisher_vectors.settings import OVERRIDES, NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.fisher_vectors.training import fit_network

__all__ = ["FisherVectorTransformer"]

# What is returned must be in memory anyway.
_ALL = 2**62


class FisherVectorTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Encode images as Fisher vectors: what `DeepFisherNetwork` classifies, for another classifier to use.

    Images are those of `DeepFisherNetwork`. Encodings are held in memory, 4 bytes a number: some 100 to 400 kB an image
    at the settings for photographs.

    Args:
        depth: Number of Fisher layers; more than 1 are learned from labels.
        preset: As in `DeepFisherNetwork`.
        settings: Settings that replace those of the preset, such as ``{"components": 64}``: the parameters of
            `DeepFisherNetwork` of the same names.
        random_state: Seed of all random choices.
        n_jobs: Workers over batches of images, in joblib's meaning; the result does not depend on it.
        memory: As in `DeepFisherNetwork`, for what a fit holds.
        workspace: As in `DeepFisherNetwork`.
        device: On which descriptors and encodings are computed.
        verbose: 1 reports each stage on the standard error stream.

    Attributes:
        settings_: The settings that were used.
        network_: The fitted `FisherNetwork`.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from fisherlayers.fisher_vectors import FisherVectorTransformer
        >>> stripes = [np.tile((np.arange(32) // 4 + shift) % 2 * 1.0, (32, 1)) for shift in range(6)]
        >>> images, labels = stripes + [s.T for s in stripes], ["upright"] * 6 + ["lying"] * 6
        >>> encode = FisherVectorTransformer(settings={"components": 4, "dimensions": 8}, random_state=0)
        >>> make_pipeline(encode, LogisticRegression()).fit(images, labels).predict([stripes[3].T]).tolist()
        ['lying']
    """

    def __init__(
        self,
        *,
        depth: int = 1,
        preset: str = "auto",
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        memory: int | str | None = None,
        workspace: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.depth = depth
        self.preset = preset
        self.settings = settings
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.memory = memory
        self.workspace = workspace
        self.device = device
        self.verbose = verbose

    @on_cpu
    def fit(self, images: Any, y: Any = None) -> Self:
        """Learn the network.

        Args:
            images: As for `DeepFisherNetwork.fit`.
            y: Labels, as for `DeepFisherNetwork.fit`; needed for more than one layer.

        Returns:
            The transformer itself.
        """
        self._learn(ImageList(images, each=self._execution().each), y, encode=False)
        return self

    @on_cpu
    def fit_transform(self, images: Any, y: Any = None) -> Any:
        """Learn the network and encode the images that it was learned on.

        With several layers this is not `fit` and then `transform`: each image is encoded by projections that were
        learned without it, so that a classifier on top meets encodings as of new images.

        Args:
            images: As for `fit`.
            y: As for `fit`.

        Returns:
            (n, features), float32.
        """
        return self._learn(ImageList(images, each=self._execution().each), y, encode=True)

    @on_cpu
    def transform(self, images: Any) -> Any:
        """Encode images.

        Args:
            images: As for `fit`.

        Returns:
            (n, features), float32; rows of images too small for a single descriptor are zero.
        """
        check_is_fitted(self)
        checked = ImageList(images, each=self._execution().each)
        return self._encode(self.network_, checked.prepared(**self.settings_.preparation), None, self._execution())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the encodings' entries, such as ``layer1_mean_k3_d7`` and ``colour_deviation_k0_d2``.

        Args:
            input_features: Not used; images have no feature names.

        Returns:
            (features,), strings.
        """
        check_is_fitted(self)
        return np.array(
            [f"{name}_{entry}" for name, stage in _named_stages(self.network_) for entry in entry_names(stage.mixture)],
            dtype=object,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = self.depth > 1
        tags.transformer_tags.preserves_dtype = []
        tags.no_validation = True
        return tags

    def _execution(self) -> Execution:
        check_device(self.device)
        memory = None if self.memory is None else parse_bytes(self.memory)
        return Execution(self.n_jobs, reporter(self.verbose, None), memory, device=self.device)

    def _learn(self, images: ImageList, y: Any, *, encode: bool) -> np.ndarray | None:
        settings = self._settings(images)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        labels = self._labels(y, len(images))
        identity = {
            "images": images.fingerprint,
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
            "settings": settings.to_config(),
            "seed": seed,
        }
        images = images.prepared(**settings.preparation)
        execution = self._execution().with_workspace(self.workspace, self.random_state, identity)
        with single_torch_thread(), execution:
            network, folds = fit_network(images, labels, settings, seed=seed, execution=execution)
            encodings = self._encode(network, images, folds, execution) if encode else None
        self.settings_ = settings
        self.network_ = network.for_new_images()
        return encodings

    def _labels(self, y: Any, count: int) -> np.ndarray:
        if self.depth > 1:
            return check_labels(y, count)[1]
        return np.zeros(count, dtype=np.int64)

    def _settings(self, images: ImageList) -> NetworkSettings:
        chosen = dict(self.settings or {})
        if unknown := sorted(set(chosen) - set(OVERRIDES)):
            raise ValueError(f"settings must be among {', '.join(OVERRIDES)}; got {', '.join(unknown)}")
        return resolve_settings(self.preset, self.depth, images.typical_side, chosen)

    def _encode(
        self, network: FisherNetwork, images: ImageList, folds: np.ndarray | None, execution: Execution
    ) -> np.ndarray:
        execution = replace(execution, memory=_ALL, workspace=None)
        with single_torch_thread():
            encoded = encode_images(network, images, folds=folds, execution=execution)
        warn_empty(encoded.empty, len(images))
        assert isinstance(encoded.rows, np.ndarray)
        return encoded.rows


def _named_stages(network: FisherNetwork) -> list[tuple[str, FisherStage]]:
    named = [(f"layer{level}", stage) for level, stage in enumerate(network.stages, start=1)]
    streams = {"colour": network.color, "patches": network.patches}
    return named + [(name, stage) for name, stage in streams.items() if stage is not None]
