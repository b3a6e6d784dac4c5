"""The root of a layer's input: centre, damp, invert, scale."""

import copy
import math

import torch
from torch import Tensor

from fisherlayers.inverse_root import LowRank, inverse_square_root, low_rank_from_sketch
from fisherlayers.natural_gradient.coordinates import Coordinates
from fisherlayers.precision import full_precision, has_float64
from fisherlayers.root import BlockRoot, DenseRoot, DiagonalRoot, LowRankRoot, Root

__all__ = ["automatic_damping", "input_coordinates", "plain_coordinates"]

# Measured: see benchmarks/README.md.
_MOST_POWER = 4.0  # times tr C
_DAMPING = 3.0
_NOISE = 0.64


def automatic_damping(size: int, rows: int, *, orthogonal: bool = False) -> float:
    """Return a damping that a batch can bear: more of it where few inputs tell about many directions.

    A covariance of D directions from N inputs is known to about D / N of its mean eigenvalue, and so noisy are the
    gradients of a step along them; below that whitening would amplify noise. A step that is made orthogonal is whitened
    already: what it cannot see is the mean of the input, which centring takes away.

    Args:
        size: D.
        rows: N, the inputs in the batches of one step (samples x positions); 0 if that is not known.
        orthogonal: Whether the optimizer makes its steps orthogonal, as Muon does.

    Returns:
        λ relative to the mean eigenvalue; infinity to leave all directions as they are.
    """
    if orthogonal:
        return math.inf
    return _DAMPING * max(1.0, _NOISE * size / rows) if rows else _DAMPING


def input_coordinates(
    second_moment: Tensor, origin: Tensor, *, centred: bool, damping: float, previous: Root
) -> Coordinates | None:
    """Return the coordinates that whiten a layer's input and keep its power.

    The root is c (C + λ I)^(-1/2) with C = Cov(x), λ relative to the mean eigenvalue of C, and c such that the whitened
    input S (x - μ) has the mean square of x: tr(S C S) = E|x|². So an optimizer that is tuned for the plain network
    finds inputs of the size that it is tuned for. Where an input hardly varies around a large mean, the mean moves by
    more than the variance before the root can follow; so tr(S C S) is at most 4 tr C. With λ infinite S = I: the input
    is centred, and steps keep their length.

    A group whose input never varied, the filter of a dead channel, say, has S = I and the mean zero beside the others.

    Args:
        second_moment: E[s sᵀ] of s = [x - origin; 1], (..., D + 1, D + 1).
        origin: (..., D).
        centred: Whether the layer trains a bias; if not, the mean is zero and C = E[x xᵀ].
        damping: λ relative to the mean eigenvalue, more than 0.
        previous: The root so far: gives the structure, and the start of a low-rank one.

    Returns:
        Root and mean in the dtype of ``origin``; None if no group's input ever varied.
    """
    if not has_float64(origin.device):
        device, here = origin.device, copy.deepcopy(previous).cpu()
        found = input_coordinates(second_moment.cpu(), origin.cpu(), centred=centred, damping=damping, previous=here)
        return None if found is None else Coordinates(found.root.to(device), found.mean.to(device))
    power, centre = second_moment[..., :-1, :-1], second_moment[..., -1, :-1].double()
    mean = origin.double() + centre
    # C, or E[x xᵀ], is the power around the origin with two outer products: no copy of a wide matrix is needed.
    terms = [(-1.0, centre)] if centred else [(-1.0, centre), (1.0, mean)]
    trace = _trace(power).double() + sum(sign * vector.square().sum(-1) for sign, vector in terms)
    size = mean.shape[-1]
    rounding = 8 * torch.finfo(second_moment.dtype).eps
    still = ~(trace > size * rounding * _trace(power))
    if bool(still.all()):
        return None
    if bool(still.any()):
        second_moment, origin = second_moment.clone(), origin.clone()
        second_moment[still], origin[still] = _eye(size + 1, second_moment), 0.0
        return input_coordinates(second_moment, origin, centred=centred, damping=damping, previous=previous)
    middle = (mean if centred else torch.zeros_like(mean)).to(origin.dtype)
    if math.isinf(damping):
        return Coordinates(_identity(previous), middle)
    root: Root
    if isinstance(previous, LowRankRoot):
        basis = previous.basis.double()
        with full_precision(power):
            sketch = (power @ previous.basis).double()
        for sign, vector in terms:
            sketch = sketch + sign * vector.unsqueeze(-1) * (vector.unsqueeze(-2) @ basis)
        precision = rounding * _trace(power).double() / trace  # of the power, from which the outer products were taken
        low = low_rank_from_sketch(sketch, basis, trace, damping=damping, precision=precision)
        root = LowRankRoot(low)
        ridge = (damping * trace / size).unsqueeze(-1)
        # tr(S C S) by the eigenvalues that the root is made of: gain^(-2) - λ, and one value for all the others.
        gains = torch.cat([low.gains, low.scale.unsqueeze(-1).expand(*low.scale.shape, size - low.gains.shape[-1])], -1)
        whitened = (1 - ridge * gains.square()).sum(-1)
    else:
        information = power.double()
        for sign, vector in terms:
            information = information + sign * vector.unsqueeze(-1) * vector.unsqueeze(-2)
        noise = (rounding * _trace(power)).double().unsqueeze(-1).expand_as(mean)  # what rounding may have taken off
        information = (information + information.mT) / 2 + torch.diag_embed(noise)
        matrix = inverse_square_root(information, damping=damping)
        root = DenseRoot(matrix)
        whitened = ((matrix @ information) * matrix).sum((-2, -1))
    total = _trace(power).double() - centre.square().sum(-1) + mean.square().sum(-1)  # E|x|²
    c = (torch.minimum(total, _MOST_POWER * trace) / whitened).sqrt()
    return Coordinates(_scaled(root, c, origin.dtype), middle)


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
        blocks = _eye(root.matrices.shape[-1], root.matrices).repeat(len(root.matrices), 1, 1)
        return BlockRoot(blocks, root.num_features)
    return DenseRoot(_eye(root.dense().shape[-1], root.dense()).expand_as(root.dense()).clone())


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
