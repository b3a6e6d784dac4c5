"""Which part of the root's rule keeps a reconstructed network stable at the plain network's own learning rate.

The plain network's learning rate is the best of a few by the training loss after the given steps. At that rate the
network is reconstructed by the rule as it is and with parts of it taken away; the figure is the training loss after the
same steps over the plain one. Run: python -m benchmarks.scale_rules --data FOLDER
"""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.common import DATA_VARIABLE, Figure, command_line, data_folder, write_results
from fisherlayers.natural_gradient import parametrization, roots
from fisherlayers.race.methods import make_method
from fisherlayers.race.tasks import Task, load_task

TASKS = ("fashion-mnist", "autoencoder", "shakespeare")
RATES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "SGD": {
        "fashion-mnist": (0.1, 0.2, 0.4),
        "autoencoder": (1e-3, 2e-3, 4e-3),
        "shakespeare": (0.05, 0.1, 0.2),
    },
    "AdamW": dict.fromkeys(TASKS, (1e-3, 2e-3, 4e-3)),
    "Muon": dict.fromkeys(TASKS, (5e-3, 1e-2, 2e-2)),
}


def _at_the_average(*args: Any, newest: torch.Tensor | None = None, **options: Any) -> Any:
    return roots.input_coordinates(*args, **options)


def _doubling(self: parametrization.FisherWeight, last: int, every: int) -> bool:
    return last < 0 or self.steps - last >= min(every, max(last, 1))


AVERAGE = (parametrization, "input_coordinates", _at_the_average)
DOUBLING = (parametrization.FisherWeight, "_due", _doubling)
POWER = (roots, "_MOST_POWER", 4.0)
RULES: Mapping[str, tuple[Sequence[tuple[Any, str, Any]], Mapping[str, Any]]] = {
    "as it is": ((), {}),
    "centred at the average": ((AVERAGE,), {}),
    "roots at 0, 1, 2, 4, 8, ...": ((DOUBLING,), {}),
    "decay .95": ((), {"decay": 0.95}),
    "none of these, 4 tr C": ((AVERAGE, DOUBLING, POWER), {"decay": 0.95}),
}


@contextmanager
def _patched(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def trained(task: Task, base: str, rate: float, steps: int, seed: int, options: Mapping[str, Any] | None) -> float:
    """Return the training loss after ``steps`` steps, the rate falling linearly to 0; ``options`` None is plain.

    Infinite as soon as a batch's loss is not finite.
    """
    torch.manual_seed(seed)
    method = make_method(base, reconstructed=options is not None, **(options or {}))
    model, optimizers = method.prepare(task.make_model(), rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for step, (inputs, targets) in zip(range(steps), task.batches(seed), strict=False):
        for group in groups:
            group["lr"] = rate * (1 - step / steps)
        model.zero_grad()
        loss = task.loss(model(inputs), targets)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    model.eval()
    inputs, targets = (tensor[:2000] for tensor in task.train)
    with torch.no_grad():
        losses = [task.loss(model(x), y).item() for x, y in zip(inputs.split(500), targets.split(500), strict=True)]
    return sum(losses) / len(losses)


def main() -> None:
    """Measure and write benchmarks/results/scale_rules.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=f"folder of the data sets; else the environment variable {DATA_VARIABLE}")
    parser.add_argument("--steps", type=int, default=60, help="of every run (default: 60)")
    parser.add_argument("--seeds", type=int, default=1, help="of every run (default: 1)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="default: all")
    parser.add_argument("--bases", nargs="+", default=["SGD", "AdamW"], choices=list(RATES), help="default: SGD AdamW")
    arguments = parser.parse_args()
    os.environ[DATA_VARIABLE] = str(data_folder(arguments.data))
    torch.set_num_threads(1)
    steps, seeds = arguments.steps, range(arguments.seeds)
    figures, details = [], {}
    for name in arguments.tasks:
        task = load_task(name)
        for base in arguments.bases:
            plain = {
                rate: [trained(task, base, rate, steps, seed, None) for seed in seeds] for rate in RATES[base][name]
            }
            rate = min(plain, key=lambda rate: max(plain[rate]))
            losses: dict[str, list[float]] = {"plain": plain[rate]}
            for rule, (changes, options) in RULES.items():
                with _patched(changes):
                    losses[rule] = [trained(task, base, rate, steps, seed, options) for seed in seeds]
                ratios = sorted(a / b for a, b in zip(losses[rule], losses["plain"], strict=True))
                middle, title = ratios[len(ratios) // 2], f"loss over plain, {name}, {base}, {rule}"
                print(f"{title:75} {middle:10.3f}", flush=True)
                if math.isfinite(ratios[-1]):
                    figures.append(Figure(title, middle, "x", (ratios[0], ratios[-1]), list(seeds)))
            details[f"{name}, {base}"] = {
                "learning rate": rate,
                "plain": {str(rate): _finite(values) for rate, values in plain.items()},
                "training loss": {rule: _finite(values) for rule, values in losses.items()},
            }
    notes = "None is a loss that is not finite; such a rule has no figure."
    details["settings"] = {"steps": steps, "schedule": "linear to 0", "notes": notes}
    write_results("scale_rules", figures, command=command_line(), threads=1, details=details)


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


if __name__ == "__main__":
    main()
