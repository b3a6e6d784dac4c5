"""Named matrices with known roots, and random ones of a chosen condition number."""

from __future__ import annotations

import torch
from torch import Tensor

# F and its exact F^(-1/2), solvable by hand.
HAND_SOLVED: dict[str, tuple[Tensor, Tensor]] = {
    "identity": (torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)),
    "diagonal": (
        torch.diag(torch.tensor([1.0, 4.0, 0.25]).double()),
        torch.diag(torch.tensor([1.0, 0.5, 2.0]).double()),
    ),
    "scalar": (torch.tensor([[9.0]]).double(), torch.tensor([[1.0]]).double() / 3),
    # The root of [[5, 4], [4, 5]] is [[2, 1], [1, 2]]; its inverse is [[2, -1], [-1, 2]] / 3.
    "rotated": (torch.tensor([[5.0, 4.0], [4.0, 5.0]]).double(), torch.tensor([[2.0, -1.0], [-1.0, 2.0]]).double() / 3),
    # The square of the second difference matrix [[2, -1, 0], [-1, 2, -1], [0, -1, 2]].
    "integer": (
        torch.tensor([[5.0, -4.0, 1.0], [-4.0, 6.0, -4.0], [1.0, -4.0, 5.0]]).double(),
        torch.tensor([[3.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 3.0]]).double() / 4,
    ),
}


def with_condition(condition: float, size: int, *, seed: int = 0, batch_shape: tuple[int, ...] = ()) -> Tensor:
    """Random rotation of a log-uniform spectrum from 1 down to 1 / condition, float64."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(*batch_shape, size, size, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size, dtype=torch.float64)
    matrix = (rotation * spectrum) @ rotation.mT
    return (matrix + matrix.mT) / 2
