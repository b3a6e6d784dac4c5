"""The trust region's pure functions against the divergence that they model."""

import math

import pytest
import torch

from fisherlayers.inverse_root import LowRank, random_basis
from fisherlayers.natural_gradient.exact import exact_information
from fisherlayers.natural_gradient.trust_region import (
    adapted_damping,
    clip_factor,
    kronecker_divergence,
    reduction_ratio,
    whitened,
)
from fisherlayers.root import LowRankRoot


def test_the_divergence_is_the_quadratic_form_of_the_kronecker_product():
    step, inputs, gradients = torch.randn(3, 4), torch.randn(4, 4), torch.randn(3, 3)
    inputs, gradients = inputs @ inputs.T, gradients @ gradients.T
    vector = step.T.reshape(-1)
    expected = 0.5 * vector @ torch.kron(inputs, gradients) @ vector
    torch.testing.assert_close(kronecker_divergence(step, inputs, gradients), expected)


def test_for_softmax_regression_on_one_input_it_is_the_divergence_itself_to_second_order():
    model, inputs = torch.nn.Linear(4, 3), torch.randn(1, 4)
    p = model(inputs).softmax(1)[0].detach()
    homogeneous = torch.cat([inputs, torch.ones(1, 1)], 1)
    step = torch.randn(3, 5)
    model_of = kronecker_divergence(step, homogeneous.T @ homogeneous, torch.diag(p) - torch.outer(p, p))
    vector = torch.cat([step[:, :-1].reshape(-1), step[:, -1]])
    torch.testing.assert_close(model_of, 0.5 * vector @ exact_information(model, inputs) @ vector)
    size = 1e-4
    with torch.no_grad():
        model.weight += size * step[:, :-1]
        model.bias += size * step[:, -1]
    q = model(inputs).softmax(1)[0].detach()
    assert float((p * (p / q).log()).sum()) == pytest.approx(size**2 * float(model_of), rel=1e-3)


def test_the_covariance_of_a_whitened_input_is_exact_along_the_basis_and_the_mean_elsewhere():
    covariance = torch.randn(7, 7).double()
    covariance = covariance @ covariance.T
    low_rank = LowRank(torch.tensor(0.4).double(), random_basis(7, 3), torch.tensor([0.1, 0.2, 2.0]).double())
    root = LowRankRoot(low_rank).dense()
    exact, found = root @ covariance @ root, whitened(LowRankRoot(low_rank), covariance).dense()
    basis = low_rank.basis
    rest = torch.eye(7).double() - basis @ basis.T
    torch.testing.assert_close((basis.T @ found @ basis).diagonal(), (basis.T @ exact @ basis).diagonal())
    torch.testing.assert_close(rest @ found @ rest, rest * (rest @ exact).trace() / 4)


def test_a_clipped_step_reaches_the_limit_exactly_and_a_short_one_is_left_alone():
    assert clip_factor(0.5, 1.0) == clip_factor(1.0, 1.0) == clip_factor(0.0, 1.0) == 1.0
    assert clip_factor(8.0, 2.0) ** 2 * 8.0 == pytest.approx(2.0)
    assert clip_factor(math.nan, 1.0) == clip_factor(math.inf, 1.0) == 0.0


def test_the_ratio_of_a_quadratic_loss_is_one():
    hessian, gradient = torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, -2.0])
    step = -0.1 * gradient
    change = float(gradient @ step + 0.5 * step @ hessian @ step)
    assert reduction_ratio(5.0, 5.0 + change, change) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="predicted must be negative"):
        reduction_ratio(1.0, 0.9, 0.0)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.2, 1.0), (0.76, 1.0), (0.75, 2.0), (0.25, 2.0), (0.2, 4.0), (-3.0, 4.0), (math.nan, 4.0), (-math.inf, 4.0)],
)
def test_damping_falls_where_the_model_was_good_and_rises_where_it_was_not(ratio, expected):
    assert adapted_damping(2.0, ratio, factor=2.0) == expected


def test_damping_stays_within_its_bounds():
    assert adapted_damping(2.0, 1.0, factor=10.0, lowest=0.5) == 0.5
    assert adapted_damping(2.0, -1.0, factor=10.0, highest=3.0) == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1.0}, "factor must be more than 1, got 1.0"),
        ({"lowest": 0.0}, "bounds must satisfy 0 < lowest"),
        ({"lowest": 2.0, "highest": 1.0}, "bounds must satisfy"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        adapted_damping(1.0, 0.5, **arguments)
