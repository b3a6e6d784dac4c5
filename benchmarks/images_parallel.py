"""Two cores over one: fit and predict of the Deep Fisher Network with `n_jobs=2` against `n_jobs=1`, wall-clock.

The images are photographs' windows of 256 x 256 pixels, the settings those of preset "photos" with smaller mixtures.
Both contenders take turns in one process; torch and scikit-learn's k-means have as many threads as the contender. The
share of each stage in the time, and its own ratio, stand in the details: what is serial limits the whole. The mixtures
take as long on 24 images as on 1,500, and scale less than the passes over images: ``--each`` says how much they weigh.
"""

import argparse
import os
import time

import torch
from threadpoolctl import threadpool_limits

from benchmarks.common import Figure, command_line, write_results
from benchmarks.pipeline_speed import crops
from fisherlayers.fisher_vectors import DeepFisherNetwork

SETTINGS = {
    "preset": "photos",
    "components": 128,
    "dimensions": 64,
    "training_descriptors": 100_000,
    "iterations": 10,
    "color": False,
    "C": (1.0, 3.0),
    "random_state": 0,
}
PREDICT = "predict"


def stages(train: tuple, test: tuple, n_jobs: int) -> dict[str, float]:
    """Seconds of every stage of a fit, and of predicting; a stage lasts from the end of the one before to its own."""
    seconds: dict[str, float] = {}
    clock = [time.perf_counter()]

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            clock.append(time.perf_counter())
            seconds[stage] = seconds.get(stage, 0.0) + clock[-1] - clock[-2]

    torch.set_num_threads(n_jobs)
    with threadpool_limits(limits=n_jobs):
        model = DeepFisherNetwork(**SETTINGS, n_jobs=n_jobs).fit(*train, progress=progress)
        progress("classifier", 1, 1)
        model.predict(test[0])
        progress(PREDICT, 1, 1)
    return seconds


def main() -> None:
    """Measure, print and write benchmarks/results/images_parallel.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=3, help="training images of each of the eight photographs")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "2":
        parser.error("set OMP_NUM_THREADS=2: scikit-learn's k-means asks it whether it may have threads")
    train, test = crops(arguments.each, 0), crops(arguments.each, 1)
    rounds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for number in range(arguments.rounds):
        for n_jobs in (1, 2) if number % 2 == 0 else (2, 1):
            rounds[n_jobs].append(stages(train, test, n_jobs))
            print(n_jobs, {name: round(second, 2) for name, second in rounds[n_jobs][-1].items()}, flush=True)

    def fits(n_jobs: int) -> list[float]:
        return [sum(second for name, second in entry.items() if name != PREDICT) for entry in rounds[n_jobs]]

    def predicts(n_jobs: int) -> list[float]:
        return [entry[PREDICT] for entry in rounds[n_jobs]]

    figures = []
    for name, seconds in (("two cores over one", fits), ("two cores over one, predict", predicts)):
        value = min(seconds(1)) / min(seconds(2))
        ratios = [one / two for one, two in zip(seconds(1), seconds(2), strict=True)]
        figures.append(Figure(name, value, "x", (min(value, *ratios), max(value, *ratios))))
    best = {n_jobs: {name: min(e[name] for e in entries) for name in entries[0]} for n_jobs, entries in rounds.items()}
    details = {
        "training images": len(train[0]),
        "seconds of each stage, lowest of the rounds": {
            str(n_jobs): {name: round(second, 3) for name, second in entry.items()} for n_jobs, entry in best.items()
        },
        "ratio of each stage": {name: round(best[1][name] / best[2][name], 2) for name in best[1]},
        "fit seconds of each round": {str(n_jobs): [round(second, 2) for second in fits(n_jobs)] for n_jobs in (1, 2)},
        "load average": list(os.getloadavg()),
    }
    for figure in figures:
        print(f"{figure.name}: {figure.value:.2f} {figure.unit} {figure.spread}")
    print(details)
    write_results("images_parallel", figures, command=f"OMP_NUM_THREADS=2 {command_line()}", threads=2, details=details)


if __name__ == "__main__":
    main()
