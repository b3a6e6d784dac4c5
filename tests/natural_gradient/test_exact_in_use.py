"""The exact natural gradient as an optimizer among others: copies, precisions, shared layers, what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.natural_gradient.exact import exact_information
from natural_gradient.references_natural_gradient import fisher_by_labels
from natural_gradient.test_exact import small


def training(model, optimizer, steps=3):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(16, 4, generator=generator), torch.arange(16) % 3
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("form", ["dense", "samples"])
def test_copies_of_model_and_optimizer_go_on_alike(form, observed):
    model = small()
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1, momentum=0.5, form=form)
    training(model, optimizer)
    if observed:
        optimizer.observe(torch.ones(5, 4))
    copies = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    expected = training(model, optimizer)
    for pair in copies:
        assert training(*pair) == expected
        assert pair[1]._model is pair[0]


def test_what_the_optimizer_cannot_serve_is_said():
    model = small()
    optimizer = ExactNaturalGradient(model)
    with pytest.raises(ValueError, match="has one group"):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    model[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="other parameters of the model require a gradient"):
        training(model, optimizer, 1)
    normalised = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"batch normalisation \(layer '1'\)"):
        training(normalised, ExactNaturalGradient(normalised), 1)
    training(normalised, ExactNaturalGradient(normalised.eval()), 0)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        ExactNaturalGradient(3)
    with pytest.raises(TypeError, match="lr must be a number, got 'a'"):
        ExactNaturalGradient(model, lr="a")
    follower = ExactNaturalGradient(small())
    with pytest.raises(TypeError, match="called with one tensor, got 2 arguments"):
        follower._model(torch.ones(1, 4), None)


@pytest.mark.parametrize("form", ["dense", "samples"])
def test_half_precision_and_inputs_by_name(form):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small().bfloat16()

        def forward(self, inputs):
            return self.inner(inputs)

    model = Named()
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1, form=form)
    inputs, targets = torch.randn(16, 4).bfloat16(), torch.arange(16) % 3
    losses = []
    for _ in range(10):
        loss = functional.cross_entropy(model(inputs=inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("form", ["dense", "samples"])
def test_a_layer_that_is_registered_twice_is_trained_and_tied_weights_count_once(form):
    torch.manual_seed(0)
    twice, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = twice.weight
    model = nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh(), tied, nn.Linear(4, 3))
    torch.testing.assert_close(
        exact_information(model, torch.ones(2, 4)), fisher_by_labels(model, torch.ones(2, 4)), rtol=1e-9, atol=1e-12
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = ExactNaturalGradient(model, lr=0.1, damping=0.1, form=form)
    training(model, optimizer)
    assert [id(p) for p in model.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
