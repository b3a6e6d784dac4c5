"""The exact natural gradient of a small network: the full Fisher information over all parameters.

A baseline and a reference for tests. With the derivatives J_n (outputs x P) of the outputs by all P parameters and the
information Λ_n of the output distribution,

    F = 1/N Σ_n J_nᵀ Λ_n J_n,     Λ = diag(p) - p pᵀ (softmax)  or  I (Gaussian of unit variance),

which is E[s sᵀ] for the score s of a label drawn from the model (Amari 1998; Martens 2020, section 5).
Time grows as P³ and memory as P²: a few thousand parameters.
"""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.optim import Optimizer
from typing_extensions import override

__all__ = ["ExactNaturalGradient", "exact_information"]

Output = Literal["softmax", "gaussian"]


def exact_information(model: nn.Module, inputs: Tensor, *, output: Output = "softmax") -> Tensor:
    """Return the Fisher information of all trained parameters, averaged over a batch.

    Args:
        model: Maps a batch to (N, outputs); rows must not influence each other (no batch normalisation).
        inputs: (N, ...).
        output: ``"softmax"`` for logits of a categorical distribution, ``"gaussian"`` for means of unit variance.

    Returns:
        (P, P), in the order of ``model.parameters()``.

    Raises:
        ValueError: If ``output`` is unknown, the batch is empty or the model returns anything but (N, outputs).
    """
    if output not in {"softmax", "gaussian"}:
        raise ValueError(f"output must be 'softmax' or 'gaussian', got {output!r}")
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {tuple(inputs.shape)}")
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        result: Tensor = functional_call(model, parameters, (sample.unsqueeze(0),)).squeeze(0)
        return result

    with torch.no_grad():
        logits: Tensor = model(inputs)
    if logits.ndim != 2 or logits.shape[0] != inputs.shape[0]:
        raise ValueError(f"model must return (N, outputs) for {inputs.shape[0]} inputs, got {tuple(logits.shape)}")
    jacobians = vmap(jacrev(outputs), in_dims=(None, 0))(trained, inputs)
    jacobian = torch.cat([jacobians[name].flatten(2) for name in trained], dim=2)  # (N, outputs, P)
    if output == "softmax":
        # Rows sqrt(p_c) (J_c - Σ_k p_k J_k) have the Gram matrix Jᵀ (diag(p) - p pᵀ) J.
        p = logits.softmax(1).unsqueeze(-1)
        jacobian = p.sqrt() * (jacobian - (p * jacobian).sum(1, keepdim=True))
    rows = jacobian.flatten(0, 1)
    return rows.mT @ rows / inputs.shape[0]


class ExactNaturalGradient(Optimizer):
    """Descent along (F + λ I)^(-1) times the gradient, with the full F of a small network.

    Call ``observe(inputs)`` with the batch, then ``step()`` after ``backward()`` as with any optimizer.

    Args:
        model: The network; parameters that do not require a gradient are left alone.
        lr: Learning rate, more than 0.
        damping: λ relative to the mean eigenvalue of F, more than 0.
        output: Distribution that the model's outputs parametrize, ``"softmax"`` or ``"gaussian"``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, model: nn.Module, *, lr: float = 1.0, damping: float = 1e-3, output: Output = "softmax") -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if not damping > 0:
            raise ValueError(f"damping must be positive (it is relative to the mean eigenvalue), got {damping}")
        if output not in {"softmax", "gaussian"}:
            raise ValueError(f"output must be 'softmax' or 'gaussian', got {output!r}")
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": lr, "damping": damping})
        self._model = model
        self._output: Output = output
        self._information: Tensor | None = None

    def observe(self, inputs: Tensor) -> None:
        """Take the information at a batch and the current parameters.

        Args:
            inputs: (N, ...), as the model takes them.
        """
        self._information = exact_information(self._model, inputs, output=self._output)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one natural-gradient step.

        Args:
            closure: Computes gradients and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: If ``observe`` was never called.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._information is None:
            raise RuntimeError("there is no Fisher information yet: call observe(inputs) before step()")
        (group,) = self.param_groups
        parameters = group["params"]
        gradient = torch.cat([
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters
        ])
        size = gradient.shape[0]
        ridge = group["damping"] * self._information.diagonal().sum() / size
        damped = self._information + ridge * torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        direction = torch.cholesky_solve(gradient.unsqueeze(1), torch.linalg.cholesky(damped)).squeeze(1)
        steps = torch.split(direction, [p.numel() for p in parameters])
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.sub_(step.view_as(parameter), alpha=group["lr"])
        return loss
