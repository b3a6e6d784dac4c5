"""The trust region: steps of any optimizer change a layer's outputs by no more than was asked for."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights
from fisherlayers.natural_gradient.readers import originals
from natural_gradient.cases_natural_gradient import convolutional, images, layers_of, perceptron, train, vectors
from natural_gradient.references_natural_gradient import unfolded

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=3.0, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.3),
}


@pytest.mark.parametrize("mode", ["input", "kronecker"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("make", "data"), [(perceptron, vectors), (convolutional, images)], ids=["mlp", "conv"])
def test_a_step_that_is_too_long_changes_the_outputs_by_the_limit(make, data, optimizer, mode):
    inputs, targets = data()
    model = reconstruct(make(), mode=mode, rank=None, trust_region=0.1, statistics_every=1)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepper, inputs, targets, 2)
    before = copy.deepcopy(model)
    train(model, stepper, inputs, targets, 1)
    for old, new in zip(before, model, strict=True):
        if old in layers_of(before):
            # Both read the same inputs, those that the statistics of the step come from.
            step = new(inputs).detach() - old(inputs).detach()
            rows = inputs[None] if isinstance(old, nn.Linear) else unfolded(old, inputs)
            assert step.square().mean() < 1.5 * 0.1**2 * rows.square().mean()
        inputs = old(inputs).detach()


def test_the_change_is_that_of_the_outputs_exactly_where_the_statistics_are_those_of_the_batch():
    inputs = torch.randn(40, 7) @ torch.randn(7, 7) + 2
    layer = nn.Linear(7, 5)
    model = reconstruct(layer, mode="kronecker", rank=None, trust_region=0.1, decay=0.0, statistics_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for step in range(4):
        before = model(inputs).detach()
        optimizer.zero_grad()
        (model(inputs) - torch.ones(40, 5)).square().sum().backward()
        optimizer.step()
        power = inputs.square().mean()
        change = (model(inputs).detach() - before).square().mean()
        if step in (0, 1, 2):  # refreshed at these steps, from this very batch
            assert float(change / power) == pytest.approx(0.1**2)


def test_a_low_rank_region_measures_the_same_along_its_basis():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator) @ torch.randn(6, 40, generator=generator) + 1
    ends = []
    for rank in (None, 6):
        torch.manual_seed(0)
        model = reconstruct(nn.Linear(40, 3), rank=rank, trust_region=0.02, statistics_every=1, refresh_every=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        for _ in range(12):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
        ends.append(model(inputs))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-8)


def test_short_steps_are_left_alone():
    inputs, targets = vectors()
    ends = []
    for limit in (None, 10.0):
        model = reconstruct(perceptron(), trust_region=limit, refresh_every=3)
        train(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), inputs, targets, 10)
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*ends)


def test_a_learning_rate_that_leads_nowhere_without_it_converges():
    inputs, targets = vectors()
    finals = []
    for limit in (None, 0.03):
        model = reconstruct(perceptron(), mode="kronecker", rank=None, trust_region=limit, refresh_every=5)
        losses = train(model, torch.optim.SGD(model.parameters(), lr=3.0, momentum=0.9), inputs, targets, 80)
        finals.append(losses[-1])
    without, with_region = finals
    assert with_region < 0.2
    assert not without < 0.5


def test_a_layer_of_zeros_can_leave_zero_and_a_step_that_is_not_finite_is_taken_back():
    inputs, targets = vectors()
    model = reconstruct(perceptron(), trust_region=0.1)
    with torch.no_grad():
        model[-1].weight = torch.zeros(3, 6)
        model[-1].bias = torch.zeros(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, inputs, targets, 1)
    assert model[-1].weight.abs().max() > 0
    before = plain_state_dict(model)
    model.zero_grad()
    functional.cross_entropy(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad.fill_(torch.nan)
    optimizer.step()
    torch.testing.assert_close(plain_state_dict(model), before)


def test_every_kind_of_layer_keeps_to_it():
    torch.manual_seed(0)
    settings = {"trust_region": 0.03, "statistics_every": 1, "refresh_every": 2}
    attention = reconstruct(nn.MultiheadAttention(8, 2, batch_first=True), mode="kronecker", **settings)
    recurrent = reconstruct(nn.LSTM(8, 6), mode="kronecker", **settings)
    transposed = reconstruct(nn.ConvTranspose2d(2, 4, 3, groups=2), mode="kronecker", **settings)
    calls = {
        attention: lambda: attention(torch.randn(4, 5, 8), *[torch.randn(4, 6, 8)] * 2)[0],  # a root for each block
        recurrent: lambda: recurrent(torch.randn(4, 5, 8))[0],
        transposed: lambda: transposed(torch.randn(4, 2, 6, 6)),
    }
    for model, call in calls.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
        for _ in range(6):
            optimizer.zero_grad()
            call().square().sum().backward()
            optimizer.step()
        loose = [p.abs().max() for fisher in fisher_weights(model) for p in [fisher.forward(fisher.weight)]]
        assert max(loose) < 2.0
        again = copy.deepcopy(model)
        again.load_state_dict(model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), model.buffers(), strict=True))


def test_it_adds_nothing_where_it_is_not_asked_for():
    assert fisher_of(reconstruct(nn.Linear(3, 3))).region is None
    assert fisher_of(reconstruct(nn.Linear(3, 3), mode="kronecker")).region.limit == 0.03


@pytest.mark.parametrize("value", [0.0, -1.0, "wide"])
def test_limits_out_of_range(value):
    with pytest.raises(ValueError, match="trust_region must be a positive number, None or 'auto'"):
        reconstruct(nn.Linear(3, 3), trust_region=value)


def test_a_bias_with_an_optimizer_of_its_own_is_limited_as_well():
    inputs = torch.randn(40, 7) @ torch.randn(7, 7) + 2
    model = reconstruct(nn.Linear(7, 5), rank=None, trust_region=0.1, decay=0.0, statistics_every=1, refresh_every=1)
    optimizers = [torch.optim.SGD([parameter], lr=50.0) for parameter in model.parameters()]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(inputs) - torch.ones(40, 5)).square().sum().backward()
        for optimizer in optimizers:
            before = model(inputs).detach()
            optimizer.step()
            change = (model(inputs).detach() - before).square().mean() / inputs.square().mean()
            assert float(change) == pytest.approx(0.1**2)


def test_a_layer_that_has_seen_nothing_takes_whole_steps():
    model = reconstruct(nn.Linear(3, 2), trust_region=1e-6).eval()
    weight = originals(model)[0]
    before = weight.detach().clone()
    model(torch.randn(5, 3)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(weight.detach(), before - 0.1 * weight.grad)
