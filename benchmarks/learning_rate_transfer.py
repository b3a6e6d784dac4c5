"""Does the learning rate transfer? The base optimizer's own tuned rate, on the plain and on the reconstructed network.

For each race and each of SGD, AdamW and Muon: the learning rate that the race's search chose for the plain network (so
the races come first), the same initial weights and batches, the same number of steps, the rate falling linearly to
zero. A pair is *stable* where the reconstructed run's training loss is finite, is never above the initial one, or the
plain run's highest, by more than a half, and ends no higher than twice the plain run's; it is *ahead* where its
validation loss ends below the plain run's. Steps count here, not seconds. What is told of Muon on an LSTM or an MLP is
told of its AdamW part as well.
Run: python -m benchmarks.learning_rate_transfer --journal FILE
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figure, command_line, read_results, write_results
from fisherlayers.race import Journal, Method, Run, Task, load_task, make_method, train
from fisherlayers.race.contest import effective_options

RACES = {
    "race_mnist_mlp": ("mnist", 400),
    "race_fashion_mlp": ("fashion-mnist", 110),
    "race_autoencoder": ("autoencoder", 75),
    "race_cifar_resnet": ("cifar10", 60),
    "race_ptb_lstm": ("ptb", 60),
    "race_shakespeare_transformer": ("shakespeare", 100),
}
"""Race -> its task, and the steps of a run: about those of its search."""
BASES = ("SGD", "AdamW", "Muon")
SEED = 2000
"""Neither of the searches nor of the races."""
EVALUATIONS = 12
JUMP = 1.5
FLOOR = 2.0


def tuned_rate(race: str, base: str) -> float | None:
    """Return the learning rate that a race chose for a plain network, None if it has not been run."""
    results = read_results(race)
    if results is None:
        return None
    trials = [(loss, rate) for rate, loss in results["details"]["searches"][base] if loss is not None]
    return min(trials)[1]


def compare(plain: Run, other: Run) -> dict[str, Any]:
    """Return whether the reconstructed run is stable and ahead, with the losses."""
    losses = [point.train_loss for point in other.points]
    stable = (
        not other.diverged
        and max(losses) <= JUMP * max(losses[0], *(point.train_loss for point in plain.points))
        and losses[-1] <= FLOOR * plain.final.train_loss
        and math.isfinite(losses[-1])
    )
    return {
        "learning rate": plain.learning_rate,
        "stable": stable,
        "ahead": stable and other.final.validation_loss < plain.final.validation_loss,
        "validation loss, plain": plain.final.validation_loss,
        "validation loss, reconstructed": other.final.validation_loss if stable else None,
    }


def run_pair(task: Task, base: str, rate: float, steps: int, journal: Journal) -> dict[str, Any]:
    """Train the plain and the reconstructed network, and compare them."""

    def remembered(method: Method) -> Run:
        shared: dict[str, Any] = {"learning_rate": rate, "seed": SEED, "steps": steps}
        key = {"task": task.title, "method": method.name, "options": effective_options(method), **shared}
        every = max(1, steps // EVALUATIONS)
        return journal.run(key, lambda: train(task, method, clock="cpu", evaluate_every=every, **shared))

    return compare(remembered(make_method(base)), remembered(make_method(base, reconstructed=True)))


def main() -> None:
    """Compare all pairs of the races that have been run, and write benchmarks/results/learning_rate_transfer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, help="file that keeps finished runs: a stopped run goes on from it")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(chosen.journal)
    pairs: dict[str, dict[str, Any]] = {}
    for race, (task_name, steps) in RACES.items():
        task = None
        for base in BASES:
            rate = tuned_rate(race, base)
            if rate is None:
                print(f"{race}: not run yet, its pairs are not counted")
                break
            task = load_task(task_name) if task is None else task
            pair = pairs[f"{task_name}, {base}"] = run_pair(task, base, rate, steps, journal)
            print(f"{task_name:15} {base:6} {pair}", flush=True)
    figures = [
        Figure("pairs stable and ahead", sum(pair["ahead"] for pair in pairs.values()), "of 18", None, [SEED]),
        Figure("pairs stable", sum(pair["stable"] for pair in pairs.values()), "of 18", None, [SEED]),
        Figure("pairs run", len(pairs), "of 18", None, [SEED]),
    ]
    details = {"protocol": __doc__, "steps": dict(RACES.values()), "pairs": pairs}
    command = command_line().split(" --journal")[0]
    write_results("learning_rate_transfer", figures, command=command, threads=1, details=details)


if __name__ == "__main__":
    main()
