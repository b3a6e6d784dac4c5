"""The methods of a race: a base optimizer on the plain model, or on the same model reconstructed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from fisherlayers.natural_gradient import reconstruct
from fisherlayers.race import peers
from fisherlayers.race.muon import Muon
from fisherlayers.race.tasks import Task

MakeOptimizers = Callable[[nn.Module, float], list[Optimizer]]


@dataclass(frozen=True)
class Base:
    """A base optimizer.

    Attributes:
        make: (model, learning rate) -> the optimizers that together step every parameter.
        learning_rate: a usual one.
        learning_rates: lowest and highest learning rate of the search.
        settings: what is fixed, in words.
        builds_on: the base optimizer that a peer preconditions; empty for base optimizers themselves.
        scale_free: whether a loss multiplied by a number is stepped alike; where not, learning rates are divided by it.
    """

    make: MakeOptimizers
    learning_rate: float
    learning_rates: tuple[float, float]
    settings: str
    builds_on: str = ""
    scale_free: bool = True

    def usual_rate(self, loss_scale: float = 1.0) -> float:
        """Return the usual learning rate for a loss that sums `loss_scale` terms an example."""
        return self.learning_rate if self.scale_free else self.learning_rate / loss_scale

    def search_range(self, loss_scale: float = 1.0) -> tuple[float, float]:
        """Return the range of the search for a loss that sums `loss_scale` terms an example."""
        lowest, highest = self.learning_rates
        return (lowest, highest) if self.scale_free else (lowest / loss_scale, highest / loss_scale)


@dataclass(frozen=True)
class Method:
    """A contender.

    Attributes:
        name: what tables and figures call it; distinct within a race.
        base: the name of its base optimizer, a key of `CONTENDERS`.
        optimizer: that base optimizer.
        reconstructed: whether the model is reconstructed before the optimizer gets its parameters.
        options: arguments of `reconstruct` that differ from the library's defaults.
    """

    name: str
    base: str
    optimizer: Base
    reconstructed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, model: nn.Module, learning_rate: float) -> tuple[nn.Module, list[Optimizer]]:
        """Return the model to train and the optimizers that step it.

        Args:
            model: with its initial weights.
            learning_rate: of every optimizer.

        Returns:
            The model, reconstructed if the method says so, and its optimizers.
        """
        if self.reconstructed:
            model = reconstruct(model, **self.options)
        return model, self.optimizer.make(model, learning_rate)


def _sgd(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    return [SGD(model.parameters(), lr=learning_rate, momentum=0.9)]


def _adam(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    return [Adam(model.parameters(), lr=learning_rate)]


def _muon(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    # Embeddings are tables of vectors: their authors give them to AdamW.
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2 and id(parameter) not in tables]
    rest = [parameter for parameter in parameters if parameter.ndim < 2 or id(parameter) in tables]
    optimizers: list[Optimizer] = [Muon(matrices, lr=learning_rate)] if matrices else []
    return optimizers + ([AdamW(rest, lr=learning_rate, weight_decay=0.0)] if rest else [])


BASES: dict[str, Base] = {
    "SGD": Base(_sgd, 0.1, (3e-3, 3.0), "momentum 0.9", scale_free=False),
    "Adam": Base(_adam, 1e-3, (1e-4, 3e-2), "betas 0.9, 0.999"),
    "Muon": Base(
        _muon,
        3e-3,
        (1e-3, 3e-1),
        "momentum 0.95, float32 Newton-Schulz, step size on AdamW's scale; AdamW for vectors and embeddings; "
        "no weight decay",
    ),
}

PEERS: dict[str, Base] = {
    "AdamW": Base(peers.adamw, 1e-3, (2e-4, 2e-2), "betas 0.9, 0.999; weight decay 0.01"),
    "SOAP": Base(peers.soap, 3e-3, (3e-4, 3e-2), "pytorch_optimizer: betas 0.95, a new basis every 10 steps", "AdamW"),
    "Shampoo": Base(
        peers.shampoo,
        0.1,
        (3e-3, 3.0),
        "pytorch_optimizer's ScalableShampoo: SGD grafting, from step 5 on roots every 10 steps",
        "SGD",
        scale_free=False,
    ),
    "PSGD-Kron": Base(
        peers.kron, 1e-2, (1e-3, 3e-1), "pytorch_optimizer's Kron: momentum 0.9, its own schedule", "SGD"
    ),
    "K-FAC": Base(
        peers.kfac,
        0.1,
        (3e-3, 1.0),
        "SINGD: dense factors every 10 steps, momentum 0.9, damping 0.001",
        "SGD",
        scale_free=False,
    ),
}

CONTENDERS: dict[str, Base] = BASES | PEERS


def make_method(base: str, *, reconstructed: bool = False, **options: Any) -> Method:
    """Return the method with the given base optimizer.

    Args:
        base: a key of `CONTENDERS`.
        reconstructed: train the reconstructed model.
        **options: arguments for `reconstruct` other than its defaults; only with `reconstructed`.

    Returns:
        The method, named after the base, e.g. "Adam" or "Adam reconstructed".

    Raises:
        ValueError: an unknown base, or options for a plain method.
    """
    if base not in CONTENDERS:
        raise ValueError(f"base must be one of {sorted(CONTENDERS)}; got {base!r}")
    if options and not reconstructed:
        raise ValueError(f"options are arguments of reconstruct: pass reconstructed=True or drop {sorted(options)}")
    name = f"{base} reconstructed" if reconstructed else base
    return Method(name, base, CONTENDERS[base], reconstructed, options)


def rehearse(task: Task, methods: Sequence[Method], learning_rates: Mapping[str, float]) -> None:
    """Build every method once, so that one that cannot be built is found before others have run.

    Args:
        task: whose model is built; torch's global generator is left as it was.
        methods: the contenders.
        learning_rates: method name -> learning rate.
    """
    check_models(task)
    with torch.random.fork_rng(devices=[]):
        for method in methods:
            method.prepare(task.make_model(), learning_rates[method.name])


def check_contenders(task: Task, methods: Sequence[Method]) -> None:
    """Refuse what is no task or no method, such as their names.

    Args:
        task: what is trained.
        methods: the contenders.

    Raises:
        ValueError: something else.
    """
    if not isinstance(task, Task):
        raise ValueError(f"task must be a Task, such as load_task('digits'); got {task!r}")
    for method in methods:
        if not isinstance(method, Method):
            raise ValueError(f"a method must be a Method, such as make_method('SGD'); got {method!r}")


def check_models(task: Task) -> None:
    """Refuse a task whose model is not new at every call: a run would begin where the one before ended.

    Args:
        task: whose model is built twice; torch's global generator is left as it was.

    Raises:
        ValueError: what it builds is no module, or shares a trained parameter with the one before.
    """
    with torch.random.fork_rng(devices=[]):
        first, second = task.make_model(), task.make_model()
    if not isinstance(first, nn.Module):
        raise ValueError(f"make_model of {task.title!r} must return a torch.nn.Module; got {type(first).__name__}")
    trained = {id(parameter) for parameter in first.parameters() if parameter.requires_grad}
    if any(id(parameter) in trained for parameter in second.parameters()):
        raise ValueError(
            f"make_model of {task.title!r} must build a new model at every call; got the same parameters twice: "
            "return copy.deepcopy of a model that is kept"
        )
