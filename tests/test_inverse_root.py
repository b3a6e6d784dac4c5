"""Every method of the inverse square root against scipy, hand-solved matrices and the definition S F S = I."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.inverse_root import (
    RootError,
    inverse_square_root,
    low_rank_inverse_square_root,
    root_residual,
)
from fisherlayers.root import LowRankRoot
from matrices import HAND_SOLVED, with_condition

METHODS = ("eigh", "denman-beavers", "newton-schulz")
CONDITIONS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", HAND_SOLVED)
def test_hand_solved(name, method):
    matrix, expected = HAND_SOLVED[name]
    torch.testing.assert_close(inverse_square_root(matrix, method=method), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_matches_scipy_at_every_condition_number(condition, method):
    matrix = with_condition(condition, 24, seed=3)
    expected = scipy.linalg.inv(scipy.linalg.sqrtm(matrix.numpy()).real)
    root = inverse_square_root(matrix, method=method)
    error = np.linalg.norm(root.numpy() - expected) / np.linalg.norm(expected)
    assert error < 3e-15 * condition + 1e-12
    assert root_residual(matrix, root) < 1e-15 * condition + 1e-12
    assert torch.equal(root, root.mT)


@pytest.mark.parametrize("method", METHODS)
def test_damping_is_relative_to_the_mean_eigenvalue(method):
    matrix = 50.0 * with_condition(1e6, 12, seed=1)
    damped = matrix + 0.3 * matrix.trace() / 12 * torch.eye(12, dtype=torch.float64)
    expected = scipy.linalg.inv(scipy.linalg.sqrtm(damped.numpy()).real)
    torch.testing.assert_close(inverse_square_root(matrix, damping=0.3, method=method), torch.from_numpy(expected))


@pytest.mark.parametrize("method", METHODS)
def test_batched_equals_one_by_one(method):
    # Members that converge after different numbers of steps must not disturb each other.
    matrices = torch.stack([with_condition(c, 9, seed=i) * 10.0**i for i, c in enumerate((1e0, 1e3, 1e6))])
    roots = inverse_square_root(matrices.reshape(3, 1, 9, 9), method=method)
    for matrix, root in zip(matrices, roots[:, 0], strict=True):
        alone = inverse_square_root(matrix, method=method)
        assert torch.linalg.norm(root - alone) / torch.linalg.norm(alone) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_computed_in_float64(method):
    # At condition 1e8 a float32 eigendecomposition returns a negative eigenvalue; the damped root must stay exact to
    # the rounding of its own output.
    matrix = with_condition(1e8, 32, seed=0).float()
    root = inverse_square_root(matrix, damping=1e-3, method=method)
    assert root.dtype == torch.float32
    reference = inverse_square_root(matrix.double(), damping=1e-3)
    torch.testing.assert_close(root.double(), reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 12),
    exponent=st.floats(0, 6),
    scale=st.floats(1e-6, 1e6),
    damping=st.floats(1e-3, 10),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 99),
)
def test_definition_scaling_and_rotation(size, exponent, scale, damping, method, seed):
    matrix = scale * with_condition(10.0**exponent, size, seed=seed)
    damped = matrix + damping * matrix.trace() / size * torch.eye(size, dtype=torch.float64)
    root = inverse_square_root(matrix, damping=damping, method=method)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(root @ damped @ root, identity, rtol=0, atol=1e-8)
    torch.testing.assert_close(inverse_square_root(4 * matrix, damping=damping, method=method), root / 2)
    rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed)))[0]
    rotated = rotation @ matrix @ rotation.T
    expected = rotation @ root @ rotation.T
    rotated_root = inverse_square_root((rotated + rotated.T) / 2, damping=damping, method=method)
    assert torch.linalg.norm(rotated_root - expected) < 1e-8 * torch.linalg.norm(expected)


BAD_MATRICES = {
    "must be square": torch.ones(2, 3),
    "must be square, .* got shape \\(4,\\)": torch.ones(4),
    "must not be empty": torch.ones(0, 0),
    "must be of a real floating type": torch.eye(2, dtype=torch.int64),
    "found NaN or infinity": torch.tensor([[1.0, 0.0], [0.0, float("nan")]]),
    "must be symmetric": torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
    "positive semi-definite, got an eigenvalue of -1": torch.diag(torch.tensor([2.0, -1.0])),
}


@pytest.mark.parametrize("message", BAD_MATRICES)
def test_bad_matrices_are_refused_by_every_method(message):
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            inverse_square_root(BAD_MATRICES[message], damping=0.1, method=method)
    with pytest.raises(ValueError, match=message):
        low_rank_inverse_square_root(BAD_MATRICES[message], rank=2, damping=0.1)


def test_zero_matrix_is_refused():
    with pytest.raises(ValueError, match="must not be zero"):
        inverse_square_root(torch.zeros(3, 3), damping=0.1)
    with pytest.raises(RootError, match="raise damping"):
        low_rank_inverse_square_root(torch.zeros(3, 3), rank=2, damping=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_singular_without_damping_raises_and_names_damping(method):
    matrix = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    with pytest.raises(RootError, match="raise damping"):
        inverse_square_root(matrix, method=method)
    assert torch.isfinite(inverse_square_root(matrix, damping=1e-3, method=method)).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="damping must be at least 0 and finite, got -1"):
        inverse_square_root(torch.eye(2), damping=-1)
    with pytest.raises(ValueError, match="damping must be at least 0 and finite, got nan"):
        inverse_square_root(torch.eye(2), damping=float("nan"))
    with pytest.raises(ValueError, match=r"method must be one of .*'cholesky'"):
        inverse_square_root(torch.eye(2), method="cholesky")
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 2\], got 3"):
        low_rank_inverse_square_root(torch.eye(2), rank=3, damping=0.1)
    with pytest.raises(ValueError, match=r"basis must have shape \(..., 4, 2\)"):
        low_rank_inverse_square_root(torch.eye(4), rank=2, damping=0.1, basis=torch.eye(4))


def spiked(size: int, leading: list[float], rest: float, seed: int = 0) -> torch.Tensor:
    """A matrix with a few large eigenvalues, all the others equal: the low-rank root is exact on it."""
    rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed)))[0]
    spectrum = torch.full((size,), rest, dtype=torch.float64)
    spectrum[: len(leading)] = torch.tensor(leading, dtype=torch.float64)
    matrix = (rotation * spectrum) @ rotation.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_low_rank_is_exact_where_the_tail_is_zero(damping):
    matrix = spiked(20, [100.0, 30.0, 10.0], 0.0)
    if damping == 0.0:
        with pytest.raises(RootError, match="singular"):
            low_rank_inverse_square_root(matrix, rank=3, damping=0.0)
        return
    root = LowRankRoot(low_rank_inverse_square_root(matrix, rank=3, damping=damping)).dense()
    torch.testing.assert_close(root, inverse_square_root(matrix, damping=damping), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_takes_matrices_of_less_rank_in_their_own_precision(rank, dtype):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        factor = torch.randn(60, rank, generator=generator, dtype=dtype)
        matrix = factor @ factor.T
        found = LowRankRoot(low_rank_inverse_square_root(matrix, rank=12, damping=0.1)).dense()
        expected = inverse_square_root(factor.double() @ factor.double().T, damping=0.1)
        tolerance = 1e5 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_low_rank_warm_starts_converge_to_the_leading_directions():
    matrix = spiked(40, [100.0, 80.0, 60.0, 50.0], 1.0)
    exact = inverse_square_root(matrix, damping=0.1)
    basis, errors = None, []
    for _ in range(8):
        low_rank = low_rank_inverse_square_root(matrix, rank=4, damping=0.1, basis=basis)
        basis = low_rank.basis
        errors.append(float(torch.linalg.norm(LowRankRoot(low_rank).dense() - exact)))
    assert errors[-1] < 1e-9 < errors[0]
    assert all(later <= earlier * 1.001 + 1e-9 for earlier, later in itertools.pairwise(errors))


def test_low_rank_tail_is_not_amplified():
    # Neglecting the tail (tau = damping) would leave a condition number of 280 on this spectrum of 1/i.
    size, rank = 300, 40
    matrix = spiked(size, [1.0 / i for i in range(1, size + 1)], 0.0)
    root = LowRankRoot(low_rank_inverse_square_root(matrix, rank=rank, damping=0.01)).dense()
    damped = matrix + 0.01 * matrix.trace() / size * torch.eye(size, dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(root @ damped @ root)
    assert spectrum[-1] / spectrum[0] < 20


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 16), rank=st.integers(1, 16), exponent=st.floats(0, 8), seed=st.integers(0, 99))
def test_low_rank_root_properties(size, rank, exponent, seed):
    rank = min(rank, size)
    matrix = with_condition(10.0**exponent, size, seed=seed)
    low_rank = low_rank_inverse_square_root(matrix, rank=rank, damping=0.1, seed=seed)
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(low_rank.basis.T @ low_rank.basis, identity, rtol=0, atol=1e-10)
    root = LowRankRoot(low_rank).dense()
    eigenvalues = torch.linalg.eigvalsh(root)
    damp = 0.1 * matrix.trace() / size
    # No direction is amplified beyond the damping, none shrunk below the largest eigenvalue.
    assert eigenvalues[-1] <= damp**-0.5 * (1 + 1e-9)
    assert eigenvalues[0] >= (1.0 + damp) ** -0.5 * (1 - 1e-9)
    if rank == size:
        torch.testing.assert_close(root, inverse_square_root(matrix, damping=0.1), rtol=1e-6, atol=1e-8)


def test_low_rank_batched_equals_one_by_one():
    matrices = torch.stack([spiked(12, [9.0, 5.0], 1.0, seed=s) for s in range(3)])
    together = LowRankRoot(low_rank_inverse_square_root(matrices, rank=4, damping=0.2)).dense()
    for matrix, root in zip(matrices, together, strict=True):
        alone = LowRankRoot(low_rank_inverse_square_root(matrix, rank=4, damping=0.2)).dense()
        torch.testing.assert_close(root, alone)
