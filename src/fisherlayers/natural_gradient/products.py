"""Rows times a root and its inverse, in as few passes over the rows as there can be.

``LowRankRoot`` makes five passes over a weight and five over its gradient for scale x rows + (rows U E) Uᵀ. Here it
is one addition, forward and backward, and rows · shift, by which the bias depends on the weight, rides along with the
matrix products. A root that is a multiple of the identity, in whatever structure it is held, costs no product. That
decides the step time on a CPU.
"""

from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor

from fisherlayers.precision import full_precision
from fisherlayers.root import DenseRoot, LowRankRoot, Root

__all__ = [
    "DenseFactors",
    "Factors",
    "LowRankFactors",
    "ScaledIdentity",
    "centred_product",
    "fusible",
    "multiple_of_identity",
    "multiply",
    "multiply_and_shift",
    "shifted_factors",
    "solve",
]


def multiply(root: Root, rows: Tensor, factors: "Factors | None" = None) -> Tensor:
    """Return ``root.multiply(rows)``, differentiable by the rows.

    Args:
        root: F^(-1/2).
        rows: (..., N, D).
        factors: ``shifted_factors`` of the root, if they are at hand; the shift in them does not matter.

    Returns:
        (..., N, D).
    """
    if isinstance(factors, ScaledIdentity):
        return _scaled(rows, factors.scale)
    if isinstance(factors, LowRankFactors) and fusible(root, rows):
        return _product(rows, factors.bare, factors.weighted, factors.scale)
    if fusible(root, rows):
        return _product(rows, root.basis, root.basis * (root.gains - root.scale), root.scale.item())
    with full_precision(rows):
        return root.multiply(rows)


class LowRankFactors(NamedTuple):
    """scale I + weighted basisᵀ, a symmetric matrix; (D, r) each, with minus the shift as a further last column.

    In ``bare`` that column is zero, so that weighted bareᵀ leaves the shift out. With all r + 1 = 32 columns a product
    of a batch takes half the time that it takes with 31 of them.
    """

    basis: Tensor
    weighted: Tensor
    scale: float
    bare: Tensor


class DenseFactors(NamedTuple):
    """A symmetric matrix (D, D), and the shift (D,)."""

    matrix: Tensor
    shift: Tensor


class ScaledIdentity(NamedTuple):
    """scale I, and the shift (D,)."""

    scale: float
    shift: Tensor


Factors: TypeAlias = LowRankFactors | DenseFactors | ScaledIdentity
"""What products with a root and its shift are made of."""


def shifted_factors(root: LowRankRoot | DenseRoot, shift: Tensor) -> Factors:
    """Return what ``multiply_and_shift`` multiplies by.

    Args:
        root: F^(-1/2), without leading dimensions.
        shift: (D,).

    Returns:
        The factors of the root, those of low rank widened by the shift. A multiple of the identity is recognised on the
        CPU; on an accelerator looking would wait for the device.
    """
    scale = multiple_of_identity(root) if shift.device.type == "cpu" else None
    if scale is not None:
        return ScaledIdentity(scale, shift)
    if isinstance(root, DenseRoot):
        return DenseFactors(root.matrix, shift)
    column = -shift.unsqueeze(1)
    weighted = torch.cat([root.basis * (root.gains - root.scale), column], 1)
    bare = torch.cat([root.basis, torch.zeros_like(column)], 1)
    return LowRankFactors(torch.cat([root.basis, column], 1), weighted, root.scale.item(), bare)


def multiple_of_identity(root: Root) -> float | None:
    """Return c of a root c I, in whatever structure it is held.

    Args:
        root: F^(-1/2), on the CPU.

    Returns:
        c, or None if the root is no multiple of the identity or has leading dimensions.
    """
    if isinstance(root, LowRankRoot) and root.scale.ndim == 0 and bool((root.gains == root.scale).all()):
        return root.scale.item()
    if isinstance(root, DenseRoot) and root.matrix.ndim == 2:
        diagonal = root.matrix.diagonal()
        if bool((diagonal == diagonal[0]).all()) and torch.equal(root.matrix, torch.diag(diagonal)):
            return diagonal[0].item()
    return None


def multiply_and_shift(rows: Tensor, bias: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return ``root.multiply(rows)`` and ``bias - rows @ shift``, differentiable by rows and bias.

    Args:
        rows: (N, D), not under a transform or compiler.
        bias: (N,).
        factors: ``shifted_factors`` of the root.

    Returns:
        (N, D) and (N,).
    """
    if isinstance(factors, DenseFactors) and not torch.is_autocast_enabled(rows.device.type):
        # A node written in Python takes longer than the one addition that it saves.
        return rows @ factors.matrix, torch.addmv(bias, rows, factors.shift, alpha=-1)
    if isinstance(factors, ScaledIdentity):
        with full_precision(rows):
            return _scaled(rows, factors.scale), torch.addmv(bias, rows, factors.shift, alpha=-1)
    node: Any = _ShiftedDenseProduct if isinstance(factors, DenseFactors) else _ShiftedProduct
    with full_precision(rows):
        both: tuple[Tensor, Tensor] = node.apply(rows, bias, *factors[:3])
    return both


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return rows.view_as(rows) if scale == 1 else rows * scale


def centred_product(rows: Tensor, centre: Tensor, factors: Factors) -> Tensor:
    """Return ``root.multiply(rows - centre)``, differentiable by the rows.

    Args:
        rows: (N, D), not under a transform or compiler.
        centre: (D,).
        factors: As for ``multiply_and_shift``; the shift in them does not matter.

    Returns:
        (N, D).
    """
    if isinstance(factors, ScaledIdentity):
        return rows - centre if factors.scale == 1 else (rows - centre) * factors.scale
    if isinstance(factors, DenseFactors):
        return (rows - centre) @ factors.matrix
    result: Tensor = _CentredProduct.apply(  # type: ignore[no-untyped-call]
        rows, centre, factors.bare, factors.weighted, factors.scale
    )
    return result


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
    with full_precision(rows):
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
    with full_precision(rows):
        result: Tensor = _LowRankProduct.apply(rows, basis, weighted, scale)  # type: ignore[no-untyped-call]
    return result


class _LowRankProduct(torch.autograd.Function):
    """rows (scale I + weighted basisᵀ), a symmetric matrix: the derivative is the same map."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, basis: Tensor, weighted: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(basis, weighted)
        ctx.scale = scale
        return (rows @ weighted @ basis.mT).add_(rows, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        basis, weighted = ctx.saved_tensors
        return _product(gradient, basis, weighted, ctx.scale), None, None, None


class _CentredProduct(torch.autograd.Function):
    """The same for rows - centre."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, centre: Tensor, basis: Tensor, weighted: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(basis, weighted)
        ctx.scale = scale
        centred = rows - centre
        return centred.addmm_(centred @ weighted, basis.mT, beta=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        basis, weighted = ctx.saved_tensors
        return _product(gradient, basis, weighted, ctx.scale), None, None, None, None


class _ShiftedProduct(torch.autograd.Function):
    """The same; the last column of basis and weighted, minus the shift, gives what is added to the bias."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, bias: Tensor, basis: Tensor, weighted: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(basis, weighted)
        ctx.scale = scale
        products = rows @ weighted
        return (products[:, :-1] @ basis[:, :-1].mT).add_(rows, alpha=scale), bias + products[:, -1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        basis, weighted = ctx.saved_tensors
        with full_precision(gradient):
            products = gradient @ weighted
            products[:, -1] = shifted
            return (products @ basis.mT).add_(gradient, alpha=ctx.scale), shifted, None, None, None


class _ShiftedDenseProduct(torch.autograd.Function):
    """rows matrix, for a symmetric matrix, and bias - rows · shift."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(matrix, shift)
        return rows @ matrix, torch.addmv(bias, rows, shift, alpha=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, None, None]:
        matrix, shift = ctx.saved_tensors
        with full_precision(gradient):
            return torch.addr(gradient @ matrix, shifted, shift, alpha=-1), shifted, None, None
