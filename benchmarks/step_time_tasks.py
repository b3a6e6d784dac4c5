"""What a reconstructed step costs on the networks of the races, in steps of the same base optimizer.

Forward, backward, optimizer, statistics and refreshes, amortised: plain and reconstructed networks take turns in
blocks of one refresh period, after a warm-up with more frequent ones. CPU seconds, one thread, each race's batches.
Run: python -m benchmarks.step_time_tasks [--journal FILE]
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.common import Figure, Timing, command_line, interleaved, ratio, write_results
from fisherlayers.race import Method, Task, load_task, make_method

NETWORKS = {
    "MLP": "fashion-mnist",
    "autoencoder": "autoencoder",
    "transformer": "shakespeare",
    "CNN": "cifar10",
    "LSTM": "ptb",
    "small MLP": "mnist",
}
BASES = ("SGD", "AdamW")
HEADLINE = "SGD"
"""The base optimizer whose ratio is the figure without a base in its name: the cheapest, so the strictest."""
BATCHES = 10


def trainer(task: Task, method: Method, steps: int) -> Callable[[], None]:
    """Return a function that takes ``steps`` training steps of a network of its own, at a harmless learning rate."""
    torch.manual_seed(0)
    rate = method.optimizer.search_range(task.loss_scale)[0]
    model, optimizers = method.prepare(task.make_model(), rate)
    batches: Iterator = cycle(list(islice(task.batches(0), BATCHES)))

    def run() -> None:
        for inputs, targets in islice(batches, steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            task.loss(model(inputs), targets).backward()
            for optimizer in optimizers:
                optimizer.step()

    return run


def measure(network: str, *, rounds: int, steps: int) -> dict[str, Timing]:
    """Time one network with every base optimizer, plain and reconstructed."""
    task = load_task(NETWORKS[network])
    methods = [make_method(base, reconstructed=again) for base in BASES for again in (False, True)]
    contenders = {method.name: trainer(task, method, steps) for method in methods}
    return interleaved(contenders, rounds=rounds, warmup=1, threads=1)


def main() -> None:
    """Measure and write benchmarks/results/step_time_tasks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed blocks of each contender (default: 3)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a block, the refresh period (default: 50)")
    parser.add_argument("--journal", type=Path, help="file that keeps finished networks: a stopped run goes on from it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    known = {}
    if arguments.journal and arguments.journal.exists():
        known = json.loads(arguments.journal.read_text(encoding="utf-8"))
    figures, details = [], {}
    for network in NETWORKS:
        if network in known:
            timings = {name: Timing(**seconds) for name, seconds in known[network].items()}
        else:
            timings = measure(network, rounds=arguments.rounds, steps=arguments.steps)
            known[network] = {name: vars(timing) for name, timing in timings.items()}
            if arguments.journal:
                arguments.journal.write_text(json.dumps(known), encoding="utf-8")
        details[network] = {
            name: 1e3 * timing.summary(clock="cpu") / arguments.steps for name, timing in timings.items()
        }
        for base in BASES:
            value, spread = ratio(timings, f"{base} reconstructed", base)
            print(f"{network:12} {base:6} {value:.3f} x  {spread}", flush=True)
            figures.append(Figure(f"step ratio, {network}, {base}", value, "x", spread))
            if base == HEADLINE:
                figures.append(Figure(f"step ratio, {network}", value, "x", spread))
    settings = {"steps a block": arguments.steps, "rounds": arguments.rounds, "clock": "CPU seconds", "tasks": NETWORKS}
    write_results(
        "step_time_tasks",
        figures,
        command=command_line().split(" --journal")[0],
        threads=1,
        details={"settings": settings, "milliseconds a step": details},
    )


if __name__ == "__main__":
    main()
