"""Rows times a root and its inverse, in as few passes over the rows as there can be.

``LowRankRoot`` makes five passes over a weight and five over its gradient for scale x rows + (rows U E) Uᵀ. Here the
scale rides along with a matrix product (BLAS's beta), forward and backward, and so does rows · shift, by which the
bias depends on the weight. That decides the step time on a CPU.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from fisherlayers.layer import LowRankRoot, Root

__all__ = ["fusible", "multiply", "multiply_and_shift", "solve"]


def multiply(root: Root, rows: Tensor) -> Tensor:
    """Return ``root.multiply(rows)``, differentiable by the rows.

    Args:
        root: F^(-1/2).
        rows: (..., N, D).

    Returns:
        (..., N, D).
    """
    if fusible(root, rows):
        return _product(rows, root.basis, root.basis * (root.gains - root.scale), root.scale.item())
    return root.multiply(rows)


def multiply_and_shift(root: LowRankRoot, rows: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``root.multiply(rows)`` and ``rows @ shift``, differentiable by the rows.

    Args:
        root: F^(-1/2), of low rank and ``fusible``.
        rows: (N, D).
        shift: (D,).

    Returns:
        (N, D) and (N,).
    """
    weighted = torch.cat([root.basis * (root.gains - root.scale), shift.unsqueeze(1)], 1)
    basis = torch.cat([root.basis, shift.unsqueeze(1)], 1)
    both: tuple[Tensor, Tensor] = _ShiftedProduct.apply(  # type: ignore[no-untyped-call]
        rows, basis, weighted, root.scale.item()
    )
    return both


def solve(root: Root, rows: Tensor) -> Tensor:
    """Return ``root.solve(rows)``, differentiable by the rows.

    Args:
        root: F^(-1/2).
        rows: (..., N, D).

    Returns:
        (..., N, D).
    """
    if fusible(root, rows):
        scale = 1 / root.scale
        return _product(rows, root.basis, root.basis * (1 / root.gains - scale), scale.item())
    return root.solve(rows)


def fusible(root: Root, rows: Tensor) -> TypeGuard[LowRankRoot]:
    """Return whether the product has a fused form here.

    On an accelerator reading the scale would wait for the device; transforms and compilers do their own fusing.

    Args:
        root: F^(-1/2).
        rows: (..., N, D).

    Returns:
        True for low-rank roots and plain matrices on the CPU.
    """
    return (
        isinstance(root, LowRankRoot)
        and rows.ndim == 2
        and rows.device.type == "cpu"
        and rows.dtype == root.scale.dtype
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _product(rows: Tensor, basis: Tensor, weighted: Tensor, scale: float) -> Tensor:
    result: Tensor = _LowRankProduct.apply(rows, basis, weighted, scale)  # type: ignore[no-untyped-call]
    return result


class _LowRankProduct(torch.autograd.Function):
    """rows (scale I + weighted basisᵀ), a symmetric matrix: the derivative is the same map."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, basis: Tensor, weighted: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(basis, weighted)
        ctx.scale = scale
        return torch.addmm(rows, rows @ weighted, basis.mT, beta=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        basis, weighted = ctx.saved_tensors
        return _product(gradient, basis, weighted, ctx.scale), None, None, None


class _ShiftedProduct(torch.autograd.Function):
    """The same, with a last column in basis and weighted, the shift: rows · shift is a second result."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, basis: Tensor, weighted: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(basis, weighted)
        ctx.scale = scale
        products = rows @ weighted
        plain = torch.addmm(rows, products[:, :-1], basis[:, :-1].mT, beta=scale)
        return plain, products[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, offset: Tensor) -> tuple[Tensor, None, None, None]:
        basis, weighted = ctx.saved_tensors
        products = torch.cat([gradient @ weighted[:, :-1], offset.unsqueeze(1)], 1)
        return torch.addmm(gradient, products, basis.mT, beta=ctx.scale), None, None, None
