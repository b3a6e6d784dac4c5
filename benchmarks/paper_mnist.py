"""SNGD on the shapes of its MNIST experiments, and against the exact natural gradient.

SNGD is SGD with momentum 0.9 and weight decay on the reconstructed network (`reconstruct` at its defaults, the metric
`input`), batches of 50, the learning rate falling linearly to zero. It is tuned on held-out training images (the lowest
validation loss at the end of runs of as many epochs), then trained on all 60,000, once a seed; the test images are
scored once, after the last step.

Exact NGD has the full Fisher information of each batch, and the same momentum and weight decay. It and SNGD run for the
same number of epochs, the same batches, each with as many learning rates tried; seconds an epoch are CPU seconds on one
thread, the mean of the whole run.
Run: python -m benchmarks.paper_mnist --journal FILE
What was chosen on held-out images, for example: --held-out 0.025 --weight-decay 0 --shapes mnist-narrow
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from benchmarks.common import Figure, command_line, write_results
from fisherlayers.data import load_mnist
from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.race import Examples, Journal, Method, Run, Task, load_task, make_method, train
from fisherlayers.race.contest import effective_options
from fisherlayers.race.methods import Base
from fisherlayers.race.tuning import draw_learning_rates

SHAPES = ("mnist", "mnist-tapered", "mnist-narrow", "mnist-deep")
COMPARED = ("mnist", "mnist-narrow")
"""Shapes on which exact NGD runs."""
DAMPING = 1000.0
"""Of exact NGD, over the mean eigenvalue: a batch of 50 informs few of 76,000 directions, so this mean is small.
After one epoch 100 is worse on held-out images, and 3,000 and 10,000 are as good."""
KL_CLIP = 0.1
"""Longest step of exact NGD, in nats: without a limit it diverges once the network is certain of its batches."""
MOMENTUM = 0.9
"""Of both."""
WEIGHT_DECAY = 3e-3
"""On W, of both; chosen for SNGD on the held-out images."""
TUNING_SEED = 1000


def exact_ngd(momentum: float = MOMENTUM, weight_decay: float = WEIGHT_DECAY, damping: float = DAMPING) -> Method:
    """Return the exact natural gradient as a contender."""

    def make(model: nn.Module, rate: float) -> list[Optimizer]:
        options = {"momentum": momentum, "weight_decay": weight_decay, "damping": damping, "kl_clip": KL_CLIP}
        return [ExactNaturalGradient(model, lr=rate, **options)]

    settings = (
        f"full Fisher information of each batch, damping {damping:g} over its mean eigenvalue, steps of at most "
        f"{KL_CLIP:g} nats, momentum {momentum:g}, decoupled weight decay {weight_decay:g}"
    )
    return Method("exact NGD", "exact NGD", Base(make, 0.1, (1e-2, 3.0), settings))


def sngd(momentum: float = MOMENTUM, weight_decay: float = WEIGHT_DECAY) -> Method:
    """Return reconstructed SGD as a contender."""

    def make(model: nn.Module, rate: float) -> list[Optimizer]:
        return [SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)]

    method = make_method("SGD", reconstructed=True)
    settings = f"momentum {momentum:g}, weight decay {weight_decay:g}"
    return replace(method, name="SNGD", optimizer=replace(method.optimizer, make=make, settings=settings))


class Shape:
    """One network, with the runs that the journal remembers."""

    def __init__(self, name: str, journal: Journal) -> None:
        task = load_task(name)
        self.task = task
        data = load_mnist()
        train, test = (
            Examples(torch.tensor(images).float() / 255, torch.tensor(labels).long())
            for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        )
        # Its one evaluation after the first step is at the end.
        self.final_task = replace(task, train=train, validation=test, validation_size=None)
        self.journal = journal

    def tune(self, method: Method, *, epochs: int, trials: int) -> float:
        """Return the learning rate with the lowest validation loss."""
        rates = draw_learning_rates(*method.optimizer.learning_rates, trials=trials, seed=TUNING_SEED)
        tried = [(self._loss(method, rate, epochs), rate) for rate in rates]
        return min(tried)[1]

    def tuned_runs(self, method: Method, *, epochs: int, trials: int, seeds: int) -> tuple[float, list[Run]]:
        """Tune a method, and train it: its learning rate and a run for every seed."""
        rate = self.tune(method, epochs=epochs, trials=trials)
        return rate, [self.test(method, rate, seed=seed, epochs=epochs) for seed in range(seeds)]

    def test(self, method: Method, rate: float, *, seed: int, epochs: int) -> Run:
        """Train on all training images, and score the test images at the end."""
        return self._run(self.final_task, method, rate, seed, epochs, evaluations=1)

    def held_out(self, method: Method, rate: float, *, epochs: int) -> Run:
        """Train on the training images but the held-out ones, and score those four times."""
        return self._run(self.task, method, rate, TUNING_SEED, epochs, evaluations=4)

    def _loss(self, method: Method, rate: float, epochs: int) -> float:
        run = self.held_out(method, rate, epochs=epochs)
        return float("inf") if run.diverged else run.final.validation_loss

    def _run(self, task: Task, method: Method, rate: float, seed: int, epochs: int, *, evaluations: int) -> Run:
        steps = epochs * (len(task.train.inputs) // task.batch_size)
        every = max(1, steps // evaluations)
        shared: dict[str, Any] = {"learning_rate": rate, "seed": seed, "steps": steps, "evaluate_every": every}
        split = "test" if task is self.final_task else "validation"
        key = {
            "task": task.title,
            "split": split,
            "method": method.name,
            "settings": method.optimizer.settings,
            "options": effective_options(method),
            **shared,
        }

        def compute() -> Run:
            run = train(task, method, clock="cpu", **shared)
            point = run.final
            print(
                f"{task.title:35} {method.name:10} lr {rate:<8.3g} seed {seed:<5} {point.step:>6} steps "
                f"{point.seconds:7.1f} s  {split} {point.validation_metric:.2f}",
                flush=True,
            )
            return run

        return self.journal.run(key, compute)


def median_accuracy(runs: list[Run]) -> float:
    """Return the median of the runs' accuracies on the test images, in percent."""
    return statistics.median(run.final.validation_metric for run in runs)


def accuracy_figure(name: str, runs: list[Run]) -> Figure:
    """Return the median accuracy with its spread."""
    scores = [run.final.validation_metric for run in runs]
    return Figure(name, median_accuracy(runs), "%", (min(scores), max(scores)), list(range(len(runs))))


def seconds_a_step(runs: list[Run]) -> float:
    """Return the median of the runs' mean seconds a step."""
    return statistics.median(run.final.seconds / run.final.step for run in runs)


def main() -> None:
    """Run what the journal does not hold, and write benchmarks/results/paper_mnist.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of SNGD, and of exact NGD (default: 12)")
    parser.add_argument("--seeds", type=int, default=3, help="of each method (default: 3)")
    parser.add_argument("--trials", type=int, default=5, help="learning rates a method (default: 5)")
    parser.add_argument("--journal", type=Path, help="file that keeps finished runs: a stopped run goes on from it")
    parser.add_argument("--held-out", type=float, metavar="RATE", help="score held-out images alone; writes nothing")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=SHAPES, help="with --held-out")
    parser.add_argument("--method", choices=("SNGD", "exact NGD"), default="SNGD", help="with --held-out")
    parser.add_argument("--momentum", type=float, default=MOMENTUM, help="with --held-out")
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY, help="with --held-out")
    parser.add_argument("--damping", type=float, default=DAMPING, help="of exact NGD, with --held-out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(chosen.journal)
    if chosen.held_out is not None:
        shared = (chosen.momentum, chosen.weight_decay)
        method = sngd(*shared) if chosen.method == "SNGD" else exact_ngd(*shared, chosen.damping)
        for shape in (Shape(name, journal) for name in chosen.shapes):
            points = shape.held_out(method, chosen.held_out, epochs=chosen.epochs).points[1:]
            for point in points:
                print(f"{point.step:>6} steps  {point.validation_metric:.2f} %  loss {point.validation_loss:.4f}")
        return
    ours_by, exact_by = sngd(), exact_ngd()

    figures: list[Figure] = []
    details: dict[str, Any] = {}
    accuracies, differences, speeds = [], {}, {}
    for name in SHAPES:
        shape = Shape(name, journal)
        budget = {"epochs": chosen.epochs, "trials": chosen.trials, "seeds": chosen.seeds}
        rate, ours = shape.tuned_runs(ours_by, **budget)
        figures.append(accuracy_figure(f"SNGD test accuracy, {name}", ours))
        accuracies.append(median_accuracy(ours))
        details[name] = {"title": shape.task.title, "steps": ours[0].final.step, "learning rate, SNGD": rate}
        if name in COMPARED:
            rate, exact = shape.tuned_runs(exact_by, **budget)
            figures.append(accuracy_figure(f"exact NGD test accuracy, {name}", exact))
            details[name]["learning rate, exact NGD"] = rate
            differences[name] = abs(accuracies[-1] - median_accuracy(exact))
            speeds[name] = seconds_a_step(exact) / seconds_a_step(ours)
            figures.append(Figure(f"times faster than NGD per epoch, {name}", speeds[name], "x"))
    figures.append(Figure("SNGD test accuracy, lowest", min(accuracies), "%"))
    figures.append(Figure("SNGD against NGD, highest difference", max(differences.values()), "points"))
    figures.append(Figure("times faster than NGD per epoch", min(speeds.values()), "x"))
    write_results(
        "paper_mnist",
        figures,
        command=command_line().split(" --journal")[0],
        threads=1,
        details={
            "protocol": __doc__,
            "SNGD": ours_by.optimizer.settings,
            "exact NGD": exact_by.optimizer.settings,
            "reconstruct": effective_options(ours_by),
        }
        | details,
    )
    for figure in figures:
        print(f"{figure.name:55} {figure.value:.3f} {figure.unit}")


if __name__ == "__main__":
    main()
