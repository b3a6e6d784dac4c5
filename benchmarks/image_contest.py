"""What the image benchmarks share: contenders on one data set, fitted one after the other in the same run.

Every contender sees the same training images; ConvNets train for the seconds that the Deep Fisher Network's fit took.
The result file is written anew after each contender, so that a run that is cut short keeps what it has measured.
Contenders that ``--peers`` leaves out keep their figures in it while the settings are the same, and those that have
nothing to do with the settings in any case; the details name them. ``--peers-alone`` measures peers beside networks
that have been measured before.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, command_line, data_folder, read_results, write_results
from benchmarks.image_hybrid import late_fusion, together
from benchmarks.image_outcomes import Outcome, class_mean_accuracy, fisher_outcomes, fitted_network, fused, score
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

PEERS = ("HOG + SVM", "bag of words + chi2", "ConvNet", "ResNet-18", "linear probe")
"""Names of the peers; the last one is pretrained on ImageNet, and brings in the hybrids with pretrained features."""

PROBE, WIDE, MAPS = "linear probe", "linear probe, side 320, mirrored", "Fisher vectors of pretrained maps"

CONVNETS = ("ConvNet", "ResNet-18")

OF_THEIR_OWN = ("HOG + SVM", "bag of words + chi2", PROBE, WIDE, MAPS)
"""Peers that depend on neither the settings of the Deep Fisher Network nor the seconds of its fit."""


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
        peers_alone: whether the networks' figures are those of the result file; without the pretrained peers, whose
            hybrids need the networks' encodings.
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
    peers_alone: bool = False
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

        if not self.one_fit and not self.peers_alone:
            fisher(1)
        small = lambda split: resized(split.images, self.side)  # noqa: E731
        quick: dict[str, tuple[Callable[[], Any], Callable[[Split], Any] | None]] = {
            "HOG + SVM": (lambda: LinearClassifier(hog_features), small),
            "bag of words + chi2": (lambda: BagOfWords(**self._words()), None),
        }
        for name in [name for name in quick if name in self.peers]:
            enter(name, *quick[name])
        if not self.peers_alone:
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
        seconds = self._seconds_before() if self.peers_alone else outcomes["deep"].fit_seconds
        if "ConvNet" in self.peers:
            enter("ConvNet", lambda: ConvNet(seconds, width=32), small)
        if "ResNet-18" in self.peers:
            enter("ResNet-18", lambda: ResNet18(seconds, learning_rate=1e-3), small)
        if "hybrid" not in outcomes and {"deep", "ConvNet"} <= outcomes.keys():
            outcomes["hybrid"] = fused(outcomes["deep"], outcomes["ConvNet"], self.data.test.labels)
            print(f"hybrid with ConvNet: {self._value(outcomes['hybrid']):.2f} %", flush=True)
            if write:
                self._write(outcomes)
        return outcomes

    def _seconds_before(self) -> float:
        minutes = [figure.value for figure in self._kept(set()) if figure.name == "fit time, deep"]
        if not minutes:
            raise ValueError(f"no deep network with these settings and images stands in {self.result}.json")
        return 60 * minutes[0]

    def _kept(self, measured: set[str]) -> list[Figure]:
        former = self._former
        if former is None or former["details"]["images"] != self._images():
            return []
        figures = [Figure(**figure) for figure in former["figures"]]
        if former["details"]["settings"] != json.loads(json.dumps(self.settings)):
            figures = [figure for figure in figures if figure.name.partition(", ")[2] in OF_THEIR_OWN]
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
        before: dict[str, Any] = {"predict seconds": {}, "notes": []}
        if self._former and self.peers_alone:
            made = {key: self._former[key] for key in ("command", "commit", "cpu", "date")}
            before = self._former["details"] | {"notes": [*self._former["details"]["notes"], {"what is kept": made}]}
        predict_seconds = {name: outcome.predict_seconds for name, outcome in outcomes.items()}
        details = {
            "data": self.data.note,
            "images": self._images(),
            "settings": self.settings,
            "predict seconds": before["predict seconds"] | predict_seconds,
            "side of the images for HOG and ConvNets": self.side,
            "kept from an earlier run": [figure.name for figure in kept],
            "notes": [*before["notes"], *self.notes],
        }
        write_results(self.result, figures, command=self._command(), threads=self.threads, details=details)

    def _command(self) -> str:
        """Return the command that makes the whole file, also where peers are measured alone."""
        words = shlex.split(self._former["command"]) if self._former and self.peers_alone else []
        if "--peers" not in words:
            return command_line() if not words else shlex.join(words)
        place = words.index("--peers") + 1
        return shlex.join([*words[:place], *(peer for peer in self.peers if peer not in words), *words[place:]])


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
    parser.add_argument("--peers-alone", action="store_true", help="keep the networks that the result file has")
    arguments = parser.parse_args()
    if arguments.peers_alone and PROBE in (arguments.peers or PEERS):
        parser.error(f"--peers-alone needs --peers without {PROBE!r}: the hybrids need the networks' encodings")
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
    contest.peers_alone = arguments.peers_alone
    if arguments.peers is not None:
        contest.peers = arguments.peers
    if arguments.time_fit:
        contest.time_fit()
        return
    contest.run(write=not arguments.validate)
