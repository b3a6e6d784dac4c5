"""The scores of a batch as the rows of a matrix R with F = Rᵀ R / N, without ever holding R for linear layers.

With the derivatives J_n (K outputs x P) of sample n's outputs and the information Λ_n of the output distribution,

    F = 1/N Σ_n J_nᵀ Λ_n J_n,     Λ = diag(p) - p pᵀ (softmax)  or  I (Gaussian of unit variance),

has rank N K at most: K rows √p_k (J_k - Σ_j p_j J_j), or J_k, a sample are enough. A linear layer's share of such a row
is g ⊗ x̃, so its share of the Gram matrix R Rᵀ is (x̃ x̃ᵀ) times (g gᵀ), entry by entry. With it the damped natural
gradient needs one solve of N K unknowns instead of P (Woodbury):

    (Rᵀ R / N + λ I)^(-1) v = (v - Rᵀ (R Rᵀ + N λ I)^(-1) R v) / λ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.derivatives import jacobians_of, linear_layers

__all__ = ["Output", "Scores", "check_output", "damped_solve", "mixing_of", "ridge_of", "scores_of"]

Output = Literal["softmax", "gaussian"]


@dataclass(frozen=True)
class _LinearShare:
    """Columns of one linear layer: ``weight`` and ``bias`` are their places in the list of parameters, or None."""

    inputs: Tensor  # (N, D)
    derivatives: Tensor  # (N, K, out)
    weight: int | None
    bias: int | None

    def gram(self) -> Tensor:
        outer = torch.zeros(len(self.inputs), len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        if self.weight is not None:
            outer = outer + self.inputs @ self.inputs.mT
        if self.bias is not None:
            outer = outer + 1
        samples, outputs = self.derivatives.shape[:2]
        rows = self.derivatives.flatten(0, 1)
        products = (rows @ rows.mT).view(samples, outputs, samples, outputs)
        return products.mul_(outer[:, None, :, None]).view(samples * outputs, samples * outputs)

    def times(self, vector: Sequence[Tensor]) -> Tensor:
        moved = torch.zeros_like(self.derivatives[:, 0])
        if self.weight is not None:
            moved = moved + self.inputs @ vector[self.weight].mT
        if self.bias is not None:
            moved = moved + vector[self.bias]
        return torch.einsum("nko,no->nk", self.derivatives, moved)

    def combine(self, coefficients: Tensor, result: list[Tensor]) -> None:
        weighted = torch.einsum("nk,nko->no", coefficients, self.derivatives)
        if self.weight is not None:
            result[self.weight] += weighted.mT @ self.inputs
        if self.bias is not None:
            result[self.bias] += weighted.sum(0)


@dataclass(frozen=True)
class _DenseShare:
    """Columns of a parameter of any other kind."""

    rows: Tensor  # (N, K, numel)
    place: int

    def gram(self) -> Tensor:
        rows = self.rows.flatten(0, 1)
        return rows @ rows.mT

    def times(self, vector: Sequence[Tensor]) -> Tensor:
        return self.rows @ vector[self.place].flatten()

    def combine(self, coefficients: Tensor, result: list[Tensor]) -> None:
        share = torch.einsum("nk,nkp->p", coefficients, self.rows)
        result[self.place] += share.view_as(result[self.place])


@dataclass(frozen=True)
class Scores:
    """R of a batch, by what is needed of it.

    Attributes:
        samples: N.
        outputs: K.
        shapes: Of the trained parameters, in the order of ``model.parameters()``.
        shares: R's columns, cut by layers.
    """

    samples: int
    outputs: int
    shapes: tuple[torch.Size, ...]
    shares: tuple[_LinearShare | _DenseShare, ...]

    def gram(self) -> Tensor:
        """Return R Rᵀ.

        Returns:
            (N K, N K), float64.
        """
        total = self.shares[0].gram()
        for share in self.shares[1:]:
            total += share.gram()
        return total

    def times(self, vector: Sequence[Tensor]) -> Tensor:
        """Return R v.

        Args:
            vector: One tensor a parameter, float64.

        Returns:
            (N, K).
        """
        return torch.stack([share.times(vector) for share in self.shares]).sum(0)

    def combine(self, coefficients: Tensor) -> list[Tensor]:
        """Return Rᵀ u.

        Args:
            coefficients: u, (N, K), float64.

        Returns:
            One tensor a parameter.
        """
        result = [torch.zeros(shape, dtype=coefficients.dtype, device=coefficients.device) for shape in self.shapes]
        for share in self.shares:
            share.combine(coefficients, result)
        return result

    def solve(self, vector: Sequence[Tensor], *, damping: float, gram: Tensor | None = None) -> list[Tensor]:
        """Return (F + λ I)^(-1) v, exactly, by a solve of N K unknowns; zeros if F holds nothing (``ridge_of``).

        Args:
            vector: v, one tensor a parameter.
            damping: λ relative to the mean eigenvalue tr F / P, more than 0.
            gram: What ``gram()`` returned, if it is at hand.

        Returns:
            One tensor a parameter, float64; not finite if a score or v is not.
        """
        gram = self.gram() if gram is None else gram
        values = [tensor.double() for tensor in vector]
        size = sum(shape.numel() for shape in self.shapes)
        ridge = ridge_of(float(gram.diagonal().sum()) / (self.samples * size), damping, vector)
        if not 0 < ridge < float("inf"):
            return [value * ridge for value in values]
        # R v of a nearly certain model, with R ~ √p and v ~ p, would underflow.
        scale = max(float(value.abs().max()) for value in values) or 1.0
        values = [value / scale for value in values]
        moved = self.times(values)
        solved = damped_solve(gram, moved.flatten(), self.samples * ridge).view_as(moved)
        return [(value - part) * (scale / ridge) for value, part in zip(values, self.combine(solved), strict=True)]


def scores_of(model: nn.Module, inputs: Tensor, *, output: Output = "softmax") -> Scores:
    """Return the scores of a batch at the current parameters.

    Args:
        model: Maps a batch to (N, K); rows must not influence each other (no batch normalisation), nor chance (no
            dropout). Parameters of linear layers that read one vector a sample, once, and that are used nowhere else
            are cheap; the derivatives of all others are held in full.
        inputs: (N, ...).
        output: ``"softmax"`` for logits of a categorical distribution, ``"gaussian"`` for means of unit variance.

    Returns:
        The scores of all trained parameters.

    Raises:
        ValueError: If ``output`` is unknown, the batch is empty, nothing is trained, or the model returns anything but
            (N, K).
    """
    check_output(output)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient")
    results, layers = linear_layers(model, inputs)
    mixing = mixing_of(results, output)
    place = {id(parameter): index for index, parameter in enumerate(parameters.values())}
    shares: list[_LinearShare | _DenseShare] = []
    covered: set[int] = set()
    for layer in layers:
        weight, bias = (None if own is None else place[id(own)] for own in (layer.weight, layer.bias))
        shares.append(_LinearShare(layer.inputs.double(), mixing @ layer.derivatives.double(), weight, bias))
        covered |= {id(layer.weight), id(layer.bias)}
    rest = {name: parameter.detach() for name, parameter in parameters.items() if id(parameter) not in covered}
    if rest:
        for name, jacobian in jacobians_of(model, rest, inputs).items():
            shares.append(_DenseShare(mixing @ jacobian.flatten(2).double(), place[id(parameters[name])]))
    shapes = tuple(parameter.shape for parameter in parameters.values())
    return Scores(len(inputs), results.shape[1], shapes, tuple(shares))


def check_output(output: str) -> None:
    """Raise unless the output distribution is known.

    Args:
        output: To check.

    Raises:
        ValueError: If it is neither ``"softmax"`` nor ``"gaussian"``.
    """
    if output not in {"softmax", "gaussian"}:
        raise ValueError(f"output must be 'softmax' or 'gaussian', got {output!r}")


def mixing_of(results: Tensor, output: Output) -> Tensor:
    """Return what makes scores M J of the derivatives J of a batch's outputs.

    Args:
        results: (N, K), the outputs.
        output: Their distribution.

    Returns:
        M with Λ = Mᵀ M, (N, K, K), float64.
    """
    identity = torch.eye(results.shape[1], dtype=torch.float64, device=results.device)
    if output == "gaussian":
        return identity.expand(len(results), -1, -1)
    p = results.double().softmax(1)
    return p.sqrt().unsqueeze(-1) * (identity - p.unsqueeze(-2))


def ridge_of(mean: float, damping: float, vector: Sequence[Tensor]) -> float:
    """Return the damping λ of an information.

    Args:
        mean: Mean eigenvalue of F.
        damping: λ relative to it.
        vector: The gradient.

    Returns:
        λ; 0 if F holds nothing: its mean is less than the smallest normal number of the gradient's precision, in which
        gradients of that size lose their digits.
    """
    smallest = max(torch.finfo(torch.promote_types(tensor.dtype, torch.float32)).tiny for tensor in vector)
    return 0.0 if mean < smallest else damping * mean


def damped_solve(matrix: Tensor, vector: Tensor, ridge: float) -> Tensor:
    """Return (M + r I)^(-1) v.

    Args:
        matrix: M, (P, P), positive semidefinite to rounding.
        vector: v, (P,).
        ridge: r, more than 0; less than the rounding of M, its negative eigenvalues count as 0.

    Returns:
        (P,).
    """
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        return torch.cholesky_solve(vector.unsqueeze(1), factor).squeeze(1)
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ ((vectors.mT @ vector) / (values.clamp_min(0) + ridge))
