"""The demo: both halves on real data, with progress bars, a table of each, and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fisherlayers.data import TrainTest, load_fashion_mnist, load_texture_patches
from fisherlayers.demo.baselines import ConvNet, LinearClassifier, hog_features, pixel_features
from fisherlayers.demo.contest import Entry, ImageClassifier, hold_contest
from fisherlayers.demo.figures import evidence_picture
from fisherlayers.demo.optimizers import Raced, RacePlan, race_optimizers
from fisherlayers.demo.pages import contest_section, contest_table, footer, race_section, race_table
from fisherlayers.files import write_file
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.race import load_task
from fisherlayers.report import Table, render

Report = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


@dataclass(frozen=True)
class Subject:
    """The data of a demo.

    Attributes:
        task: of the race.
        plan: of the race.
        load_images: the data of the contest.
        title: of the contest.
        notes: about its images.
        network: parameters of the Deep Fisher Network that differ from its defaults.
    """

    task: str
    plan: RacePlan
    load_images: Callable[[], TrainTest]
    title: str
    notes: tuple[str, ...]
    network: Mapping[str, Any] = field(default_factory=dict)


def _textures() -> TrainTest:
    patches = load_texture_patches()
    return TrainTest(*patches[:5])


# Settings were compared, and the ledger's figures measured, with these.
FORMER_DEFAULTS: dict[str, Any] = {
    "information": "closed-form",
    "intensity_weight": 0.0,
    "layer_weight": 1.0,
    "patch_side": 0,
}
# A texture is the same everywhere in a patch and in its mirror image, and finer than objects: no coordinates, mirrored
# training patches, small bins. Chosen on a part of the training patches that was held out.
TEXTURE_NETWORK: dict[str, Any] = {
    "preset": "photos",
    "bin_sizes": (2, 3, 4, 6, 8),
    "components": 64,
    "position_weight": 0.0,
    "flips": True,
    "projection": "one-vs-rest",
    "training_descriptors": 100_000,
    **FORMER_DEFAULTS,
}

SUBJECTS: dict[str, Subject] = {
    "textures": Subject(
        task="digits",
        plan=RacePlan(seeds=(0, 1, 2), trials=12, threads=1),
        load_images=_textures,
        title="Few labels: textures of real photographs",
        notes=(
            "Grey patches of 64 x 64 pixels, cut from photographs that scikit-image and scikit-learn carry. Train and "
            "test patches come from disjoint bands of each photograph, with a gap between them.",
        ),
        network=TEXTURE_NETWORK,
    ),
    "fashion-mnist": Subject(
        task="fashion-mnist",
        plan=RacePlan(seeds=(0,), trials=0, evaluate_every=11),
        load_images=load_fashion_mnist,
        title="Images: Fashion-MNIST, full size",
        notes=("Grey images of 28 x 28 pixels.",),
        network={
            "preset": "small",
            "projection_size": 45,
            "cross_fit": 1,
            "C": 1.0,
            "cv": 0,
            **FORMER_DEFAULTS,
        },
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What the demo found: the race, the contest, the report's path, and the wall-clock seconds of everything."""

    raced: Raced
    entries: list[Entry]
    report: Path
    seconds: float


def run_demo(output: Path, *, data: str = "textures", quick: bool = False, console: Console | None = None) -> Outcome:
    """Race the optimizers, hold the contest of image classifiers, print both tables and write the report.

    Args:
        output: folder of the report, ``index.html``; made if it does not exist. The report is written at the end and
            in one move: an interrupted demo leaves what was there.
        data: of the images: "textures", which the dependencies carry, as they do the digits that are raced on; or
            "fashion-mnist", for both halves.
        quick: a small part of it, to see that it works; its numbers mean nothing.
        console: where progress and tables go; the standard output if not given.

    Returns:
        All results.

    Raises:
        ValueError: unknown `data`.
        NotADirectoryError: `output` is a file.
    """
    if data not in SUBJECTS:
        raise ValueError(f"data must be one of {sorted(SUBJECTS)}; got {data!r}")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder; {output} is a file")
    console = console or Console()
    start = time.perf_counter()
    subject = SUBJECTS[data]
    images = subject.load_images()
    task = load_task(subject.task)
    plan = RacePlan(seeds=(0,), trials=0, steps=20, evaluate_every=4, threads=1) if quick else subject.plan
    if quick:
        images = thinned(images, per_class=6)

    with progress_bar(console, f"race on {subject.task}") as report:
        raced = race_optimizers(task, plan, report)
    print_table(console, f"Race on {raced.race.title}", race_table(raced))

    with progress_bar(console, "images") as report:
        network, peers = contestants(subject.network, quick, report)
        entries = hold_contest(network, peers, images, on_start=lambda name: report(name, 0.0))
    print_table(console, subject.title, contest_table(entries))

    evidence = evidence_picture(network.network, entries[0], images)
    sections = [race_section(raced), contest_section(subject.title, entries, images, subject.notes, [evidence])]
    seconds = time.perf_counter() - start
    path = output / "index.html"
    introduction = "Two uses of one idea: normalise a quantity by the inverse square root of its Fisher information."
    about = f"{footer()}; {seconds:.0f} seconds in all" + ("; a quick run, whose numbers mean nothing" if quick else "")
    write_file(path, render("Fisher layers: a demonstration", sections, introduction=introduction, footer=about))
    console.print(f"Report: {path} ({seconds:.0f} s in all)")
    return Outcome(raced, entries, path, seconds)


def contestants(
    parameters: Mapping[str, Any], quick: bool, report: Report
) -> tuple[Reporting, dict[str, Callable[[float], ImageClassifier]]]:
    """Return the Deep Fisher Network and the makers of its peers, given the network's fit time.

    Args:
        parameters: of the network.
        quick: a network of a few components.
        report: told the stage and the share that is done.

    Returns:
        The classifiers, not yet fitted.
    """
    small: dict[str, Any] = {"components": 4, "dimensions": 8, "training_descriptors": 2000, "iterations": 2}
    chosen = {**parameters, **(small if quick else {})}
    network = Reporting(DeepFisherNetwork(random_state=0, n_jobs=-1, **chosen), report)
    peers: dict[str, Callable[[float], ImageClassifier]] = {
        "HOG + linear SVM": lambda _: LinearClassifier(hog_features),
        "ConvNet, same time": lambda seconds: ConvNet(
            seconds, progress=lambda share: report("ConvNet, same time", share)
        ),
        "linear SVM on pixels": lambda _: LinearClassifier(pixel_features),
    }
    return network, peers


@dataclass
class Reporting:
    """A Deep Fisher Network that reports the stages of its fit."""

    network: DeepFisherNetwork
    report: Report

    def fit(self, images: Any, labels: Any) -> Any:
        """Fit the network and report each stage.

        Args:
            images: of the training set.
            labels: one an image.

        Returns:
            The fitted network.
        """
        return self.network.fit(
            images,
            labels,
            progress=lambda stage, done, total: self.report(f"Deep Fisher Network: {stage}", done / max(total, 1)),
        )

    def predict(self, images: Any) -> NDArray[Any]:
        """Return one label an image."""
        self.report("Deep Fisher Network: predict", 0.0)
        predicted: NDArray[Any] = self.network.predict(images)
        return predicted


def thinned(data: TrainTest, *, per_class: int) -> TrainTest:
    """Return the first images of each class, at most `per_class` on either side."""
    train, test = (
        np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(data.classes))])
        for labels in (data.train_labels, data.test_labels)
    )
    return TrainTest(
        data.train_images[train], data.train_labels[train], data.test_images[test], data.test_labels[test], data.classes
    )


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Report]:
    """Show a progress bar while the block runs.

    Args:
        console: where.
        title: left of the bar.

    Yields:
        What to call with the present stage and its share.
    """
    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda stage, share: progress.update(task, description=stage, completed=share)
        progress.update(task, description="done", completed=1.0)


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a report's table to the console."""
    shown = rich.table.Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left")
    for index, row in enumerate(table.rows):
        shown.add_row(*row, style="bold" if index in table.highlight else None)
    console.print(shown)
