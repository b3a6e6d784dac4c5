"""The root of a layer's input: centre, damp, invert, scale."""

import torch
from torch import Tensor

from fisherlayers.inverse_root import LowRank, inverse_square_root, low_rank_inverse_square_root
from fisherlayers.layer import DenseRoot, LowRankRoot, Root
from fisherlayers.natural_gradient.coordinates import Coordinates

__all__ = ["input_coordinates", "plain_coordinates"]


def input_coordinates(
    second_moment: Tensor, origin: Tensor, *, centred: bool, damping: float, previous: Root
) -> Coordinates | None:
    """Return the coordinates that whiten a layer's input and keep its power.

    The root is c (C + λ I)^(-1/2) with C = Cov(x), λ relative to the mean eigenvalue of C, and c such that the whitened
    input S (x - μ) has the mean square of x: tr(S C S) = E|x|². So an optimizer that is tuned for the plain network
    finds inputs of the size that it is tuned for, and large damping leads back to plain (centred) descent.

    Args:
        second_moment: E[s sᵀ] of s = [x - origin; 1], (..., D + 1, D + 1).
        origin: (..., D).
        centred: Whether the layer trains a bias; if not, the mean is zero and C = E[x xᵀ].
        damping: λ relative to the mean eigenvalue, more than 0.
        previous: The root so far: gives the structure, and the start of a low-rank one.

    Returns:
        Root and mean in the dtype of ``origin``; None if the input never varied.
    """
    moment = second_moment.double()
    shift = moment[..., -1, :-1]
    mean = origin.double() + shift
    covariance = moment[..., :-1, :-1] - _outer(shift)
    covariance = (covariance + covariance.mT) / 2
    information = covariance if centred else covariance + _outer(mean)
    size = mean.shape[-1]
    # What rounding may have taken off the smallest eigenvalues is given back.
    noise = 8 * torch.finfo(second_moment.dtype).eps * _trace(moment[..., :-1, :-1])
    if not bool((_trace(information) > size * noise).all()):
        return None
    information = information + torch.diag_embed(noise.unsqueeze(-1).expand_as(mean))
    power = _trace(covariance) + mean.square().sum(-1)
    root = _scaled_root(information, power, damping, previous, origin.dtype)
    return Coordinates(root, (mean if centred else torch.zeros_like(mean)).to(origin.dtype))


def _scaled_root(information: Tensor, power: Tensor, damping: float, previous: Root, dtype: torch.dtype) -> Root:
    size = information.shape[-1]
    if isinstance(previous, LowRankRoot):
        rank = previous.basis.shape[-1]
        low = low_rank_inverse_square_root(information, rank=rank, damping=damping, basis=previous.basis)
        ridge = damping * _trace(information) / size
        # tr(S C S) with the eigenvalues that the root is made of: gain^(-2) - λ, and the same for all the others.
        kept = (1 - ridge.unsqueeze(-1) * low.gains.square()).sum(-1)
        c = (power / (kept + (size - rank) * (1 - ridge * low.scale.square()))).sqrt()
        scaled = LowRank(low.scale * c, low.basis, low.gains * c.unsqueeze(-1))
        return LowRankRoot(LowRank(*(tensor.to(dtype) for tensor in scaled)))
    matrix = inverse_square_root(information, damping=damping)
    c = (power / ((matrix @ information) * matrix).sum((-2, -1))).sqrt()
    return DenseRoot((matrix * c[..., None, None]).to(dtype))


def plain_coordinates(root: Root, mean: Tensor) -> Coordinates:
    """Return the coordinates of a plain layer, W' = W and d = b.

    Args:
        root: Gives the structure, size, device and dtype.
        mean: Gives the shape of the mean.

    Returns:
        The identity root, in the structure of ``root``, and a zero mean.
    """
    zero = torch.zeros_like(mean)
    if isinstance(root, LowRankRoot):
        ones = LowRank(torch.ones_like(root.scale), root.basis, torch.ones_like(root.gains))
        return Coordinates(LowRankRoot(ones), zero)
    return Coordinates(DenseRoot(torch.diag_embed(torch.ones_like(mean))), zero)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _outer(vector: Tensor) -> Tensor:
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)
