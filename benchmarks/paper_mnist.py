"""SNGD on the shapes of its MNIST experiments, and against the exact natural gradient.

SNGD is SGD with momentum 0.9 on the reconstructed network (`reconstruct` at its defaults, the metric `input`), batches
of 50, the learning rate falling linearly to zero. It is tuned on 5,000 held-out training images (the lowest validation
loss of runs of one epoch), then trained once a seed; the test images are scored once, after the last step.

Exact NGD has the full Fisher information of each batch. It and SNGD run for the same number of epochs, the same
batches, each with as many learning rates tried; seconds an epoch are CPU seconds on one thread.
Run: python -m benchmarks.paper_mnist --journal FILE
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figure, command_line, write_results
from fisherlayers.data import load_mnist
from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.race import Examples, Journal, Method, Run, Task, load_task, make_method, train
from fisherlayers.race.contest import effective_options
from fisherlayers.race.methods import Base
from fisherlayers.race.tuning import draw_learning_rates, lowest_validation_loss

SHAPES = ("mnist", "mnist-tapered", "mnist-narrow", "mnist-deep")
COMPARED = ("mnist", "mnist-narrow")
"""Shapes on which exact NGD runs."""
DAMPING = 10.0
"""Of exact NGD, over the mean eigenvalue: a batch of 50 informs few of 76,000 directions, so this mean is small."""
TUNING_SEED = 1000

NGD = Method(
    "exact NGD",
    "exact NGD",
    Base(
        lambda model, rate: [ExactNaturalGradient(model, lr=rate, damping=DAMPING)],
        0.1,
        (1e-3, 1.0),
        f"full Fisher information of each batch, damping {DAMPING:g} over its mean eigenvalue, no momentum",
    ),
)
SNGD = dataclasses.replace(make_method("SGD", reconstructed=True), name="SNGD")


class Shape:
    """One network, with the runs that the journal remembers."""

    def __init__(self, name: str, journal: Journal) -> None:
        task = load_task(name)
        self.epoch = len(task.train.inputs) // task.batch_size
        self.task = task
        data = load_mnist()
        test = Examples(torch.tensor(data.test_images).float() / 255, torch.tensor(data.test_labels).long())
        # Its one evaluation after the first step is at the end.
        self.final_task = dataclasses.replace(task, validation=test, validation_size=None)
        self.journal = journal

    def tune(self, method: Method, *, steps: int, trials: int) -> float:
        """Return the learning rate with the lowest validation loss."""
        rates = draw_learning_rates(*method.optimizer.learning_rates, trials=trials, seed=TUNING_SEED)
        tried = [(self._loss(method, rate, steps), rate) for rate in rates]
        return min(tried)[1]

    def test(self, method: Method, rate: float, *, seed: int, steps: int) -> Run:
        """Train on the training images but the held-out ones, and score the test images at the end."""
        return self._run(self.final_task, method, rate, seed, steps, every=steps)

    def _loss(self, method: Method, rate: float, steps: int) -> float:
        run = self._run(self.task, method, rate, TUNING_SEED, steps, every=max(1, steps // 3))
        loss = lowest_validation_loss(run)
        return float("inf") if loss is None else loss

    def _run(self, task: Task, method: Method, rate: float, seed: int, steps: int, *, every: int) -> Run:
        shared: dict[str, Any] = {"learning_rate": rate, "seed": seed, "steps": steps, "evaluate_every": every}
        split = "test" if task is self.final_task else "validation"
        key = {
            "task": task.title,
            "split": split,
            "method": method.name,
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


def main() -> None:
    """Run what the journal does not hold, and write benchmarks/results/paper_mnist.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of SNGD alone (default: 12)")
    parser.add_argument("--seeds", type=int, default=1, help="of SNGD alone (default: 1)")
    parser.add_argument("--share", type=float, default=1.0, help="epochs of SNGD against NGD (default: 1)")
    parser.add_argument("--trials", type=int, default=3, help="learning rates a method (default: 3)")
    parser.add_argument("--journal", type=Path, help="file that keeps finished runs: a stopped run goes on from it")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(chosen.journal)

    shapes = {name: Shape(name, journal) for name in SHAPES}
    figures, details = [], {}
    accuracies = {}
    for name, shape in shapes.items():
        rate = shape.tune(SNGD, steps=shape.epoch, trials=chosen.trials)
        runs = [shape.test(SNGD, rate, seed=seed, steps=chosen.epochs * shape.epoch) for seed in range(chosen.seeds)]
        scores = [run.final.validation_metric for run in runs]
        accuracies[name] = sorted(scores)[len(scores) // 2]
        seeds = range(chosen.seeds)
        figures.append(
            Figure(f"SNGD test accuracy, {name}", accuracies[name], "%", (min(scores), max(scores)), list(seeds))
        )
        details[name] = {"title": shape.task.title, "learning_rate": rate, "epochs": chosen.epochs}
    figures.append(Figure("SNGD test accuracy, lowest", min(accuracies.values()), "%"))

    differences, speeds = {}, {}
    for name in COMPARED:
        shape = shapes[name]
        steps = max(1, round(chosen.share * shape.epoch))
        pair = {}
        for method in (SNGD, NGD):
            rate = shape.tune(method, steps=max(1, steps // 5), trials=chosen.trials)
            pair[method.name] = shape.test(method, rate, seed=0, steps=steps)
            details[f"{name}, {method.name}"] = {"learning_rate": rate, "steps": steps}
            accuracy = pair[method.name].final.validation_metric
            figures.append(Figure(f"{method.name} test accuracy after {chosen.share:g} epochs, {name}", accuracy, "%"))
        ours, exact = pair["SNGD"].final, pair["exact NGD"].final
        differences[name] = abs(ours.validation_metric - exact.validation_metric)
        speeds[name] = (exact.seconds / exact.step) / (ours.seconds / ours.step)
        figures.append(Figure(f"times faster than NGD per epoch, {name}", speeds[name], "x"))
    figures.append(Figure("SNGD against NGD, highest difference", max(differences.values()), "points"))
    figures.append(Figure("times faster than NGD per epoch", min(speeds.values()), "x"))
    write_results(
        "paper_mnist",
        figures,
        command=command_line().split(" --journal")[0],
        threads=1,
        details={"protocol": __doc__, "exact NGD": NGD.optimizer.settings, "reconstruct": effective_options(SNGD)}
        | details,
    )
    for figure in figures:
        print(f"{figure.name:55} {figure.value:.3f} {figure.unit}")


if __name__ == "__main__":
    main()
