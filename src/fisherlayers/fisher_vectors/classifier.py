"""`DeepFisherNetwork`: a scikit-learn classifier of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, distributed

from fisherlayers.fisher_vectors.calibration import probabilities
from fisherlayers.fisher_vectors.class_weights import ClassWeight, class_weights
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.exports import Exports
from fisherlayers.fisher_vectors.hub import HubMethods
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import Batch, ImageList, warn_empty
from fisherlayers.fisher_vectors.labels import check_labels
from fisherlayers.fisher_vectors.memory import parse_bytes
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import (
    Progress,
    in_threads,
    map_batches,
    on_cpu,
    reporter,
    single_torch_thread,
)
from fisherlayers.fisher_vectors.processes import Processes
from fisherlayers.fisher_vectors.same_call import described_call
from fisherlayers.fisher_vectors.saving import Saving
from fisherlayers.fisher_vectors.selection import select_svm, two_columns
from fisherlayers.fisher_vectors.setting_values import as_whole_number, check_device
from fisherlayers.fisher_vectors.settings import OVERRIDES, NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.training import fit_network
from fisherlayers.precision import full_precision

__all__ = ["DeepFisherNetwork"]


class DeepFisherNetwork(Exports, Saving, HubMethods, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Image classifier without back-propagation or pretrained weights (Simonyan, Vedaldi and Zisserman, NIPS 2013).

    Dense SIFT, and colour statistics where images have colour, are encoded as Fisher vectors in one or more layers; a
    linear SVM classifies the concatenated encodings. Images are arrays (H, W), (H, W, 1) or (H, W, 3), bytes or floats
    in [0, 1], or paths; sizes may differ. Grey and colour may be mixed: the colour stream is used if any training
    image has colour, and takes a grey image as one with three equal channels. An image too small for a single
    descriptor has a zero encoding, and is counted in a warning.

    Parameters that are None take the value of the preset; `NetworkSettings` explains them.

    Args:
        depth: Number of Fisher layers: 1 is the shallow Fisher vector, 2 the paper's network.
        preset: ``"photos"``, ``"small"`` (28 x 28 to 96 x 96 pixels), ``"paper"``, or ``"auto"``: ``"small"`` or
            ``"photos"`` by the median area of the training images, which are enlarged if below 24 pixels a side.
        components: K of each layer's mixture; one number for all, or one a layer.
        dimensions: Descriptor dimensions after PCA; one number for all, or one a layer.
        bin_sizes: Scales of SIFT: pixels of a bin.
        step: Distance of descriptors in pixels.
        upsample: Factor of enlargement.
        max_pixels: Larger images are reduced to this area.
        padding: Pixels by which the border is continued.
        position_weight: Factor of the coordinates appended to descriptors; 0 leaves them out.
        layer_weight: Share of every layer above the first, relative to the first's.
        windows: Sides of the semi-local windows in grid positions.
        stride: Step of the windows in grid positions.
        stack_offset: Distance of stacked windows as a fraction of the window; 0 is adjacent.
        projection: How W is learned: ``"one-vs-rest"``, ``"one-vs-one"``, ``"both"``, ``"bi-convex"``, ``"lda"``,
            ``"softmax"``, ``"principal"`` or ``"auto"``. Several labels an image need ``"one-vs-rest"`` or one of the
            last two.
        projection_size: Rows of W.
        projection_images: Largest number of training images that W is learned on.
        cross_fit: Folds for learning W; 1 turns cross-fitting off.
        information: ``"images"`` or ``"closed-form"``: which Fisher information normalises the encodings.
        global_pooling: ``"mean"``, or ``"generalised-max"``: how descriptors become one Fisher vector of the image. The
            latter takes some twenty times as long as the mean alone, and has no `to_module`, exports and evidence maps.
        pooling_damping: Of generalised max pooling: the larger, the closer to the mean.
        color: Whether statistics of colours, or of intensities where no image has colour, are used.
        color_weight: Share of the colour statistics relative to a layer's.
        intensity_weight: Share of the statistics of grey images.
        patch_side: Pixels of the side of raw patches; 0 leaves them out.
        patch_step: Distance of neighbouring patches in pixels; 2 takes a third of the time of 1.
        patch_whitening: Whether patches are whitened by their PCA and brought to unit length.
        patch_weight: Share of the patches relative to a layer's.
        training_descriptors: Sample for each PCA and mixture.
        iterations: EM iterations.
        mirror: Whether the descriptors of an image and of its mirror image are pooled together.
        flips: Whether training images are also used mirrored; preset ``"photos"`` does. Turn it off where left and
            right tell classes apart, as in writing.
        C: Cost of the SVM; from several the best on held-out folds is taken.
        class_weight: Factor of C for the images of each class: ``"balanced"``, label -> factor, or None; as in
            scikit-learn's ``LinearSVC``. Held-out accuracies are weighted alike.
        cv: Folds for choosing C and for calibrating probabilities. 0 holds nothing out: C must then be one number, and
            probabilities are calibrated on training images, which makes them too sure.
        encoding_dtype: Precision in which the encodings of the training images are held: ``"float32"``, or
            ``"float16"``, which takes half the memory at next to no loss.
        random_state: Seed of all random choices.
        n_jobs: Workers over batches of images, in joblib's meaning; the result does not depend on it. Threads, unless
            `joblib.parallel_config` names another backend.
        memory: What a fit may use for all that grows with the number of images, beside the library itself and blocks
            of a fixed size (about 0.4 GB each): bytes, or a text such as ``"4GB"``. Encodings that do not fit go to
            disk, descriptors that do not fit are computed in every pass; half of the machine's memory if None.
        workspace: Folder in which finished work is kept as it comes, encodings above all: after a crash, or with
            another C, the next fit goes on from there. Remove it when it has served. Needs an integer
            ``random_state``. None keeps nothing; encodings that go to disk then lie in a temporary folder.
        device: On which descriptors and encodings are computed, as PyTorch names it; the SVM is solved on the CPU.
        verbose: 1 reports each stage on the standard error stream.

    Attributes:
        classes_: Labels in the order of the scores' columns; their positions for several labels an image.
        multilabel_: Whether an image may have several labels.
        settings_: The settings that were used.
        network_: The fitted `FisherNetwork`.
        coef_: (C, features), one row for two classes.
        intercept_: (C,), or (1,).
        C_: The cost that was chosen.
        temperature_: Factor of the scores in `predict_proba`.

    Example:
        >>> import numpy as np
        >>> from fisherlayers.fisher_vectors import DeepFisherNetwork
        >>> rng = np.random.default_rng(0)
        >>> stripes = [np.tile((np.arange(32) // 4 + rng.integers(8)) % 2 * 1.0, (32, 1)) for _ in range(8)]
        >>> images, labels = stripes[:4] + [s.T for s in stripes[4:]], ["upright"] * 4 + ["lying"] * 4
        >>> model = DeepFisherNetwork(depth=1, components=4, dimensions=8, random_state=0).fit(images, labels)
        >>> model.predict([stripes[7]]).tolist()
        ['upright']
    """

    def __init__(
        self,
        *,
        depth: int = 2,
        preset: str = "auto",
        components: int | Sequence[int] | None = None,
        dimensions: int | Sequence[int] | None = None,
        bin_sizes: Sequence[int] | None = None,
        step: int | None = None,
        upsample: int | None = None,
        max_pixels: int | None = None,
        padding: int | None = None,
        position_weight: float | None = None,
        layer_weight: float | None = None,
        windows: Sequence[int] | None = None,
        stride: int | None = None,
        stack_offset: float | None = None,
        projection: str | None = None,
        projection_size: int | None = None,
        projection_images: int | None = None,
        cross_fit: int | None = None,
        information: str | None = None,
        global_pooling: str | None = None,
        pooling_damping: float | None = None,
        color: bool | None = None,
        color_weight: float | None = None,
        intensity_weight: float | None = None,
        patch_side: int | None = None,
        patch_step: int | None = None,
        patch_whitening: bool | None = None,
        patch_weight: float | None = None,
        training_descriptors: int | None = None,
        iterations: int | None = None,
        mirror: bool | None = None,
        flips: bool | None = None,
        C: float | Sequence[float] = (0.3, 1.0, 3.0, 10.0),
        cv: int = 3,
        class_weight: ClassWeight = None,
        encoding_dtype: str = "float32",
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        memory: int | str | None = None,
        workspace: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.depth = depth
        self.preset = preset
        self.components = components
        self.dimensions = dimensions
        self.bin_sizes = bin_sizes
        self.step = step
        self.upsample = upsample
        self.max_pixels = max_pixels
        self.padding = padding
        self.position_weight = position_weight
        self.layer_weight = layer_weight
        self.windows = windows
        self.stride = stride
        self.stack_offset = stack_offset
        self.projection = projection
        self.projection_size = projection_size
        self.projection_images = projection_images
        self.cross_fit = cross_fit
        self.information = information
        self.global_pooling = global_pooling
        self.pooling_damping = pooling_damping
        self.color = color
        self.color_weight = color_weight
        self.intensity_weight = intensity_weight
        self.patch_side = patch_side
        self.patch_step = patch_step
        self.patch_whitening = patch_whitening
        self.patch_weight = patch_weight
        self.training_descriptors = training_descriptors
        self.iterations = iterations
        self.mirror = mirror
        self.flips = flips
        self.C = C
        self.cv = cv
        self.class_weight = class_weight
        self.encoding_dtype = encoding_dtype
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.memory = memory
        self.workspace = workspace
        self.device = device
        self.verbose = verbose

    @classmethod
    def paper(cls, **parameters: Any) -> Self:
        """Make a classifier with the settings of the 2013 paper.

        Args:
            **parameters: Other parameters of the constructor.

        Returns:
            An unfitted classifier.
        """
        return cls(preset="paper", **parameters)

    @classmethod
    def small_images(cls, **parameters: Any) -> Self:
        """Make a classifier for images of about 28 x 28 to 96 x 96 pixels.

        Args:
            **parameters: Other parameters of the constructor.

        Returns:
            An unfitted classifier.
        """
        return cls(preset="small", **parameters)

    @on_cpu
    def fit(
        self,
        images: Any,
        y: Any,
        *,
        progress: Progress | None = None,
        process_group: distributed.ProcessGroup | None = None,
    ) -> Self:
        """Learn the network and the classifier.

        An interrupted fit leaves the estimator as it was. A parameter, an image or labels that cannot be used are named
        by a ValueError; a disk that is full by an OSError, which loses no finished work if there is a workspace.

        Args:
            images: A list of arrays or paths, one array (n, H, W) or (n, H, W, 3), which may be memory-mapped, or any
                sequence that makes an image when it is indexed. Images are read when they are needed and never held.
            y: Labels, (n,), of at least two classes; or 0 and 1, (n, C), for several labels an image, which may be
                sparse.
            progress: Called as ``progress(stage, done, total)``.
            process_group: Processes that make the same call with all images and share its work: every one of them
                ends with the same model, or with the error of the one that failed. Only ``n_jobs``, ``memory``,
                ``workspace``, ``device`` and ``verbose`` may differ; ``random_state`` is the first one's. A group of
                gloo, such as ``torch.distributed.group.WORLD``.

        Returns:
            The classifier itself.
        """
        processes = Processes(process_group)
        with processes.together(), single_torch_thread(), full_precision("cpu"):
            costs = self._checked_costs()
            check_device(self.device)
            report = reporter(self.verbose, progress) if processes.is_first else None
            memory = None if self.memory is None else parse_bytes(self.memory)
            execution = Execution(self.n_jobs, report, memory, None, processes, self.device)
            if processes.size > 1:
                processes.check_same(described_call(images, y, self.get_params(deep=False)))
            learned = self._learned(ImageList(images, each=execution.each), y, costs, execution)
        for name, value in learned.items():
            setattr(self, name, value)
        return self

    def _learned(self, images: ImageList, y: Any, costs: tuple[float, ...], execution: Execution) -> dict[str, Any]:
        """Return the attributes of the fitted classifier."""
        classes, labels = check_labels(y, len(images))
        class_weight = self._checked_class_weight(classes, labels)
        settings = self._settings(images)
        processes = execution.processes
        seed = processes.share(int(check_random_state(self.random_state).randint(2**31 - 1)))
        count, images = len(images), images.prepared(**settings.preparation)
        identity = {
            "images": images.fingerprint,
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
            "settings": settings.to_config(),
            "seed": seed,
        }
        with execution.with_workspace(self.workspace, self.random_state, identity) as execution:
            network, folds = fit_network(images, labels, settings, seed=seed, execution=execution)
            if settings.flips:
                copies = (2,) + (1,) * (labels.ndim - 1)
                images, labels, folds = images.mirrored(), np.tile(labels, copies), np.tile(folds, 2)
            encoded = encode_images(network, images, folds=folds, dtype=self.encoding_dtype, execution=execution)
            # An image and its mirror image are too small together.
            warn_empty(encoded.empty * count // len(images), count)
            execution.report("classifier", 0, 1)
            svm = None
            if processes.is_first:
                svm = select_svm(
                    encoded.rows,
                    labels,
                    costs,
                    folds=self.cv,
                    groups=np.arange(len(images)) % count,
                    seed=seed,
                    class_weight=class_weight,
                    largest_gram=execution.largest_array,
                    n_jobs=self.n_jobs,
                )
            svm = processes.share(svm)
            assert svm is not None
            execution.report("classifier", 1, 1)
        return {
            "classes_": classes,
            "multilabel_": labels.ndim == 2,
            "settings_": settings,
            # Training's other projections are of no further use.
            "network_": network.for_new_images(),
            "coef_": svm.coef,
            "intercept_": svm.intercept,
            "C_": svm.cost,
            "temperature_": svm.temperature,
        }

    @on_cpu
    def decision_function(self, images: Any) -> np.ndarray:
        """Score images.

        Args:
            images: As for `fit`.

        Returns:
            (n, C), or (n,) for two classes: positive for ``classes_[1]``.
        """
        check_is_fitted(self)
        check_device(self.device)
        checked = ImageList(images, each=lambda check, places: in_threads(check, places, n_jobs=self.n_jobs))
        prepared = checked.prepared(**self.settings_.preparation)
        score = _Score(self.network_, torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_), self.device)
        scores = np.empty((len(prepared), len(self.intercept_)), dtype=np.float32)
        report = reporter(self.verbose, None)
        empty = 0
        for batch, (rows, zeros) in map_batches(
            score, prepared, prepared.batches(), n_jobs=self.n_jobs, progress=report, stage="predict"
        ):
            scores[list(batch.indices)] = rows
            empty += zeros
        warn_empty(empty, len(prepared))
        return scores[:, 0] if self._has_two_classes else scores

    def predict(self, images: Any) -> np.ndarray:
        """Classify images.

        Args:
            images: As for `fit`.

        Returns:
            Labels, (n,); or 0 and 1, (n, C), for several labels an image.
        """
        scores = self.decision_function(images)
        if self.multilabel_:
            return (scores > 0).astype(int)
        winners = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[winners])

    def predict_proba(self, images: Any) -> np.ndarray:
        """Estimate class probabilities: a softmax of the scores, its temperature fitted on held-out folds.

        Args:
            images: As for `fit`.

        Returns:
            (n, C) in the order of ``classes_``, rows summing to one; for several labels an image, the probability of
            each label on its own.
        """
        scores = self.decision_function(images)
        if self.multilabel_:
            return probabilities(two_columns(scores.reshape(-1, 1)), self.temperature_)[:, 1].reshape(scores.shape)
        return probabilities(two_columns(scores.reshape(len(scores), -1)), self.temperature_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.no_validation = True
        return tags

    def _checked_class_weight(self, classes: np.ndarray, labels: np.ndarray) -> ClassWeight:
        weight = self.class_weight
        if isinstance(weight, Mapping) and labels.ndim == 1:
            if unknown := sorted(map(str, set(weight) - set(classes.tolist()))):
                raise ValueError(f"class_weight names labels that y does not have: {', '.join(unknown)}")
            weight = {index: weight[label] for index, label in enumerate(classes.tolist()) if label in weight}
        class_weights(weight, labels)
        return weight

    def _checked_costs(self) -> tuple[float, ...]:
        try:
            costs = tuple(np.atleast_1d(np.asarray(self.C, dtype=float)).tolist())
        except (TypeError, ValueError):
            raise ValueError(f"C must be one positive number or several, got {self.C!r}") from None
        as_whole_number("cv", self.cv)
        if self.n_jobs is not None:
            as_whole_number("n_jobs", self.n_jobs)
        if not costs or not all(0 < cost < np.inf for cost in costs):
            raise ValueError(f"C must be one positive number or several, got {self.C!r}")
        if self.cv < 2 and not (self.cv == 0 and len(costs) == 1):
            raise ValueError(f"cv must be at least 2 folds, or 0 with a single C, got {self.cv} with C = {self.C}")
        if self.encoding_dtype not in {"float16", "float32"}:
            raise ValueError(f"encoding_dtype must be 'float32' or 'float16', got {self.encoding_dtype!r}")
        return costs

    def _settings(self, images: ImageList) -> NetworkSettings:
        overrides = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        return resolve_settings(self.preset, self.depth, images.typical_side, overrides)


@dataclass(frozen=True)
class _Score:
    """The scores of a batch, and how many of its encodings are zero."""

    network: FisherNetwork
    coef: Tensor
    intercept: Tensor
    device: str

    def __call__(self, images: Tensor, batch: Batch) -> tuple[np.ndarray, int]:
        encodings = self.network.to(self.device).encode(images.to(self.device)).cpu()
        return (encodings @ self.coef.T + self.intercept).numpy(), int((encodings == 0).all(dim=1).sum())
