"""The pure functions of mode ``unit`` against loops over units and samples."""

import pytest
import torch

from fisherlayers.natural_gradient import unit
from fisherlayers.natural_gradient.unit import check_size, homogeneous, released_coordinates, unit_moments


def test_moments_are_the_weighted_sums_unit_by_unit(monkeypatch):
    rows, weights = homogeneous(torch.randn(9, 4), torch.randn(4)), torch.rand(9, 5)
    expected = torch.stack([sum(weights[n, j] * torch.outer(rows[n], rows[n]) for n in range(9)) for j in range(5)])
    torch.testing.assert_close(unit_moments(rows, weights), expected)
    monkeypatch.setattr(unit, "_CHUNK", 9 * 5 * 2)  # two units at a time
    torch.testing.assert_close(unit_moments(rows, weights), expected)


def test_the_released_rule_is_the_inverse_with_damping_times_the_trace():
    rows = torch.randn(3, 20, 6)
    rows[..., -1] = 1
    information = rows.mT @ rows / 20 + 0.01 * torch.eye(6)
    for matrix, root, mean, gain in zip(information, *released_coordinates(information, damping=1e-2), strict=True):
        # [w b] = [w' d] M, so descent on [w' d] is descent on [w b] preconditioned by Mᵀ M.
        m = torch.zeros(6, 6)
        m[:-1, :-1], m[:-1, -1], m[-1, -1] = gain * root, -gain * root @ mean, gain
        inverse = torch.linalg.inv(matrix + 1e-2 * matrix.trace() * torch.eye(6))
        torch.testing.assert_close(m.T @ m, inverse)


def test_a_layer_too_wide_for_one_matrix_a_unit_says_what_to_do():
    check_size("fits", 512, 512)
    with pytest.raises(ValueError, match=r"one 4097 x 4097 matrix for each of the 4096 units of layer 'fc': 256.1 GiB"):
        check_size("fc", 4096, 4096)
