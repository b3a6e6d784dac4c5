"""Reconstruction brings SGD, Adam and Muon to the plain optimizer's final training loss in fewer steps, on digits.

    python -m benchmarks.digits_race [--trials 12] [--seeds 5]

Task: scikit-learn's digits, MLP 64-128-128-128-10 (`fisherlayers.race.tasks.digits`). Every method, plain or
reconstructed, gets the same number of learning rates from the same range, and keeps the one with the lowest
validation loss, a mean over three seeds of its own; then it runs with each seed of the race. Everything else is the
library's default. The figure is the median over the seeds of: reconstructed steps to the plain run's final training
loss, over the plain run's own steps to it.
"""

import argparse
import dataclasses
import math

import torch

from benchmarks.common import Figure, command_line, write_results
from fisherlayers.race import (
    BASES,
    Summary,
    compare_pairs,
    load_task,
    make_method,
    race_to_json,
    run_race,
    summarize,
    tune,
)

TUNING_SEEDS = (1000, 1001, 1002)


def main() -> None:
    """Tune, race, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12, help="learning rates tried a method")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run, the task's if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    task = load_task("digits")
    methods = [make_method(base, reconstructed=again) for base in BASES for again in (False, True)]
    tunings = {
        method.name: tune(task, method, trials=arguments.trials, seeds=TUNING_SEEDS, steps=arguments.steps)
        for method in methods
    }
    rates = {name: tuning.learning_rate for name, tuning in tunings.items()}
    race = run_race(task, methods, seeds=range(arguments.seeds), steps=arguments.steps, learning_rates=rates)
    summaries = summarize(race)
    figures = [figure for summary in summaries for figure in figures_of(summary)]
    details = {
        "protocol": __doc__,
        "steps": race.steps,
        "batch_size": race.batch_size,
        "schedule": race.schedule,
        "learning_rate_ranges": {name: base.learning_rates for name, base in BASES.items()},
        "optimizers": {name: base.settings for name, base in BASES.items()},
        "tuning": {name: dataclasses.asdict(tuning) for name, tuning in tunings.items()},
        "learning_rates": rates,
        "comparisons": {base: [finite(pair) for pair in pairs] for base, pairs in compare_pairs(race).items()},
        "diverged": [f"{run.method}, seed {run.seed}" for run in race.runs if run.diverged],
        "race": race_to_json(race),
    }
    write_results("digits_race", figures, command=command_line(), threads=1, details=details)
    for figure in figures:
        print(f"{figure.name:45} {figure.value:8.3f} {figure.unit}  {figure.spread}")


def figures_of(summary: Summary) -> list[Figure]:
    """Return the figures of one base optimizer; a ratio of infinity, never reached, is left out."""
    found = [
        Figure(f"steps ratio, {summary.base}", summary.steps_ratio, "x", summary.steps_spread, summary.seeds),
        Figure(f"seconds ratio, {summary.base}", summary.seconds_ratio, "x", summary.seconds_spread, summary.seeds),
        Figure(f"validation accuracy, {summary.base}", summary.plain_metric, "%", None, summary.seeds),
        Figure(f"validation accuracy, {summary.base} reconstructed", summary.metric, "%", None, summary.seeds),
    ]
    return [
        figure if figure.spread is None or math.isfinite(figure.spread[1]) else dataclasses.replace(figure, spread=None)
        for figure in found
        if math.isfinite(figure.value)
    ]


def finite(pair: object) -> dict[str, float | None]:
    """Return a comparison as JSON can hold it: infinity becomes None."""
    values = dataclasses.asdict(pair)  # type: ignore[call-overload]
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


if __name__ == "__main__":
    main()
