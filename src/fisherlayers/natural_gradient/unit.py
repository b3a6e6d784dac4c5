"""One information per output unit: the weighted moments of mode ``unit``, and their coordinates.

Unit j has G_j = E[ν_j s sᵀ], s = [x - origin; 1], with ν_j = ν(z_j) from ``activations``. Divided by m_j = E[ν_j], its
corner, this is the second moment of the inputs weighted by ν_j: weighted mean and covariance give the coordinates of
the unit as for a whole layer, and m_j is what distinguishes the units' step lengths.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisherlayers.inverse_root import inverse_square_root

__all__ = ["UnitCoordinates", "check_size", "released_coordinates", "unit_moments"]

_LARGEST = 2**28  # numbers: 1 GiB in float32
_CHUNK = 2**24


class UnitCoordinates(NamedTuple):
    """Of every unit: root S (out, D, D), mean μ (out, D) and gain t (out,), for w = t w' S and b = t d - w · μ."""

    root: Tensor
    mean: Tensor
    gain: Tensor


def check_size(layer: str, outputs: int, inputs: int) -> None:
    """Raise where one matrix a unit would not fit.

    Args:
        layer: Name of the layer, for the message.
        outputs: Units.
        inputs: D.

    Raises:
        ValueError: If the information takes more than 2^28 numbers.
    """
    numbers = outputs * (inputs + 1) ** 2
    if numbers > _LARGEST:
        raise ValueError(
            f"mode 'unit' needs one {inputs + 1} x {inputs + 1} matrix for each of the {outputs} units of layer "
            f"{layer!r}: {numbers / 2**28:.1f} GiB in float32, and twice that for the roots (at most 1 GiB): "
            "leave it out with exclude=, give it activations={...: 'linear'} (one matrix for all units), "
            "or use mode='input'"
        )


def unit_moments(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sums Σ_n ν_nj s_n s_nᵀ of every unit.

    Args:
        rows: s, (N, D).
        weights: ν, (N, out), at least 0.

    Returns:
        (out, D, D).
    """
    samples, size = rows.shape
    result = rows.new_empty(weights.shape[1], size, size)
    step = max(1, _CHUNK // max(1, samples * size))
    for start in range(0, weights.shape[1], step):
        part = weights[:, start : start + step].T.unsqueeze(-1)  # (units, N, 1)
        torch.matmul((part * rows).mT, rows, out=result[start : start + step])
    return result


def released_coordinates(information: Tensor, *, damping: float) -> UnitCoordinates:
    """Return coordinates whose preconditioner is (G + damping tr(G) I)^(-1), the authors' released rule.

    The trace is that of the whole homogeneous matrix and not divided by its size; the constant input is damped like the
    others, and nothing is rescaled.

    Args:
        information: G about the origin 0, (..., D + 1, D + 1).
        damping: Times the trace.

    Returns:
        Root, mean and gain with t² [[S S + S S μ ..]] = (G + damping tr(G) I)^(-1): see ``UnitCoordinates``.
    """
    values = information.double()
    size = values.shape[-1]
    trace = values.diagonal(dim1=-2, dim2=-1).sum(-1)
    damped = values + damping * trace[..., None, None] * torch.eye(size, dtype=values.dtype, device=values.device)
    corner = damped[..., -1, -1]
    mean = damped[..., -1, :-1] / corner.unsqueeze(-1)
    covariance = damped[..., :-1, :-1] - corner[..., None, None] * mean.unsqueeze(-1) * mean.unsqueeze(-2)
    gain = corner.rsqrt()
    root = inverse_square_root((covariance + covariance.mT) / 2) / gain[..., None, None]
    return UnitCoordinates(root, mean, gain)


def homogeneous(rows: Tensor, origin: Tensor) -> Tensor:
    """Return s = [x - origin; 1].

    Args:
        rows: x, (..., N, D).
        origin: (..., D).

    Returns:
        (..., N, D + 1).
    """
    return pad(rows - origin.unsqueeze(-2), (0, 1), value=1.0)
