"""What the image benchmarks measure of a contender: fitted, scored, and for networks by parts of their encodings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_hybrid import Rows
from benchmarks.image_peers import linear_scores
from benchmarks.image_sets import LabelledSet, Split
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.memory import memory_bytes
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import reporter
from fisherlayers.fisher_vectors.selection import SelectedSVM, select_svm
from fisherlayers.fisher_vectors.settings import NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.fisher_vectors.training import fit_network


@dataclass
class Outcome:
    """One contender's result.

    Attributes:
        accuracy: mean over classes of the share of test images that are right, in per cent.
        fit_seconds: wall-clock time.
        predict_seconds: wall-clock time for all test images.
        log_probabilities: (n, C), for late fusion; None where the contender gives no scores.
        rows: the encodings, of a contender that is part of the hybrid.
    """

    accuracy: float
    fit_seconds: float
    predict_seconds: float
    log_probabilities: NDArray[np.float64] | None = None
    rows: Rows | None = None


class FittedNetwork(NamedTuple):
    """A network with the classifier of its whole encodings.

    Attributes:
        network: for new images.
        stages: in the order of the encodings' columns.
        rows: encodings of the training images, and of their mirror images behind them if these are used, (m, F).
        labels: (m,).
        groups: an image and its mirror image have the same number, (m,).
        svm: on all columns.
        seconds: wall-clock time of all of it.
    """

    network: FisherNetwork
    stages: list[FisherStage]
    rows: NDArray[Any]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    svm: SelectedSVM
    seconds: float


def fitted_network(train: Split, settings: dict[str, Any], threads: int, depth: int) -> FittedNetwork:
    """Fit a Deep Fisher Network and its classifier.

    Args:
        train: the training images.
        settings: as in `Contest`.
        threads: over images.
        depth: 1 or 2.

    Returns:
        The network with its encodings.
    """
    start = time.perf_counter()
    # Columns are cut from the encodings: they stay in one array, of up to half of the memory, instead of on disk.
    execution = Execution(n_jobs=threads, progress=reporter(1, None), memory=2 * memory_bytes())
    images, labels = ImageList(train.images), train.labels
    chosen = network_settings(settings, depth, images.typical_side)
    prepared = images.prepared(**chosen.preparation)
    network, folds = fit_network(prepared, labels, chosen, execution=execution)
    prepared = images.prepared(**chosen.preparation)
    if chosen.flips:
        prepared, labels, folds = prepared.mirrored(), np.tile(labels, 2), np.tile(folds, 2)
    rows = np.asarray(encode_images(network, prepared, folds=folds, dtype="float16", execution=execution).rows)
    groups = np.arange(len(labels)) % len(train.labels)
    svm = select_svm(rows, labels, settings["C"], groups=groups)
    stages = [*network.stages, *(stage for stage in (network.color, network.patches) if stage is not None)]
    return FittedNetwork(network.for_new_images(), stages, rows, labels, groups, svm, time.perf_counter() - start)


def network_settings(settings: dict[str, Any], depth: int, side: float) -> NetworkSettings:
    """Return what the network is fitted with.

    Args:
        settings: as in `Contest`.
        depth: 1 or 2.
        side: of a typical image.
    """
    overrides = {name: value for name, value in settings.items() if name not in {"preset", "C"}}
    overrides |= {name: value[:depth] for name, value in overrides.items() if name in {"components", "dimensions"}}
    return resolve_settings(settings["preset"], depth, side, overrides)


def fisher_outcomes(
    data: LabelledSet, settings: dict[str, Any], threads: int, depth: int, *, one_fit: bool = False
) -> dict[str, Outcome]:
    """Fit one Deep Fisher Network, and a classifier on each of the parts of its encodings that the paper compares.

    Every classifier chooses its own C on training images.

    Args:
        data: the images.
        settings: as in `Contest`.
        threads: over images.
        depth: 1 or 2.
        one_fit: at depth 2, "shallow" is measured instead of the parts: all streams of the same fit but layer 2.

    Returns:
        At depth 1 "shallow", all streams with the time of the whole fit, and "layer 1 alone"; at depth 2 "deep", "layer
        2 alone" and "layers 1 and 2 alone". Only the first of each has times.
    """
    fitted = fitted_network(data.train, settings, threads, depth)
    network, stages, rows = fitted.network, fitted.stages, fitted.rows
    everything = list(range(len(stages)))
    if depth == 1:
        parts = {"shallow": everything, "layer 1 alone": [0]}
    elif one_fit:
        parts = {"deep": everything, "shallow": [0, *everything[2:]]}
    else:
        parts = {"deep": everything, "layer 2 alone": [1], "layers 1 and 2 alone": [0, 1]}
    whole, *others = parts
    svms = {whole: fitted.svm}
    for name in others:
        columns = stage_columns(rows, stages, parts[name])
        svms[name] = select_svm(columns, fitted.labels, settings["C"], groups=fitted.groups)
    start = time.perf_counter()
    execution = Execution(n_jobs=threads, progress=reporter(1, None), memory=2 * memory_bytes())
    test_images = ImageList(data.test.images).prepared(**network.settings.preparation)
    test = np.asarray(encode_images(network, test_images, dtype="float16", execution=execution).rows)
    predict = time.perf_counter() - start
    outcomes = {}
    for name, members in parts.items():
        svm = svms[name]
        scores = np.float64(linear_scores(stage_columns(test, stages, members), svm))
        logs = scores * svm.temperature
        logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
        accuracy = class_mean_accuracy(scores.argmax(1), data.test.labels)
        times = (fitted.seconds, predict) if name == whole else (0.0, 0.0)
        outcomes[name] = Outcome(accuracy, *times, logs)
        if name == "deep":
            outcomes[name].rows = Rows(rows, test, svm.cost)
    return outcomes


def stage_columns(rows: NDArray[Any], stages: Sequence[FisherStage], members: list[int]) -> NDArray[Any]:
    """Return the encodings of some stages, scaled to the length that they would have by themselves.

    Args:
        rows: encodings of all stages, (n, features).
        stages: those of the network, in the order of the columns.
        members: positions of the stages that are wanted.

    Returns:
        (n, features of the members), in the precision of the rows.
    """
    if members == list(range(len(stages))):
        return rows
    weights = np.array([stage.weight for stage in stages])
    ends = np.cumsum([stage.num_outputs for stage in stages])
    starts = [0, *ends[:-1]]
    scale = rows.dtype.type(np.sqrt(weights.sum() / weights[members].sum()))
    columns = np.concatenate([rows[:, starts[member] : ends[member]] for member in members], axis=1)
    columns *= scale
    return columns


def score(classifier: Any, train: Split, test: Split, images: Callable[[Split], Any] | None = None) -> Outcome:
    """Fit a classifier and score it.

    Args:
        classifier: with `fit` and `predict`, and for late fusion `predict_proba` or `decision_function`.
        train: to learn from.
        test: to score.
        images: what the classifier is given of a split; its images as they are if None.

    Returns:
        The result.
    """
    view = images or (lambda split: split.images)
    start = time.perf_counter()
    classifier.fit(view(train), train.labels)
    fitted = time.perf_counter()
    logs = None
    if hasattr(classifier, "predict_proba"):
        logs = np.log(np.maximum(np.float64(classifier.predict_proba(view(test))), 1e-12))
    elif hasattr(classifier, "decision_function"):
        scores = np.float64(classifier.decision_function(view(test)))
        scores *= getattr(getattr(classifier, "svm_", None), "temperature", 1.0)
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    predicted = classifier.predict(view(test)) if logs is None else classifier.classes_[logs.argmax(1)]
    done = time.perf_counter()
    rows = None
    if hasattr(classifier, "test_rows_"):
        rows = Rows(classifier.rows_, classifier.test_rows_, classifier.svm_.cost)
    return Outcome(class_mean_accuracy(predicted, test.labels), fitted - start, done - fitted, logs, rows)


def class_mean_accuracy(predicted: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the mean over classes of the share of images that are right, in per cent."""
    return 100 * float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def fused(first: Outcome, second: Outcome, labels: NDArray[np.int64]) -> Outcome:
    """Average two contenders' log-probabilities with equal weights, which leaves nothing to tune.

    Args:
        first: with log-probabilities.
        second: with log-probabilities.
        labels: of the test images.

    Returns:
        The fusion's result; its times are the sums.
    """
    if first.log_probabilities is None or second.log_probabilities is None:
        raise ValueError("both contenders must have log_probabilities; got None")
    logs = (first.log_probabilities + second.log_probabilities) / 2
    return Outcome(
        class_mean_accuracy(logs.argmax(1), labels),
        first.fit_seconds + second.fit_seconds,
        first.predict_seconds + second.predict_seconds,
        logs,
    )
