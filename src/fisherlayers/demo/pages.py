"""The demo's tables and the sections of its report, from the results of the two halves."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

from fisherlayers.data import TrainTest
from fisherlayers.demo.contest import Entry
from fisherlayers.demo.figures import accuracy_picture, prediction_picture
from fisherlayers.demo.optimizers import Raced
from fisherlayers.race import BASES, Summary, summarize
from fisherlayers.race.figures import race_picture
from fisherlayers.report import Picture, Section, Table


def race_table(raced: Raced) -> Table:
    """Return the table of the race: steps and seconds to the plain optimizer's final loss, plain and reconstructed."""
    rows = [_race_row(summary) for summary in summarize(raced.race)]
    seeds = len({run.seed for run in raced.race.runs})
    return Table(
        ["optimizer", "target loss", "steps", "ratio", "seconds", "ratio", f"{raced.race.metric_name} %"],
        rows,
        caption="Plain → reconstructed: steps and training seconds until the training loss is as low as the plain "
        f"optimizer's final one, and {raced.race.metric_name} on validation examples at the end; "
        f"median of {seeds} {'seed' if seeds == 1 else 'seeds'}.",
    )


def _race_row(summary: Summary) -> list[str]:
    return [
        summary.base,
        f"{summary.loss:.2g}",
        _pair(summary.plain_steps, summary.steps, ".0f"),
        _ratio(summary.steps_ratio),
        _pair(summary.plain_seconds, summary.seconds, ".2f"),
        _ratio(summary.seconds_ratio),
        _pair(summary.plain_metric, summary.metric, ".1f"),
    ]


def _pair(plain: float, reconstructed: float, form: str) -> str:
    return f"{plain:{form}} → " + (format(reconstructed, form) if math.isfinite(reconstructed) else "never")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def contest_table(entries: Sequence[Entry]) -> Table:
    """Return the table of the images: accuracy and times of each contender, the network's row standing out."""
    return Table(
        ["classifier", "test accuracy %", "fit, seconds", "predict, seconds"],
        [[e.name, f"{e.accuracy:.1f}", f"{e.fit_seconds:.1f}", f"{e.predict_seconds:.1f}"] for e in entries],
        highlight=frozenset({0}),
    )


def race_section(raced: Raced) -> Section:
    """Return the section of the optimizer half."""
    race = raced.race
    plain = "; ".join(f"{name}: {base.settings}" for name, base in BASES.items())
    trials = [len(tuning.trials) for tuning in raced.tunings.values()]
    rates = ", ".join(f"{run.method} {run.learning_rate:.2g}" for run in race.runs[: len(race.methods)])
    how = (
        f"of {trials[0]} tried, the plain optimizer's with the lowest final loss, which is the target, and the "
        "reconstructed one's with the fewest steps to it"
        if trials
        else "the optimizer's usual one"
    )
    return Section(
        f"Fewer steps: {race.title}",
        [
            "A reconstructed network keeps each weight as W = W' F^(-1/2), F the Fisher information of the layer's "
            "input: an ordinary step on W' is then a natural-gradient step on W. The training loop and the optimizer "
            "stay the same.",
            f"Every method starts from the same weights and sees the same batches of {race.batch_size}, for "
            f"{race.steps} steps; the learning rate follows the schedule '{race.schedule}'. {plain}.",
            f"Learning rate: {how} ({rates}).",
        ],
        [race_table(raced)],
        [race_picture(race)],
    )


def contest_section(
    title: str,
    entries: list[Entry],
    data: TrainTest,
    notes: Sequence[str] = (),
    pictures: Sequence[Picture] = (),
) -> Section:
    """Return the section of the image half.

    Args:
        title: the heading.
        entries: the network's first.
        data: what they were tested on.
        notes: paragraphs about the data.
        pictures: shown after the others.

    Returns:
        Text, table, accuracies, and test images with predictions.
    """
    count = f"{len(data.train_labels):,} training images, {len(data.test_labels):,} test images"
    return Section(
        title,
        [
            *notes,
            f"{len(data.classes)} classes, {count}. No classifier has seen other images: nothing is pretrained.",
            "The ConvNet trains for as long as the Deep Fisher Network's fit took, with mirrored and shifted images.",
        ],
        [contest_table(entries)],
        [accuracy_picture(entries), prediction_picture(entries[0], data), *pictures],
    )


def footer() -> str:
    """Return what ran: versions, threads and processor."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("fisherlayers", "torch", "scikit-learn", "numpy"))
    threads = torch.get_num_threads()
    return f"{packages}; Python {platform.python_version()}; {threads} threads; {platform.machine()}"
