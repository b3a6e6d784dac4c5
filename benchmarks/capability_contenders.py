"""Who is asked what it can do: plain SGD as the control, ours on three optimizers, and the peers that are installed.

Every contender is started on a model and then runs an ordinary training loop; what differs between them is in `start`.
Peers are imported when they are started; `available` lists those that can be.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fisherlayers import AveragedPlainModel, plain_state_dict, reconstruct

Batch = tuple[Tensor, Tensor]
Start = Callable[[nn.Module, "list[Tensor] | None", int], "Run"]


@dataclass
class Run:
    """A model in training.

    Attributes:
        model: what is called with a batch; a check may wrap it.
        optimizers: stepped one after the other.
        preconditioner: what some peers step before the optimizer.
        autocast: in which the forward passes run, if any.
        scaler: of mixed precision, if any.
        owner: the model as it was started, under every wrapper.
    """

    model: nn.Module
    optimizers: Sequence[Any]
    preconditioner: Any = None
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    owner: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.owner = self.model

    def backward(self, *batches: Batch, factor: float = 1.0) -> Tensor:
        """Accumulate the gradients of the mean loss over equal batches, times a factor; return that loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total = torch.zeros(())
        for inputs, targets in batches:
            with torch.autocast("cpu", dtype=self.autocast, enabled=self.autocast is not None):
                outputs = self.model(inputs)
            loss = functional.cross_entropy(outputs.float(), targets) / len(batches)
            total += loss.detach()
            (loss * factor * self.scale()).backward()
        return total

    def scale(self) -> float:
        """Return the factor that mixed precision puts on the loss."""
        return 1.0 if self.scaler is None else float(self.scaler.scale(torch.ones(())))

    def step(self) -> None:
        """Use the gradients."""
        if self.preconditioner is not None:
            self.preconditioner.step()
        for optimizer in self.optimizers:
            optimizer.step()

    def update(self, *batches: Batch) -> Tensor:
        """Take one step on all batches together; return the loss before it."""
        loss = self.backward(*batches)
        self.step()
        return loss

    def scaled_update(self, batch: Batch, scaler: torch.amp.GradScaler, factor: float = 1.0) -> None:
        """Take one step in the way of mixed precision; `factor` spoils the loss."""
        self.scaler = scaler
        self.backward(batch, factor=factor)
        if self.preconditioner is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
            self.preconditioner.step()
        for optimizer in self.optimizers:
            scaler.step(optimizer)
        scaler.update()

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights that the plain network would have."""
        trained = {name.replace(".original0", "").replace(".original", "") for name, _ in self.owner.named_parameters()}
        trained = {name.replace("parametrizations.", "") for name in trained}
        return {name: value for name, value in plain_state_dict(self.owner).items() if name in trained}

    def parts(self) -> list[Any]:
        """Return everything that has a ``state_dict``."""
        parts = [self.owner, *self.optimizers, self.preconditioner]
        return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Contender:
    """One column of the table.

    Attributes:
        name: as the table shows it.
        package: what has to be importable.
        distribution: what it is installed as.
        start: (model, parameters or None for all that are trained, batches that are accumulated for a step) -> run.
        steps_alone: whether an optimizer's step is all there is, without another object to call.
        average: what averages a model over its training.
    """

    name: str
    package: str
    distribution: str
    start: Start
    steps_alone: bool = True
    average: type[AveragedModel] = AveragedModel

    def available(self) -> bool:
        """Say whether its package is installed."""
        return importlib.util.find_spec(self.package) is not None


def trained(model: nn.Module, parameters: list[Tensor] | None) -> list[Tensor]:
    """Return the parameters to optimize."""
    return [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters


def _muon_and_adamw(parameters: list[Tensor]) -> list[Optimizer]:
    # torch.optim.Muon refuses anything but matrices; the rest goes to AdamW, as its documentation says.
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    optimizers: list[Optimizer] = [torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0)] if matrices else []
    return [*optimizers, torch.optim.AdamW(others, lr=0.003, weight_decay=0.0)] if others else optimizers


def _sgd(parameters: list[Tensor]) -> list[Optimizer]:
    return [torch.optim.SGD(parameters, lr=0.05, momentum=0.9)]


def _adamw(parameters: list[Tensor]) -> list[Optimizer]:
    return [torch.optim.AdamW(parameters, lr=0.003, weight_decay=0.0)]


def _plain(build: Callable[[list[Tensor]], list[Optimizer]]) -> Start:
    return lambda model, parameters, _: Run(model, build(trained(model, parameters)))


def _ours(build: Callable[[list[Tensor]], list[Optimizer]]) -> Start:
    def start(model: nn.Module, parameters: list[Tensor] | None, _: int) -> Run:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="left alone")
            reconstruct(model, statistics_every=1, refresh_every=2)  # soon enough to matter within a few steps
        return Run(model, build(trained(model, parameters)))

    return start


def _kfac(model: nn.Module, parameters: list[Tensor] | None, batches: int) -> Run:
    from kfac.preconditioner import KFACPreconditioner

    run = Run(model, _sgd(trained(model, parameters)))
    run.preconditioner = KFACPreconditioner(
        model, lr=0.05, accumulation_steps=batches, grad_scaler=run.scale, loglevel=logging.NOTSET
    )
    return run


def _singd(model: nn.Module, parameters: list[Tensor] | None, _: int) -> Run:
    from singd.optim.optimizer import SINGD

    return Run(model, [SINGD(model, params=parameters, lr=0.003, T=1, damping=1e-2)])


def _sirf_shampoo(model: nn.Module, parameters: list[Tensor] | None, _: int) -> Run:
    from sirfshampoo import SIRFShampoo

    return Run(model, [SIRFShampoo(model, params=parameters, lr=0.003)])


def _shampoo(parameters: list[Tensor]) -> list[Optimizer]:
    from distributed_shampoo import AdamPreconditionerConfig, DistributedShampoo

    return [DistributedShampoo(parameters, lr=0.003, grafting_config=AdamPreconditionerConfig())]


def _soap(parameters: list[Tensor]) -> list[Optimizer]:
    from pytorch_optimizer import SOAP

    return [SOAP(parameters, lr=0.003, weight_decay=0.0)]


def _psgd(parameters: list[Tensor]) -> list[Optimizer]:
    import heavyball

    heavyball.utils.compile_mode = None
    return [heavyball.PSGDKron(parameters, lr=0.003, weight_decay=0.0, precond_init_scale=1.0)]


CONTROL = Contender("SGD (control)", "torch", "torch", _plain(_sgd))
OURS = [
    Contender("ours, SGD", "fisherlayers", "fisherlayers", _ours(_sgd), average=AveragedPlainModel),
    Contender("ours, AdamW", "fisherlayers", "fisherlayers", _ours(_adamw), average=AveragedPlainModel),
    Contender("ours, Muon", "fisherlayers", "fisherlayers", _ours(_muon_and_adamw), average=AveragedPlainModel),
]
PEERS = [
    Contender("kfac-pytorch", "kfac", "kfac-pytorch", _kfac, steps_alone=False),
    Contender("SINGD", "singd", "singd", _singd),
    Contender("SIRFShampoo", "sirfshampoo", "sirfshampoo", _sirf_shampoo),
    Contender("Distributed Shampoo", "distributed_shampoo", "torch-shampoo", _plain(_shampoo)),
    Contender("SOAP (pytorch_optimizer)", "pytorch_optimizer", "pytorch_optimizer", _plain(_soap)),
    Contender("PSGD-Kron (HeavyBall)", "heavyball", "heavyball", _plain(_psgd)),
    Contender("torch.optim.Muon", "torch", "torch", _plain(_muon_and_adamw)),
]
CONTENDERS = [CONTROL, *OURS, *PEERS]
