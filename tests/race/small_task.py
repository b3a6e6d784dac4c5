"""A regression small enough that a run takes milliseconds."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from fisherlayers.race import Examples, Task


def small_task(**changes):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 5, generator=generator)
    targets = inputs @ torch.randn(5, 2, generator=generator)
    task = Task(
        name="small",
        title="a small regression",
        train=Examples(inputs[:40], targets[:40]),
        validation=Examples(inputs[40:], targets[40:]),
        make_model=lambda: nn.Linear(5, 2),
        loss=functional.mse_loss,
        metric=lambda outputs, targets: -(outputs - targets).abs().mean(),
        metric_name="negative error",
        batch_size=8,
        steps=20,
    )
    return replace(task, **changes)
