"""The modes of `reconstruct` and the exact natural gradient on three short tasks: losses and CPU seconds a step.

Each contender gets the same learning rates, from far below to far above the plain optimizer's best, one seed, the same
initial weights and batches, SGD with momentum 0.9 (none for the released rule and the exact step) and a learning rate
that falls to 0. A contender's figure is its lowest final training loss over the learning rates; the details give all of
them, so that one sees where each is stable. No test image is read. Run: python -m benchmarks.modes --data FOLDER
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from benchmarks.common import Figure, command_line, data_folder, write_results
from fisherlayers import ExactNaturalGradient, reconstruct
from fisherlayers.data.fashion_mnist import load_fashion_mnist
from fisherlayers.data.mnist import load_mnist
from fisherlayers.natural_gradient import COMPAT

IMAGES, JUDGED = 20_000, 2_000


@dataclass(frozen=True)
class Task:
    """A network, its data and the contenders' learning rates.

    Attributes:
        title: names it in the figures.
        widths: of the fully connected layers.
        activation: between them; none around the narrowest layer of an autoencoder.
        fashion: Fashion-MNIST instead of MNIST.
        autoencoder: the images are the targets.
        batch: size.
        steps: optimizer steps.
        rates: learning rates of every contender.
    """

    title: str
    widths: tuple[int, ...]
    activation: type[nn.Module]
    fashion: bool
    autoencoder: bool
    batch: int
    steps: int
    rates: tuple[float, ...]

    def network(self) -> nn.Sequential:
        """Return the network with its initial weights."""
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for before, after in pairwise(self.widths):
            parts.append(nn.Linear(before, after))
            if not (self.autoencoder and after == min(self.widths)):
                parts.append(self.activation())
        return nn.Sequential(*parts[:-1])

    def loss(self, outputs: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch; a pixel's cross-entropies are summed over the image."""
        if self.autoencoder:
            return functional.binary_cross_entropy_with_logits(outputs, images, reduction="sum") / len(images)
        return functional.cross_entropy(outputs, labels)


TASKS = {
    "paper": Task("MNIST 784-80-80-80-10, batch 50", (784, 80, 80, 80, 10), nn.ReLU, False, False, 50, 400,
                  (0.01, 0.03, 0.1, 0.3, 1.0)),
    "mlp": Task("Fashion-MNIST 784-512-512-512-10, batch 500", (784, 512, 512, 512, 10), nn.ReLU, True, False, 500, 120,
                (0.03, 0.1, 0.3, 1.0)),
    "autoencoder": Task("MNIST autoencoder 784-1000-500-250-30, batch 500",
                        (784, 1000, 500, 250, 30, 250, 500, 1000, 784), nn.Tanh, False, True, 500, 80,
                        (3e-4, 1e-3, 3e-3)),
}  # fmt: skip

Prepare = Callable[[nn.Module, float], Optimizer]


def reconstructed(**options: Any) -> Prepare:
    """Return SGD with momentum on the model reconstructed with these options."""
    return lambda model, rate: SGD(reconstruct(model, **options).parameters(), lr=rate, momentum=0.9)


CONTENDERS: Mapping[str, Prepare] = {
    "plain": lambda model, rate: SGD(model.parameters(), lr=rate, momentum=0.9),
    "input": reconstructed(),
    "input, trust region": reconstructed(trust_region=0.03),
    "kronecker": reconstructed(mode="kronecker"),
    "kronecker, no trust region": reconstructed(mode="kronecker", trust_region=None),
}
# One matrix a unit for 784 inputs takes a minute a refresh: the first layer gets one for all its units.
PAPER: Mapping[str, Prepare] = {
    **CONTENDERS,
    "unit": reconstructed(mode="unit", activations={"0": "linear"}),
    "unit, released rule": lambda model, rate: SGD(reconstruct(model, **COMPAT).parameters(), lr=rate),
    "exact, damping 10": lambda model, rate: ExactNaturalGradient(model, lr=rate, damping=10.0),
    "exact, damping 100": lambda model, rate: ExactNaturalGradient(model, lr=rate, damping=100.0),
}


def run(task: Task, prepare: Prepare, rate: float, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Train once; a run that leaves the finite numbers has no loss."""
    model = task.network()
    optimizer = prepare(model, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / task.steps)
    generator = torch.Generator().manual_seed(1)
    seconds = 0.0
    for step in range(task.steps):
        start = step * task.batch % IMAGES
        if start == 0:
            order = torch.randperm(IMAGES, generator=generator)
        batch = order[start : start + task.batch]
        begin = time.process_time()
        optimizer.zero_grad()
        loss = task.loss(model(images[batch]), images[batch], labels[batch])
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - begin
        schedule.step()
        if not math.isfinite(loss.item()):
            return {"train loss": None, "validation loss": None, "milliseconds a step, CPU": 1e3 * seconds / (step + 1)}
    model.eval()
    with torch.no_grad():
        losses = [
            float(task.loss(model(images[part]), images[part], labels[part]))
            for part in (slice(0, JUDGED), slice(IMAGES, IMAGES + JUDGED))
        ]
    finite = [value if math.isfinite(value) else None for value in losses]
    return {
        "train loss": finite[0],
        "validation loss": finite[1],
        "milliseconds a step, CPU": 1e3 * seconds / task.steps,
    }


def main() -> None:
    """Measure a task and write benchmarks/results/modes_TASK.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data sets (default: $FISHERLAYERS_DATA)")
    parser.add_argument("--task", choices=sorted(TASKS), required=True, help="which task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[arguments.task]
    folder = data_folder(arguments.data)
    data = (load_fashion_mnist if task.fashion else load_mnist)(folder / ("fashion-mnist" if task.fashion else "mnist"))
    images = torch.tensor(data.train_images[: IMAGES + JUDGED].reshape(-1, 784) / 255, dtype=torch.float32)
    labels = torch.tensor(data.train_labels[: IMAGES + JUDGED])
    figures, details = [], {}
    plain_time = None
    for name, prepare in (PAPER if arguments.task == "paper" else CONTENDERS).items():
        runs = {}
        for rate in task.rates:
            runs[f"{rate:g}"] = run(task, prepare, rate, images, labels)
            print(f"{name:28} {rate:7g} {runs[f'{rate:g}']}", flush=True)
        details[name] = runs
        losses = [result["train loss"] for result in runs.values() if result["train loss"] is not None]
        steps = sorted(result["milliseconds a step, CPU"] or 0.0 for result in runs.values())
        middle = steps[len(steps) // 2]
        plain_time = middle if plain_time is None else plain_time
        if losses:
            figures.append(Figure(f"lowest train loss, {name}", min(losses), "nats", seeds=(0,)))
        figures.append(Figure(f"step over plain's, {name}", middle / plain_time, "x"))
    settings = {
        "task": task.title,
        "steps": task.steps,
        "learning rates": list(task.rates),
        "images": IMAGES,
        "judged on": JUDGED,
    }
    write_results(
        f"modes_{arguments.task}",
        figures,
        command=command_line(),
        threads=1,
        details={"settings": settings, "runs": details},
    )


if __name__ == "__main__":
    main()
