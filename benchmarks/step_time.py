"""What a reconstructed step costs, in plain steps: forward, backward, optimizer, statistics and refreshes, amortised.

Plain and reconstructed networks take turns in blocks of one refresh period, after the warm-up in which refreshes are
more frequent. Run: python -m benchmarks.step_time
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.common import Figure, command_line, interleaved, ratio, write_results
from fisherlayers import reconstruct

WIDTHS = (784, 512, 512, 512, 10)
BATCH = 512
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}
# The parts of the cost: nothing but the parametrization, and other ranks, with the default periods.
VARIANTS: Mapping[str, Mapping[str, Any] | None] = {
    "plain": None,
    "reconstructed": {},
    "reconstructed, root fixed": {"refresh_every": 10**9, "statistics_every": 10**9},
    "reconstructed, rank 15": {"rank": 15},
    "reconstructed, dense": {"rank": None},
}


def network() -> nn.Sequential:
    """Return the MLP 784-512-512-512-10 with ReLU."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trainer(optimizer: str, options: Mapping[str, Any] | None, steps: int) -> Callable[[], None]:
    """Return a function that takes ``steps`` training steps of a network of its own; ``options`` None is plain."""
    model = network()
    if options is not None:
        reconstruct(model, **options)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    inputs = torch.rand(BATCH, WIDTHS[0]).pow(4)
    targets = torch.arange(BATCH) % WIDTHS[-1]

    def run() -> None:
        for _ in range(steps):
            stepper.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            stepper.step()

    return run


def main() -> None:
    """Measure and write benchmarks/results/step_time.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed blocks of each contender (default: 9)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a block, the refresh period (default: 50)")
    arguments = parser.parse_args()

    contenders = {
        f"{optimizer}, {name}": trainer(optimizer, options, arguments.steps)
        for optimizer in OPTIMIZERS
        for name, options in VARIANTS.items()
        if optimizer == "SGD" or name in {"plain", "reconstructed"}
    }
    timings = interleaved(contenders, rounds=arguments.rounds, warmup=3, threads=1)
    shape = "-".join(map(str, WIDTHS))
    figures, details = [], {}
    for name, timing in timings.items():
        optimizer, variant = name.split(", ", 1)
        plain = f"{optimizer}, plain"
        details[name] = {
            "milliseconds a step, CPU": 1e3 * timing.summary(clock="cpu") / arguments.steps,
            "milliseconds a step, wall": 1e3 * timing.summary(clock="wall") / arguments.steps,
            "over plain, CPU": ratio(timings, name, plain, clock="cpu"),
            "over plain, wall": ratio(timings, name, plain, clock="wall"),
            "over plain, fastest blocks, CPU": ratio(timings, name, plain, statistic="min", clock="cpu")[0],
        }
        print(f"{name:35} {details[name]['over plain, CPU'][0]:.3f} x plain (CPU)")
        if variant != "plain":
            title = f"step ratio, {optimizer}, MLP {shape}" + variant.removeprefix("reconstructed")
            value, spread = ratio(timings, name, plain)
            figures.append(Figure(title, value, "x", spread))
    settings = {"batch": BATCH, "steps a block": arguments.steps, "rounds": arguments.rounds, "clock": "CPU seconds"}
    write_results(
        "step_time", figures, command=command_line(), threads=1, details={"settings": settings, "timings": details}
    )


if __name__ == "__main__":
    main()
