"""Optimizer state at a refresh: gradient-like buffers follow exactly, second moments are kept, the rest is named."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import fold, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.readers import originals
from natural_gradient.cases_natural_gradient import layers_of, perceptron, train, vectors

ELEMENTWISE = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}, "momentum_buffer"),
    "Nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, "momentum_buffer"),
    "Adam": (torch.optim.Adam, {}, "exp_avg"),
    "AdamW, foreach": (torch.optim.AdamW, {"foreach": True}, "exp_avg"),
    "AMSGrad": (torch.optim.Adam, {"amsgrad": True}, "exp_avg"),
    "NAdam": (torch.optim.NAdam, {}, "exp_avg"),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}, "grad_avg"),
}


def transform(layer):
    """M with [W b] = [W' d] M, written out."""
    fisher = fisher_of(layer)
    root, mean = fisher.root.dense(), fisher.mean
    top = torch.cat([root, -(root @ mean)[:, None]], 1)
    return torch.cat([top, torch.cat([torch.zeros(len(mean)), torch.ones(1)])[None]], 0)


def joined(weight, bias):
    return torch.cat([weight, bias[:, None]], 1)


def plain_gradient(layer, weight, bias):
    """A gradient-like pair of a reconstructed layer, in the coordinates of [W b]."""
    return joined(weight, bias) @ torch.linalg.inv(transform(layer)).T


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("rank", [None, 3])
def test_gradient_like_buffers_and_pending_gradients_stay_the_same_plain_vector(name, rank):
    make, options, key = ELEMENTWISE[name]
    model, (inputs, targets) = reconstruct(perceptron(), rank=rank, refresh_every=4), vectors()
    optimizer = make(model.parameters(), lr=0.01, **options)
    train(model, optimizer, inputs, targets, 3)
    functional.cross_entropy(model(inputs), targets).backward()
    layer = model[2]
    weight, bias = originals(layer)

    def plain():
        buffers = optimizer.state[weight][key], optimizer.state[bias][key]
        return plain_gradient(layer, *buffers), plain_gradient(layer, weight.grad, bias.grad)

    before, old = plain(), transform(layer)
    fisher_of(layer).observe(torch.randn(64, 9) + 2)
    refresh(model, optimizer)
    assert not torch.allclose(transform(layer), old)
    torch.testing.assert_close(plain(), before)


def test_second_moments_are_kept():
    model, (inputs, targets) = reconstruct(perceptron(), refresh_every=4), vectors()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, inputs, targets, 3)
    before = optimizer.state[originals(model[0])[0]]["exp_avg_sq"].clone()
    fisher_of(model[0]).observe(torch.randn(64, 7))
    refresh(model, optimizer)
    assert torch.equal(optimizer.state[originals(model[0])[0]]["exp_avg_sq"], before)


def test_an_averaged_parameter_follows_as_a_value():
    model, (inputs, targets) = reconstruct(perceptron(), refresh_every=2, statistics_every=1), vectors()
    optimizer = torch.optim.ASGD(model.parameters(), lr=0.01, t0=0)
    train(model, optimizer, inputs, targets, 6)
    layer = model[0]

    def average():
        weight, bias = (optimizer.state[tensor]["ax"] for tensor in originals(layer))
        return joined(weight, bias) @ transform(layer)

    before = average()
    fisher_of(layer).observe(torch.randn(64, 7))
    refresh(model, optimizer)
    torch.testing.assert_close(average(), before)


def test_a_weight_of_two_optimizers_takes_the_momentum_of_both_along():
    torch.manual_seed(0)
    trunk, heads = nn.Linear(7, 9), nn.ModuleList([nn.Linear(9, 3), nn.Linear(9, 3)])
    model = reconstruct(nn.ModuleList([trunk, heads]), include=["0"], statistics_every=1, refresh_every=1)
    optimizers = [torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.01, momentum=0.9) for head in heads]
    inputs, targets = vectors()
    weight, bias = originals(trunk)
    checked = 0
    for turn in range(10):
        own, other = optimizers[turn % 2], optimizers[1 - turn % 2]
        buffers = [other.state.get(each, {}).get("momentum_buffer") for each in (weight, bias)]
        before = plain_gradient(trunk, *buffers) if buffers[0] is not None else None
        model.zero_grad()
        functional.cross_entropy(heads[turn % 2](trunk(inputs * (1 + turn)).tanh()), targets).backward()
        old = transform(trunk)
        own.step()
        if before is not None and not torch.equal(transform(trunk), old):
            torch.testing.assert_close(plain_gradient(trunk, *buffers), before)
            checked += 1
    assert checked > 3


@pytest.mark.parametrize("mode", ["input", "kronecker"])
@pytest.mark.parametrize("alike", [True, False])
def test_momentum_of_biases_in_an_optimizer_of_their_own(mode, alike):
    model, (inputs, targets) = reconstruct(perceptron(), mode=mode, statistics_every=1, refresh_every=4), vectors()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [
        torch.optim.SGD(weights, lr=0.01, momentum=0.9),
        torch.optim.SGD(biases, lr=0.02, momentum=0.9 if alike else 0.5),
    ]
    layer = model[2]
    (weight, bias), fisher = originals(layer), fisher_of(layer)

    def plain():
        # What [W' d] = T⁻¹ [W b] M⁻¹ makes of gradients: T from the left, and the weight's share of the mean beside it.
        of_weight, of_bias = (o.state[p]["momentum_buffer"] for o, p in zip(optimizers, (weight, bias), strict=True))
        output = torch.eye(6) if fisher.output is None else fisher.output.dense()
        of_weight, of_bias = torch.linalg.solve(output, of_weight), torch.linalg.solve(output, of_bias)
        inverse = torch.linalg.inv(fisher.root.dense())
        return of_weight @ inverse + (of_bias[:, None] * fisher.mean if alike else 0.0), of_bias

    for turn in range(6):
        model.zero_grad()
        functional.cross_entropy(model(inputs * (1 + turn)), targets).backward()
        if turn == 5:
            before, old = plain(), transform(layer)
            refresh(model, optimizers[0])
            assert not torch.allclose(transform(layer), old)
            torch.testing.assert_close(plain(), before)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_on_the_weights_beside_another_optimizer_on_the_biases():
    model, (inputs, targets) = reconstruct(perceptron(), statistics_every=1, refresh_every=1), vectors()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [torch.optim.Muon(weights, lr=0.01), torch.optim.SGD(biases, lr=0.01, momentum=0.9)]
    losses = []
    for _ in range(10):
        loss = functional.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    assert [fisher_of(layer).steps for layer in layers_of(model)] == [10, 10, 10]
    weight = originals(model[0])[0]
    before = optimizers[0].state[weight]["momentum_buffer"].double() @ torch.linalg.inv(
        fisher_of(model[0]).root.dense()
    )
    fisher_of(model[0]).observe(torch.randn(64, 7))
    refresh(model, optimizers[0])
    after = optimizers[0].state[weight]["momentum_buffer"].double() @ torch.linalg.inv(fisher_of(model[0]).root.dense())
    torch.testing.assert_close(after, before)


def test_fold_takes_the_state_to_plain_coordinates():
    model, (inputs, targets) = reconstruct(perceptron()), vectors()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, inputs, targets, 3)
    layer = model[0]
    expected = plain_gradient(layer, *(optimizer.state[tensor]["momentum_buffer"] for tensor in originals(layer)))
    fold(model, optimizer)
    torch.testing.assert_close(joined(*(optimizer.state[p]["momentum_buffer"] for p in layer.parameters())), expected)


class Hoarder(torch.optim.SGD):
    """An optimizer with a buffer that nobody knows."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["hoard"] = torch.ones_like(parameter)
        return super().step(closure)


def test_unknown_buffers_are_named_and_left_alone():
    model, (inputs, targets) = reconstruct(nn.Sequential(nn.Linear(7, 3))), vectors()
    optimizer = Hoarder(model.parameters(), lr=0.01)
    train(model, optimizer, inputs, targets, 1)
    with pytest.warns(UserWarning, match="Hoarder keeps hoard, which refresh does not know how to carry"):
        refresh(model, optimizer)
    assert torch.equal(optimizer.state[originals(model[0])[0]]["hoard"], torch.ones(3, 7))


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Adamax", "RAdam", "Rprop", "RMSprop", "Adafactor"])
def test_every_elementwise_optimizer_of_torch_runs_without_a_warning(name):
    model, (inputs, targets) = reconstruct(perceptron(), statistics_every=1, refresh_every=2), vectors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(model, getattr(torch.optim, name)(model.parameters(), lr=0.01), inputs, targets, 12)
    assert losses[-1] < losses[0]


class Lister(torch.optim.SGD):
    """An optimizer that keeps a list of matrices for each parameter."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["bases"] = [torch.eye(len(parameter))]
        return super().step(closure)


def test_lists_of_tensors_are_unknown_as_well():
    model, (inputs, targets) = reconstruct(nn.Sequential(nn.Linear(7, 3))), vectors()
    optimizer = Lister(model.parameters(), lr=0.01)
    train(model, optimizer, inputs, targets, 1)
    with pytest.warns(UserWarning, match="Lister keeps bases, which refresh does not know how to carry"):
        refresh(model, optimizer)


class ScheduleFree(torch.optim.SGD):
    """An optimizer that keeps another iterate beside the parameter, as schedule-free ones do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("z", parameter.detach().clone())
        return super().step(closure)


def test_another_iterate_is_carried_as_a_value():
    model, (inputs, targets) = reconstruct(nn.Sequential(nn.Linear(7, 3))), vectors()
    optimizer = ScheduleFree(model.parameters(), lr=0.0)
    train(model, optimizer, inputs, targets, 1)
    refresh(model, optimizer)
    for parameter in originals(model[0]):  # it was the parameter, and is again in the new coordinates
        torch.testing.assert_close(optimizer.state[parameter]["z"], parameter.detach())
