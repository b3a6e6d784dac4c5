"""The exact natural gradient at the ends of precision: little damping, certain outputs, what is not finite."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.natural_gradient.exact import exact_information
from fisherlayers.natural_gradient.scores import damped_solve
from natural_gradient.references_natural_gradient import fisher_by_labels
from natural_gradient.test_exact import small


def deep():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5))


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().double()


@pytest.mark.parametrize(("damping", "error"), [(1e-3, 1e-4), (1e-5, 1e-3), (1e-7, 1e-2)])
def test_steps_in_float32_are_those_in_float64(damping, error):
    first = deep()
    inputs, targets = torch.randn(400, 8), torch.randint(5, (400,))

    def change(dtype, form):
        model = copy.deepcopy(first).to(dtype)
        before = flat(model)
        optimizer = ExactNaturalGradient(model, damping=damping, form=form)
        functional.cross_entropy(model(inputs.to(dtype)), targets).backward()
        optimizer.step()
        return flat(model) - before

    expected = change(torch.float64, "dense")
    for form in ("dense", "samples"):
        assert (change(torch.float32, form) - expected).norm() < error * expected.norm()


def test_the_information_is_float64_and_summed_in_pieces():
    # 27 parameters and 3 outputs: 9 samples a piece.
    model, inputs = small().float(), torch.randn(31, 4).float()
    information = exact_information(model, inputs)
    assert information.dtype == torch.float64
    expected = fisher_by_labels(copy.deepcopy(model).double(), inputs.double())
    torch.testing.assert_close(information, expected, rtol=1e-5, atol=1e-7)


def test_damping_below_rounding_takes_negative_eigenvalues_for_none():
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    for values, ridge in (([2.0, 1.0, -1e-6], 1e-8), ([2.0, 1.0, 0.5], 0.1)):
        matrix = turn @ torch.diag(torch.tensor(values)) @ turn.T
        inverse = torch.tensor([1 / (max(value, 0) + ridge) for value in values])
        vector = torch.randn(3)
        torch.testing.assert_close(damped_solve(matrix, vector, ridge), turn @ (inverse * (turn.T @ vector)))


@pytest.mark.parametrize("form", ["dense", "samples"])
@pytest.mark.parametrize("bias", [88.0, 90.0, 95.0, 100.0, 104.0, 300.0])
def test_where_float32_cannot_tell_the_information_from_none_the_parameters_stay(form, bias):
    inputs = torch.randn(40, 8).float()
    for targets in (torch.zeros(40, dtype=torch.long), torch.arange(40) % 5):  # right and wrong
        model = deep().float()
        with torch.no_grad():
            model[-1].bias[0] = bias
        before = flat(model)
        optimizer = ExactNaturalGradient(model, form=form, damping=1e-2)
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        assert torch.equal(flat(model), before)


@pytest.mark.parametrize("form", ["dense", "samples"])
@pytest.mark.parametrize("bias", [90.0, 300.0, 690.0])
def test_the_natural_gradient_does_not_depend_on_how_certain_the_outputs_are(form, bias):
    # Of right answers: with the other answers' probability, from exp(-60) down, both F and the gradient shrink.
    inputs, changes = torch.randn(40, 8), []
    for certain in (60.0, bias):
        model = deep()
        with torch.no_grad():
            model[-1].bias[0] = certain
        before = flat(model)
        optimizer = ExactNaturalGradient(model, form=form, damping=1e-2)
        functional.cross_entropy(model(inputs), torch.zeros(40, dtype=torch.long)).backward()
        optimizer.step()
        changes.append(flat(model) - before)
    torch.testing.assert_close(*changes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["dense", "samples"])
def test_a_batch_without_a_finite_divergence_adds_nothing(form):
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    optimizer = ExactNaturalGradient(model, lr=0.1, damping=0.1, kl_clip=0.1, momentum=0.5, form=form)
    places = [flat(model)]
    for broken in (False, True):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        if broken:
            model[0].weight.grad[0, 0] = float("inf")
        optimizer.step()
        places.append(flat(model))
    torch.testing.assert_close(places[2] - places[1], 0.5 * (places[1] - places[0]))


def test_batches_in_memory_that_is_used_again_are_all_followed():
    inputs, targets = torch.randn(12, 4), torch.randint(0, 3, (12,))
    memory, ends = torch.empty(6, 4), []
    for by_hand in (True, False):
        model = small()
        optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1)
        if by_hand:
            optimizer.observe(inputs)
        for half in (slice(0, 6), slice(6, 12)):
            memory.copy_(inputs[half])
            (functional.cross_entropy(model(memory), targets[half]) / 2).backward()
        optimizer.step()
        ends.append(flat(model))
    torch.testing.assert_close(*ends)
