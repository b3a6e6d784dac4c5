"""Signed power, L2 and intra-normalisation against their formulas, and at zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlayers.fisher_vectors.normalization import intra_normalize, l2_normalize, signed_power


@given(alpha=st.floats(0, 1), values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_signed_power_is_its_formula_and_odd(alpha, values):
    tensor = torch.tensor(values, dtype=torch.float64)
    expected = torch.tensor([(v > 0) - (v < 0) for v in values], dtype=torch.float64) * tensor.abs().pow(alpha)
    torch.testing.assert_close(signed_power(tensor, alpha), expected)
    torch.testing.assert_close(signed_power(-tensor, alpha), -expected)
    torch.testing.assert_close(signed_power(tensor.requires_grad_(), alpha).detach(), expected)


def test_signed_power_default_is_the_signed_square_root():
    assert signed_power(torch.tensor([4.0, -9.0, 0.0])).tolist() == [2.0, -3.0, 0.0]


def test_signed_power_has_a_finite_gradient_at_zero():
    values = torch.tensor([4.0, 0.0, -9.0], requires_grad=True)
    signed_power(values).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([1 / 4, 0.0, 1 / 6]))


def test_l2_gives_unit_rows_and_leaves_zero():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(l2_normalize(rows)[0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert l2_normalize(rows)[1].tolist() == [0.0, 0.0]
    assert float(l2_normalize(rows)[2].norm()) < 1e-7  # below the floor: not blown up to unit norm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("floor", [1e-12, 1e-60])
def test_zero_stays_zero_in_every_precision(dtype, floor):
    assert l2_normalize(torch.zeros(2, 3, dtype=dtype), floor=floor).tolist() == [[0.0] * 3] * 2
    assert intra_normalize(torch.zeros(8, dtype=dtype), 2, floor=floor).tolist() == [0.0] * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [6e-5, 1.0, 6e4])
def test_half_precision_is_normalised_in_single(dtype, size):
    values = (size * torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.5, 0.25, 0.0, -1.0]])).to(dtype).requires_grad_()
    result = l2_normalize(values)
    assert result.dtype == dtype
    exact = values.detach().double()
    expected = exact / exact.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(result.detach(), expected.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(intra_normalize(values[:1], 1).detach(), expected[:1].to(dtype), rtol=0, atol=0)
    result.sum().backward()
    assert bool(torch.isfinite(values.grad).all())


def test_intra_normalize_evens_out_the_components():
    components, features = 3, 2
    encoding = torch.randn(4, 2 * components * features, dtype=torch.float64)
    encoding.reshape(4, 2, components, features)[:, :, 1] = 0
    result = intra_normalize(encoding, components)
    for image in range(4):
        for k in range(components):
            columns = [part * components * features + k * features + d for part in range(2) for d in range(features)]
            part = encoding[image, columns]
            expected = part if k == 1 else part / part.norm()
            torch.testing.assert_close(result[image, columns], expected)


def test_bad_arguments():
    ones = torch.ones(2, 12)
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
            signed_power(ones, alpha)
    for floor in (0.0, -1.0):
        with pytest.raises(ValueError, match="floor must be positive"):
            l2_normalize(ones, floor=floor)
    for components in (0, 5):
        with pytest.raises(ValueError, match="12 columns and num_components"):
            intra_normalize(ones, components)


def test_signed_power_bounds_its_gradient_and_keeps_its_values():
    values = torch.tensor([1e-12, -1e-8, 1e-6, 1e-2], dtype=torch.float64, requires_grad=True)
    result = signed_power(values)
    torch.testing.assert_close(result.detach(), torch.tensor([1e-6, -1e-4, 1e-3, 1e-1], dtype=torch.float64))
    result.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([500.0, 500.0, 500.0, 5.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="gradient_floor must be positive"):
        signed_power(values, gradient_floor=0.0)
