"""The exact natural gradient against its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.natural_gradient.exact import exact_information
from natural_gradient.references_natural_gradient import fisher_by_labels


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


def test_softmax_information_is_the_expected_outer_product_of_scores():
    model, inputs = small(), torch.randn(6, 4)
    torch.testing.assert_close(exact_information(model, inputs), fisher_by_labels(model, inputs))


def test_gaussian_information_of_a_linear_model_is_that_of_least_squares():
    model, inputs = nn.Linear(4, 2), torch.randn(20, 4)
    homogeneous = torch.cat([inputs, torch.ones(20, 1)], 1)
    moment = homogeneous.T @ homogeneous / 20
    information = exact_information(model, inputs, output="gaussian")
    torch.testing.assert_close(information[:8, :8], torch.kron(torch.eye(2), moment[:4, :4]))
    torch.testing.assert_close(information[8:, 8:], torch.eye(2))


def test_one_step_solves_least_squares():
    model, inputs, aims = nn.Linear(4, 2), torch.randn(30, 4), torch.randn(30, 2)
    optimizer = ExactNaturalGradient(model, lr=1.0, damping=1e-12, output="gaussian")
    optimizer.observe(inputs)
    (0.5 * (model(inputs) - aims).square().sum(1).mean()).backward()
    optimizer.step()
    homogeneous = torch.cat([inputs, torch.ones(30, 1)], 1)
    solution = torch.linalg.lstsq(homogeneous, aims).solution
    torch.testing.assert_close(model.weight, solution[:4].T)
    torch.testing.assert_close(model.bias, solution[4])


def test_a_step_is_the_damped_solve():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1)
    optimizer.observe(inputs)
    functional.cross_entropy(model(inputs), targets).backward()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    information = fisher_by_labels(model, inputs)
    damped = information + 0.1 * information.trace() / len(gradient) * torch.eye(len(gradient))
    optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters())
    torch.testing.assert_close(after, before - 0.3 * torch.linalg.solve(damped, gradient))


def test_the_path_does_not_depend_on_the_parametrization():
    # A network with W = A V computes the same function; with little damping so does a small natural step.
    torch.manual_seed(0)
    plain, mixing = nn.Linear(3, 3, bias=False), torch.randn(3, 3) + 2 * torch.eye(3)
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        other[1].weight.copy_(mixing)
        other[0].weight.copy_(torch.linalg.solve(mixing, plain.weight))
    other[1].requires_grad_(False)
    inputs, aims = torch.randn(20, 3), torch.randn(20, 3)
    for model in (plain, other):
        optimizer = ExactNaturalGradient(model, lr=0.5, damping=1e-10, output="gaussian")
        optimizer.observe(inputs)
        functional.mse_loss(model(inputs), aims).backward()
        optimizer.step()
    torch.testing.assert_close(plain(inputs), other(inputs), rtol=1e-6, atol=1e-7)


def test_a_closure_is_evaluated_once_and_its_loss_returned():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    optimizer = ExactNaturalGradient(model, lr=0.1, damping=1.0)
    optimizer.observe(inputs)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert closure() < first


def test_frozen_parameters_are_left_alone():
    model, inputs = small(), torch.randn(6, 4)
    model[0].requires_grad_(False)
    assert exact_information(model, inputs).shape == (12, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"output": "poisson"}, "output must be 'softmax' or 'gaussian', got 'poisson'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExactNaturalGradient(small(), **arguments)


def test_a_step_before_any_information():
    with pytest.raises(RuntimeError, match=r"call observe\(inputs\) before step"):
        ExactNaturalGradient(small()).step()


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (nn.Linear(4, 2), torch.zeros(0, 4), {}, "at least one sample"),
        (nn.Linear(4, 2), torch.zeros(3, 4), {"output": "poisson"}, "output must be"),
        (nn.Linear(4, 2), torch.zeros(3, 5, 4), {}, r"must return \(N, outputs\) for 3 inputs, got \(3, 5, 2\)"),
    ],
)
def test_information_of_bad_inputs(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        exact_information(model.double(), inputs.double(), **options)
