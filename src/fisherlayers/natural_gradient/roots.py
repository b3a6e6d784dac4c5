"""The root of a layer's input: centre, damp, invert, scale."""

import torch
from torch import Tensor

from fisherlayers.inverse_root import LowRank, inverse_square_root, low_rank_inverse_square_root
from fisherlayers.layer import DenseRoot, LowRankRoot, Root
from fisherlayers.natural_gradient.coordinates import Coordinates

Scale = str


def input_coordinates(
    second_moment: Tensor,
    origin: Tensor,
    *,
    centred: bool,
    damping: float,
    scale: Scale,
    previous: Root,
) -> Coordinates | None:
    """Return the coordinates that whiten a layer's input, or None if the input never varied.

    Args:
        second_moment: E[s sᵀ] of s = [x - origin; 1], (..., D + 1, D + 1).
        origin: (..., D).
        centred: Whether the layer trains a bias; if not, the mean is zero and the information uncentred.
        damping: Relative to the mean eigenvalue.
        scale: How the root is scaled; under study.
        previous: The root so far: gives the structure, and the start of a low-rank one.
    """
    moment = second_moment.double()
    shift = moment[..., -1, :-1]
    covariance = moment[..., :-1, :-1] - shift.unsqueeze(-1) * shift.unsqueeze(-2)
    mean = origin.double() + shift
    power = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    information = covariance if centred else power
    size = information.shape[-1]
    trace = information.diagonal(dim1=-2, dim2=-1).sum(-1)
    if not bool((trace > 0).all()):
        return None
    root: Root
    ridge = damping * trace / size
    if isinstance(previous, LowRankRoot):
        rank = previous.basis.shape[-1]
        low = low_rank_inverse_square_root(information, rank=rank, damping=damping, basis=previous.basis)
        g2, s2 = low.gains.square(), low.scale.square()
        t2 = g2.sum(-1) + (size - rank) * s2
        t4 = g2.square().sum(-1) + (size - rank) * s2.square()
        top = (1 - ridge.unsqueeze(-1) * g2).amax(-1)
        lam = 1 / g2 - ridge.unsqueeze(-1)
        tau = 1 / s2 - ridge
        f2 = lam.square().sum(-1) + (size - rank) * tau.square()
        lmax = lam.amax(-1)
    else:
        matrix = inverse_square_root(information, damping=damping)
        sq = matrix @ matrix
        t2 = matrix.square().sum((-2, -1))
        t4 = sq.square().sum((-2, -1))
        f2 = information.square().sum((-2, -1))
        lmax = torch.linalg.eigvalsh(information).amax(-1)
    u1 = trace if scale.endswith("-c") or not centred else power.diagonal(dim1=-2, dim2=-1).sum(-1)
    u2 = f2 if scale.endswith("-c") or not centred else power.square().sum((-2, -1))
    kind = scale.removesuffix("-c")
    if kind == "none":
        c = torch.ones_like(trace)
    elif kind == "power":  # tr(c²S F S) = tr F
        c = (u1 / (size - ridge * t2)).sqrt()
    elif kind == "step":  # tr((c²S²F)²) = tr F²
        c = (u2 / (size - 2 * ridge * t2 + ridge.square() * t4)) ** 0.25
    elif kind == "gain":  # tr(c²S²) = D
        c = (size / t2).sqrt()
    elif kind == "graft":  # tr(c⁴ S²FS²) = tr F
        c = (u1 / (t2 - ridge * t4)) ** 0.25
    elif kind == "graft2":  # lead's: c² tr(S²FS²) = tr F
        c = (u1 / (t2 - ridge * t4)) ** 0.5
    elif kind == "top":
        c = lmax.sqrt()
    else:
        raise ValueError(kind)
    dtype = origin.dtype
    if isinstance(previous, LowRankRoot):
        root = LowRankRoot(
            LowRank((low.scale * c).to(dtype), low.basis.to(dtype), (low.gains * c.unsqueeze(-1)).to(dtype))
        )
    else:
        root = DenseRoot((matrix * c[..., None, None]).to(dtype))
    return Coordinates(root, (mean if centred else torch.zeros_like(mean)).to(dtype))


def plain_coordinates(root: Root, mean: Tensor) -> Coordinates:
    """Return the coordinates of a plain layer, W' = W and d = b.

    Args:
        root: Gives the structure, size, device and dtype.
        mean: Gives the shape of the mean.

    Returns:
        The identity root, in the structure of ``root``, and a zero mean.
    """
    identity: Root
    if isinstance(root, LowRankRoot):
        ones = torch.ones_like(root.gains)
        identity = LowRankRoot(LowRank(torch.ones_like(root.scale), root.basis, ones))
    else:
        identity = DenseRoot(torch.diag_embed(torch.ones_like(mean)))
    return Coordinates(identity, torch.zeros_like(mean))
