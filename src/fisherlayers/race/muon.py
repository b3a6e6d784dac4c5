"""Muon with its Newton-Schulz iteration in the gradient's own precision.

`torch.optim.Muon` (torch >= 2.9) always iterates in bfloat16, which processors without native bfloat16
emulate: there a step costs more than a hundred SGD steps. This one follows the same rule in the dtype of
the gradient, for long matrices on their Gram matrix, and takes convolution kernels as matrices (out, in * kernel).

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the step size
matched to AdamW's follows Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982.
"""

import math
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LONG = 2
_SMALLEST_NORM = 1e-7


def orthogonalize(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1 (0.7 to 1.2).

    The quintic iteration X <- a X + (b A + c A²) X, A = X Xᵀ, started at X = matrix / ||matrix||_F. A matrix more than
    twice as long as wide is multiplied by the polynomials of its Gram matrix in the end, which takes two passes over it
    instead of ten; bfloat16 and float16 are too coarse for that.

    Args:
        matrix: shape (rows, columns), floating point.
        iterations: of the quintic polynomial, at least 1.

    Returns:
        Shape (rows, columns), dtype of `matrix`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    long = x.shape[1] > _LONG * x.shape[0] and matrix.dtype in {torch.float32, torch.float64}
    found = _by_gram_matrix(x, iterations) if long else _by_itself(x, iterations)
    return found.mT if tall else found


def _by_itself(x: Tensor, iterations: int) -> Tensor:
    a, b, c = COEFFICIENTS
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram_matrix(x: Tensor, iterations: int) -> Tensor:
    # With P = a I + b A + c A², X <- P X takes A to P A P: the product of all P comes from A alone.
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    norm = gram.diagonal().sum().sqrt().clamp(min=_SMALLEST_NORM)
    gram = gram / norm.square()
    product = None
    for remaining in reversed(range(iterations)):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if remaining:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return (product / norm) @ x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: W <- W - 0.2 sqrt(max(rows, columns)) lr NS(momentum).

    The factor gives the update AdamW's usual root mean square, so that both share one learning rate.

    Args:
        params: tensors of two or more dimensions; the first is the output side.
        lr: learning rate, on AdamW's scale.
        momentum: in [0, 1); Nesterov's form is used.
        weight_decay: decoupled, at least 0.

    Raises:
        ValueError: an argument is out of range, or a parameter has fewer than two dimensions.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative; got {lr} and {weight_decay}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(
                        f"Muon takes matrices and kernels; got a parameter of shape {tuple(parameter.shape)}: "
                        "give it to AdamW"
                    )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; `closure`, if given, evaluates the loss first.

        Args:
            closure: computes gradients and returns the loss.

        Returns:
            The closure's loss, None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = orthogonalize(gradient.lerp(buffer, momentum).flatten(1))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(direction.view_as(parameter), alpha=-0.2 * lr * math.sqrt(max(direction.shape)))
