"""What the image benchmarks share: contenders on one data set, fitted one after the other in the same run.

Every contender sees the same training images; ConvNets train for the seconds that the Deep Fisher Network's fit took.
The result file is written anew after each contender, so that a run that is cut short keeps what it has measured.
Contenders that ``--peers`` leaves out keep their figures in it while the settings are the same; the details name them.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Figure, command_line, data_folder, read_results, write_results
from benchmarks.image_hybrid import Rows, late_fusion, together
from benchmarks.image_peers import (
    BagOfWords,
    PretrainedFisherVectors,
    PretrainedProbe,
    ProbeOfTheSamePass,
    ResNet18,
    linear_scores,
    resized,
)
from benchmarks.image_sets import LabelledSet, Split, held_out, per_class
from fisherlayers.demo.baselines import ConvNet, LinearClassifier, hog_features
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.memory import memory_bytes
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import reporter
from fisherlayers.fisher_vectors.selection import SelectedSVM, select_svm
from fisherlayers.fisher_vectors.settings import NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.fisher_vectors.training import encode_images, fit_network

PEERS = ("HOG + SVM", "bag of words + chi2", "ConvNet", "ResNet-18", "linear probe")
"""Names of the peers; the last one is pretrained on ImageNet, and brings in the hybrids with pretrained features."""

PROBE, WIDE, MAPS = "linear probe", "linear probe, side 320, mirrored", "Fisher vectors of pretrained maps"

CONVNETS = ("ConvNet", "ResNet-18")


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


@dataclass
class Contest:
    """A data set with its contenders.

    Attributes:
        result: name of the result file.
        data: the images; `held_out` replaces the test images in a validation run.
        settings: of the Deep Fisher Network: "preset", "C", and what overrides the preset. "flips" takes mirror images
            as training images of the classifier.
        side: pixels to which HOG and ConvNets see the images resized.
        peers: which of `PEERS` take part.
        metric: "accuracy" or "error", both in per cent.
        threads: of all contenders.
        one_fit: whether the shallow Fisher vector is the fitted deep network without its second layer, which saves a
            fit on large sets, instead of a network of its own; the parts of both are then left out.
        maps: whether Fisher vectors of pretrained maps take part beside the linear probe, and in the hybrids, which
            are of the linear probe's features otherwise; leaving them out saves an hour on 10,000 images.
        notes: kept beside the figures.
    """

    result: str
    data: LabelledSet
    settings: dict[str, Any]
    side: int
    peers: Sequence[str] = PEERS
    metric: str = "accuracy"
    threads: int = 2
    one_fit: bool = False
    maps: bool = True
    notes: Sequence[str] = ()
    _former: dict[str, Any] | None = field(default=None, init=False)

    def run(self, *, write: bool = True) -> dict[str, Outcome]:
        """Fit and score everything.

        Args:
            write: whether the result file is written.

        Returns:
            The outcomes by contender.
        """
        torch.set_num_threads(self.threads)
        self._former = read_results(self.result)
        outcomes: dict[str, Outcome] = {}

        def enter(name: str, make: Callable[[], Any], images: Callable[[Split], Any] | None = None) -> None:
            outcome = outcomes[name] = score(make(), self.data.train, self.data.test, images)
            print(f"{name:22} {self._value(outcome):7.2f} %  fit {outcome.fit_seconds:7.1f} s", flush=True)
            if write:
                self._write(outcomes)

        def fisher(depth: int) -> None:
            found = fisher_outcomes(self.data, self.settings, self.threads, depth, one_fit=self.one_fit)
            for name, outcome in found.items():
                outcomes[name] = outcome
                print(f"{name:22} {self._value(outcome):7.2f} %  fit {outcome.fit_seconds:7.1f} s", flush=True)
            if write:
                self._write(outcomes)

        if not self.one_fit:
            fisher(1)
        small = lambda split: resized(split.images, self.side)  # noqa: E731
        quick: dict[str, tuple[Callable[[], Any], Callable[[Split], Any] | None]] = {
            "HOG + SVM": (lambda: LinearClassifier(hog_features), small),
            "bag of words + chi2": (lambda: BagOfWords(**self._words()), None),
        }
        for name in [name for name in quick if name in self.peers]:
            enter(name, *quick[name])
        fisher(2)
        if PROBE in self.peers:
            enter(PROBE, PretrainedProbe)
        if PROBE in self.peers and self.maps:
            maps = PretrainedFisherVectors()
            enter(MAPS, lambda: maps)
            enter(WIDE, lambda: ProbeOfTheSamePass(maps))
        if PROBE in self.peers:
            self._hybrids(outcomes, [WIDE, MAPS] if self.maps else [PROBE])
            if write:
                self._write(outcomes)
        seconds = outcomes["deep"].fit_seconds
        if "ConvNet" in self.peers:
            enter("ConvNet", lambda: ConvNet(seconds, width=32), small)
        if "ResNet-18" in self.peers:
            enter("ResNet-18", lambda: ResNet18(seconds, learning_rate=1e-3), small)
        if "hybrid" not in outcomes and "ConvNet" in outcomes:
            outcomes["hybrid"] = fused(outcomes["deep"], outcomes["ConvNet"], self.data.test.labels)
            print(f"hybrid with ConvNet: {self._value(outcomes['hybrid']):.2f} %", flush=True)
            if write:
                self._write(outcomes)
        return outcomes

    def _kept(self, measured: set[str]) -> list[Figure]:
        former = self._former
        same = {"settings": json.loads(json.dumps(self.settings)), "images": self._images()}
        if former is None or any(former["details"][name] != value for name, value in same.items()):
            return []
        figures = [Figure(**figure) for figure in former["figures"]]
        return [figure for figure in figures if figure.name not in measured and "best" not in figure.name]

    def time_fit(self) -> None:
        """Fit the Deep Fisher Network once, score nothing, and write the seconds to a file of their own."""
        torch.set_num_threads(self.threads)
        seconds = fitted_network(self.data.train, self.settings, self.threads, 2).seconds
        figures = [Figure("fit time, deep", seconds / 60, "min")]
        details = {"images": len(self.data.train.labels), "settings": self.settings}
        write_results(f"{self.result}_fit", figures, command=command_line(), threads=self.threads, details=details)
        print(f"fit {seconds:.1f} s")

    def _hybrids(self, outcomes: dict[str, Outcome], pretrained: list[str]) -> None:
        labels, truth = self.data.train.labels, self.data.test.labels
        rows = {name: found for name in ("deep", *pretrained) if (found := outcomes[name].rows) is not None}
        joined = {"hybrid": list(rows)}
        if len(pretrained) > 1:
            joined["both of pretrained features, without the network"] = pretrained
        for name, members in joined.items():
            both, svm = together([rows[member] for member in members], labels, (1.0, 3.0, 10.0))
            outcomes[name] = Outcome(class_mean_accuracy(linear_scores(both.test, svm).argmax(1), truth), 0.0, 0.0)
        fusion, scores = late_fusion(rows, labels)
        outcomes["hybrid by late fusion"] = Outcome(class_mean_accuracy(scores.argmax(1), truth), 0.0, 0.0)
        self.notes = [*self.notes, f"weights of the late fusion: {fusion.weights_}"]
        for name in (*joined, "hybrid by late fusion"):
            print(f"{name}: {self._value(outcomes[name]):.2f} %", flush=True)

    def _images(self) -> dict[str, int]:
        return {"train": len(self.data.train.labels), "test": len(self.data.test.labels)}

    def _words(self) -> dict[str, Any]:
        return {"bin_sizes": (2, 3, 4), "step": 2} if self.side < 96 else {}

    def _value(self, outcome: Outcome) -> float:
        return outcome.accuracy if self.metric == "accuracy" else 100 - outcome.accuracy

    def _write(self, outcomes: dict[str, Outcome]) -> None:
        figures = []
        for name, outcome in outcomes.items():
            figures.append(Figure(f"test {self.metric}, {name}", self._value(outcome), "%"))
            if outcome.fit_seconds and not name.startswith("hybrid"):
                figures.append(Figure(f"fit time, {name}", outcome.fit_seconds / 60, "min"))
        kept = self._kept({figure.name for figure in figures})
        figures += kept
        convnets = [figure.value for figure in figures if figure.name in {f"test {self.metric}, {n}" for n in CONVNETS}]
        if convnets:
            best = max(convnets) if self.metric == "accuracy" else min(convnets)
            figures.append(Figure(f"test {self.metric}, best ConvNet", best, "%"))
        details = {
            "data": self.data.note,
            "images": self._images(),
            "settings": self.settings,
            "predict seconds": {name: outcome.predict_seconds for name, outcome in outcomes.items()},
            "side of the images for HOG and ConvNets": self.side,
            "kept from an earlier run": [figure.name for figure in kept],
            "notes": list(self.notes),
        }
        write_results(self.result, figures, command=command_line(), threads=self.threads, details=details)


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
    return np.concatenate([rows[:, starts[member] : ends[member]] for member in members], axis=1) * scale


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


def main(description: str, load: Callable[[Path], LabelledSet], make: Callable[[LabelledSet], Contest]) -> None:
    """Run a contest from the command line.

    Args:
        description: help text.
        load: data folder -> data set.
        make: data set -> contest.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: FISHERLAYERS_DATA")
    parser.add_argument("--validate", action="store_true", help="score 30 %% of the training images; writes nothing")
    parser.add_argument("--time-fit", action="store_true", help="only time the deep network's fit; no image is scored")
    parser.add_argument("--per-class", type=int, metavar="N", help="learn from N random training images a class")
    parser.add_argument("--threads", type=int, default=2, help="of all contenders")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="only these peers")
    arguments = parser.parse_args()
    data = load(data_folder(arguments.data))
    if arguments.validate:
        train, test = held_out(data.train, 0.3, np.random.default_rng(0))
        data = data._replace(train=train, test=test)
    if arguments.per_class is not None:
        chosen = per_class(data.train.labels, arguments.per_class, np.random.default_rng(0))
        note = f"{data.note} Only {arguments.per_class} training images a class, drawn at random, were used."
        data = data._replace(train=data.train.take(chosen), note=note)
    contest = make(data)
    contest.threads = arguments.threads
    if arguments.peers is not None:
        contest.peers = arguments.peers
    if arguments.time_fit:
        contest.time_fit()
        return
    contest.run(write=not arguments.validate)
