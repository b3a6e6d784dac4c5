import pytest
import torch
from torch import nn

from fisherlayers.race import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16), (40, 6), (6, 40)])
def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    values = u.mT @ orthogonalize(matrix) @ vh.mT
    torch.testing.assert_close(values, torch.diag(values.diagonal()), atol=1e-12, rtol=0)
    assert values.diagonal().min() > 0.6
    assert values.diagonal().max() < 1.25


def test_orthogonalize_follows_the_polynomial_on_a_diagonal_matrix():
    values = torch.tensor([3.0, 4.0], dtype=torch.float64) / 5
    expected = values
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(orthogonalize(torch.diag(5 * values)), torch.diag(expected))


def definition(matrix, iterations=5):
    x = matrix / matrix.norm()
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (9, 5)])
def test_orthogonalize_iterates_as_defined_whatever_the_shape(shape, iterations):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrix, iterations=iterations), definition(matrix, iterations))


@pytest.mark.parametrize("shape", [(400, 24), (24, 400), (40, 24)])
def test_float32_is_enough_for_singular_values_over_four_decades(shape):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -4, 24, dtype=torch.float64)) @ vh
    found, expected = orthogonalize(matrix.float()).double(), definition(matrix)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_square_the_condition_of_long_matrices(dtype):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(200, 8), full_matrices=False)
    matrix = (u @ torch.diag(torch.logspace(0, -2, 8)) @ vh).to(dtype)
    values = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert values.max() < 1.35


@pytest.mark.parametrize("shape", [(3, 4), (3, 9)])
def test_orthogonalize_of_zero_is_zero(shape):
    assert orthogonalize(torch.zeros(shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_is_torchs_muon_without_its_rounding(weight_decay):
    torch.manual_seed(0)
    ours = torch.randn(8, 24)
    theirs = ours.clone()
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": weight_decay}
    optimizers = [
        Muon([ours], **settings),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),
    ]
    start = ours.clone()
    for _ in range(10):
        ours.grad = torch.randn(8, 24)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # torch iterates in bfloat16: 8 bits of mantissa.
    torch.testing.assert_close(ours - start, theirs - start, atol=0.01, rtol=0.02)


def test_a_kernel_steps_as_the_matrix_of_its_flattened_patches():
    torch.manual_seed(0)
    kernel = torch.randn(6, 2, 3, 3)
    matrix = kernel.flatten(1).clone()
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_step_evaluates_a_closure_with_gradients_and_returns_its_loss():
    layer = nn.Linear(3, 2, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_bad_arguments_are_refused():
    matrix = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        Muon([matrix], lr=-1.0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        Muon([matrix], momentum=1.0)
    with pytest.raises(ValueError, match="give it to AdamW"):
        Muon([torch.zeros(3)])
