"""The scores of a batch as the rows of a matrix R with F = Rᵀ R / N, without ever holding R for linear layers.

With the derivatives J_n (K outputs x P) of sample n's outputs and the information Λ_n of the output distribution,

    F = 1/N Σ_n J_nᵀ Λ_n J_n,     Λ = diag(p) - p pᵀ (softmax)  or  I (Gaussian of unit variance),

has rank N K at most: K rows √p_k (J_k - Σ_j p_j J_j), or J_k, a sample are enough. A linear layer's share of such a row
is g ⊗ x̃, so its share of the Gram matrix R Rᵀ is (x̃ x̃ᵀ) times (g gᵀ), entry by entry. With it the damped natural
gradient needs one solve of N K unknowns instead of P (Woodbury):

    (Rᵀ R / N + λ I)^(-1) v = (v - Rᵀ (R Rᵀ + N λ I)^(-1) R v) / λ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parametrize

__all__ = ["Output", "Scores", "check_output", "jacobians_of", "scores_of"]

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
        """Return (F + λ I)^(-1) v, exactly, by a solve of N K unknowns; zeros if all scores are zero.

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
        ridge = damping * float(gram.diagonal().sum()) / (self.samples * size)
        if not 0 < ridge < float("inf"):
            return [value * ridge for value in values]
        damped = gram + self.samples * ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        moved = self.times(values)
        solved = torch.cholesky_solve(moved.reshape(-1, 1), torch.linalg.cholesky(damped)).view_as(moved)
        return [(value - part) / ridge for value, part in zip(values, self.combine(solved), strict=True)]


@torch.enable_grad()
def scores_of(model: nn.Module, inputs: Tensor, *, output: Output = "softmax") -> Scores:
    """Return the scores of a batch at the current parameters.

    Args:
        model: Maps a batch to (N, K); rows must not influence each other (no batch normalisation). Linear layers that
            read one vector a sample, once, are cheap; the derivatives of all other parameters are held in full.
        inputs: (N, ...).
        output: ``"softmax"`` for logits of a categorical distribution, ``"gaussian"`` for means of unit variance.

    Returns:
        The scores of all trained parameters.

    Raises:
        ValueError: If ``output`` is unknown, the batch is empty, nothing is trained, or the model returns anything but
            (N, K).
    """
    check_output(output)
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {tuple(inputs.shape)}")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("model has no parameter that requires a gradient")
    place = {name: index for index, name in enumerate(names)}
    parameters = dict(model.named_parameters())
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    linear = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not parametrize.is_parametrized(module)
    }
    handles = [module.register_forward_hook(_recorder(seen, name)) for name, module in linear.items()]
    try:
        results: Tensor = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if results.ndim != 2 or results.shape[0] != inputs.shape[0]:
        raise ValueError(f"model must return (N, outputs) for {inputs.shape[0]} inputs, got {tuple(results.shape)}")
    mixing = _mixing(results.detach(), output)
    cheap = {
        name: calls[0]
        for name, calls in seen.items()
        if len(calls) == 1 and calls[0][1].requires_grad and calls[0][0].ndim == 2 and len(calls[0][0]) == len(inputs)
    }
    shares: list[_LinearShare | _DenseShare] = []
    covered: set[str] = set()
    if cheap:
        derivatives = _derivatives(results, [call[1] for call in cheap.values()])
        for (name, call), derivative in zip(cheap.items(), derivatives, strict=True):
            own = {kind: f"{name}.{kind}" if name else kind for kind in ("weight", "bias")}
            places = {kind: place.get(key) for kind, key in own.items()}
            shares.append(
                _LinearShare(call[0].double(), mixing @ derivative.double(), places["weight"], places["bias"])
            )
            covered.update(own.values())
    rest = {name: parameters[name].detach() for name in names if name not in covered}
    if rest:
        for name, jacobian in jacobians_of(model, rest, inputs).items():
            shares.append(_DenseShare(mixing @ jacobian.flatten(2).double(), place[name]))
    shapes = tuple(parameters[name].shape for name in names)
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


def _recorder(seen: dict[str, list[tuple[Tensor, Tensor]]], name: str) -> Any:
    def record(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        seen.setdefault(name, []).append((args[0].detach(), result))
        return result.view_as(result)  # an activation in place must not change what was recorded

    return record


def _mixing(results: Tensor, output: Output) -> Tensor:
    # (N, K, K), M with Λ = Mᵀ M: the scores are M J.
    identity = torch.eye(results.shape[1], dtype=torch.float64, device=results.device)
    if output == "gaussian":
        return identity.expand(len(results), -1, -1)
    p = results.double().softmax(1)
    return p.sqrt().unsqueeze(-1) * (identity - p.unsqueeze(-2))


def _derivatives(results: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    # Per layer (N, K, out): rows are independent, so one backward pass of a column's sum serves all samples.
    columns = []
    for index in range(results.shape[1]):
        last = index + 1 == results.shape[1]
        grads = torch.autograd.grad(results[:, index].sum(), outputs, retain_graph=not last, allow_unused=True)
        columns.append([torch.zeros_like(o) if g is None else g for g, o in zip(grads, outputs, strict=True)])
    return [torch.stack(layer, 1) for layer in zip(*columns, strict=True)]


def jacobians_of(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """Return the derivatives of a batch's outputs, sample by sample.

    Args:
        model: Maps a batch to (N, K); rows must not influence each other.
        parameters: By their names in ``model.named_parameters()``; the others are constants.
        inputs: (N, ...).

    Returns:
        Name -> (N, K, *shape of the parameter).
    """
    # A parameter may be held by several modules; a module that is registered twice must not be told twice: torch would
    # put back the second of two parameters, which is what it was given for the first.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {
        f"{prefix}.{own}" if prefix else own: names[id(parameter)]
        for prefix, module in model.named_modules()
        for own, parameter in module._parameters.items()
        if parameter is not None and names[id(parameter)] in parameters
    }

    def results(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        given = {place: values[name] for place, name in places.items()}
        result: Tensor = functional_call(model, given, (sample.unsqueeze(0),), tie_weights=False).squeeze(0)
        return result

    jacobians: dict[str, Tensor] = vmap(jacrev(results), in_dims=(None, 0))(dict(parameters), inputs)
    return jacobians
