"""The root of a layer's input: centre, damp, invert, scale."""

import torch
from torch import Tensor

from fisherlayers.inverse_root import LowRank, inverse_square_root, low_rank_from_sketch
from fisherlayers.layer import BlockRoot, DenseRoot, DiagonalRoot, LowRankRoot, Root
from fisherlayers.natural_gradient.coordinates import Coordinates

__all__ = ["input_coordinates", "plain_coordinates"]

# Measured: see benchmarks/README.md.
_MOST_POWER = 16.0  # times tr C
_DRIFT = 4.0  # times the square of the mean's lead: on its way, it is expected to move by twice of that


def input_coordinates(
    second_moment: Tensor,
    origin: Tensor,
    *,
    newest: Tensor | None = None,
    centred: bool,
    damping: float,
    previous: Root,
) -> Coordinates | None:
    """Return the coordinates that whiten a layer's input where its mean is heading, and keep its power.

    The root is c (C + 4 e eᵀ + λ I)^(-1/2) with C = Cov(x), λ relative to the mean eigenvalue of C, and the lead
    e = m - μ of the newest mean m over the average μ. While the network learns, the input's mean moves, along one
    direction and by more than the variance before the next root; a layer that is centred at m and damped along e keeps
    its footing.

    The scale c is such that the whitened input has the mean square of x: tr(S C S) = E|x|². So an optimizer that is
    tuned for the plain network finds inputs of the size that it is tuned for. It is at most 16 tr C, for inputs that
    hardly vary around a large mean.

    Args:
        second_moment: E[s sᵀ] of s = [x - origin; 1], (..., D + 1, D + 1).
        origin: (..., D).
        newest: m, the mean of x at the last observed step, (..., D); None for the average.
        centred: Whether the layer trains a bias; if not, the mean is zero, C = E[x xᵀ], and e = 0.
        damping: λ relative to the mean eigenvalue, more than 0.
        previous: The root so far: gives the structure, and the start of a low-rank one.

    Returns:
        Root and mean m in the dtype of ``origin``; None if the input never varied.
    """
    power, centre = second_moment[..., :-1, :-1], second_moment[..., -1, :-1].double()
    mean = origin.double() + centre
    middle = mean if newest is None else newest.double()
    lead = middle - mean if centred else torch.zeros_like(mean)
    # C, or E[x xᵀ], is the power around the origin with two outer products: no copy of a wide matrix is needed.
    terms = [(-1.0, centre)] if centred else [(-1.0, centre), (1.0, mean)]
    trace = _trace(power).double() + sum(sign * vector.square().sum(-1) for sign, vector in terms)
    size = mean.shape[-1]
    rounding = 8 * torch.finfo(second_moment.dtype).eps
    if not bool((trace > size * rounding * _trace(power)).all()):
        return None
    ridge = (damping * trace / size).unsqueeze(-1)
    if isinstance(previous, LowRankRoot):
        basis = previous.basis.double()
        sketch = (power @ previous.basis).double()
        for sign, vector in [*terms, (_DRIFT, lead)]:
            sketch = sketch + sign * vector.unsqueeze(-1) * (vector.unsqueeze(-2) @ basis)
        spread = trace + _DRIFT * lead.square().sum(-1)
        low = low_rank_from_sketch(sketch, basis, spread, damping=damping * trace / spread, precision=rounding)
        root: Root = LowRankRoot(low)
        # tr(S C S) by the eigenvalues that the root is made of: gain^(-2) - λ, and one value for all the others.
        gains = torch.cat([low.gains, low.scale.unsqueeze(-1).expand(*low.scale.shape, size - low.gains.shape[-1])], -1)
        drift = _DRIFT * root.multiply(lead.unsqueeze(-2)).square().sum((-2, -1))
        whitened = (1 - ridge * gains.square()).sum(-1) - drift
    else:
        information = power.double()
        for sign, vector in terms:
            information = information + sign * vector.unsqueeze(-1) * vector.unsqueeze(-2)
        noise = (rounding * _trace(power)).double().unsqueeze(-1).expand_as(mean)  # what rounding may have taken off
        information = (information + information.mT) / 2 + torch.diag_embed(noise)
        damped = information + torch.diag_embed(ridge.expand_as(mean))
        matrix = inverse_square_root(damped + _DRIFT * lead.unsqueeze(-1) * lead.unsqueeze(-2))
        root = DenseRoot(matrix)
        whitened = ((matrix @ information) * matrix).sum((-2, -1))
    total = _trace(power).double() - centre.square().sum(-1) + mean.square().sum(-1)  # E|x|²
    c = (torch.minimum(total, _MOST_POWER * trace) / whitened).sqrt()
    return Coordinates(_scaled(root, c, origin.dtype), (middle if centred else torch.zeros_like(mean)).to(origin.dtype))


def _scaled(root: Root, c: Tensor, dtype: torch.dtype) -> Root:
    if isinstance(root, LowRankRoot):
        # Along a dead input the basis shrinks at every refresh; denormal numbers would make products 50 times slower.
        basis = torch.where(root.basis.abs() < torch.finfo(dtype).eps ** 2, 0.0, root.basis)
        scaled = LowRank(root.scale * c, basis, root.gains * c.unsqueeze(-1))
        return LowRankRoot(LowRank(*(tensor.to(dtype) for tensor in scaled)))
    return DenseRoot((root.dense() * c[..., None, None]).to(dtype))


def plain_coordinates(given: Coordinates) -> Coordinates:
    """Return the coordinates of a plain layer, W' = W and d = b.

    Args:
        given: Structure, size, device and dtype.

    Returns:
        Identity roots, in the structure of those given, and a zero mean.
    """
    output = None if given.output is None else _identity(given.output)
    return Coordinates(_identity(given.root), torch.zeros_like(given.mean), output)


def _identity(root: Root) -> Root:
    if isinstance(root, LowRankRoot):
        return LowRankRoot(LowRank(torch.ones_like(root.scale), root.basis, torch.ones_like(root.gains)))
    if isinstance(root, DiagonalRoot):
        return DiagonalRoot(torch.ones_like(root.gains))
    if isinstance(root, BlockRoot):
        return BlockRoot(
            torch.eye(root.matrices.shape[-1]).to(root.matrices).repeat(len(root.matrices), 1, 1), root.num_features
        )
    return DenseRoot(torch.eye(root.dense().shape[-1]).to(root.dense()).expand_as(root.dense()).clone())


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
