"""Mode ``unit``: descent on every unit's own coordinates, and the authors' released rule against a loop."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import COMPAT, fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import layers_of, perceptron, train, vectors
from natural_gradient.references_natural_gradient import turns, unfolded


def relu_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    )


class ReleasedDescent:
    """The released code: an information a hidden unit, one for all units of the first and of the last layer.

    G <- .995 G + .005 mean(σ(z)² x̃ x̃ᵀ) from the identity (1 for σ(z)² in those two layers), every ``refresh_every``
    steps inverted with 1e-4 of its trace on the diagonal. Two things differ from that code: it takes the statistics in
    a second forward pass after the step, and a new inverse serves from the next step on.
    """

    def __init__(self, layers, *, lr, refresh_every):
        self.layers, self.lr, self.refresh_every, self.steps = layers, lr, refresh_every, 0
        self.metrics = {layer: [torch.eye(layer.in_features + 1)] * layer.out_features for layer in layers}
        self.inverses = {}

    def step(self, inputs):
        for layer, rows in zip(self.layers, inputs, strict=True):
            homogeneous = torch.cat([rows, torch.ones(len(rows), 1)], 1)
            outer = layer in (self.layers[0], self.layers[-1])
            weights = [torch.cat([w, b[None]]).detach() for w, b in zip(layer.weight, layer.bias, strict=True)]
            for unit, weight in enumerate(weights):
                batch = torch.zeros(len(weight), len(weight))
                for row in homogeneous:
                    share = 1.0 if outer else torch.sigmoid(weight @ row) ** 2
                    batch += share * torch.outer(row, row) / len(rows)
                self.metrics[layer][unit] = 0.995 * self.metrics[layer][unit] + 0.005 * batch
            if self.steps % self.refresh_every == 0:
                self.inverses[layer] = [
                    torch.linalg.inv(g + 1e-4 * g.trace() * torch.eye(len(g))) for g in self.metrics[layer]
                ]
            with torch.no_grad():
                for unit, inverse in enumerate(self.inverses[layer]):
                    change = self.lr * inverse @ torch.cat([layer.weight.grad[unit], layer.bias.grad[unit : unit + 1]])
                    layer.weight[unit] -= change[:-1]
                    layer.bias[unit] -= change[-1]
        self.steps += 1


def seen_by(model, inputs):
    rows = []
    for module in model:
        if isinstance(module, nn.Linear):
            rows.append(inputs.detach())
        inputs = module(inputs)
    return rows


def test_the_compat_preset_takes_the_course_of_the_released_algorithm():
    plain, (inputs, targets) = relu_network(), vectors(rows=120)
    model = reconstruct(copy.deepcopy(plain), **(COMPAT | {"refresh_every": 4}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = ReleasedDescent(layers_of(plain), lr=0.1, refresh_every=4)
    for step in range(14):
        batch = slice(
            10 * (step % 12), 10 * (step % 12) + (4 if step % 5 == 2 else 10)
        )  # the last of an epoch is short
        (loss,) = train(model, optimizer, inputs[batch], targets[batch], 1)
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs[batch]), targets[batch])
        expected.backward()
        reference.step(seen_by(plain, inputs[batch]))
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(plain_state_dict(model), dict(plain.state_dict()), rtol=1e-8, atol=1e-10)


def test_the_compat_preset_is_the_released_codes_setting():
    assert (COMPAT["decay"], COMPAT["damping"], COMPAT["refresh_every"]) == (0.995, 1e-4, 100)
    model = reconstruct(relu_network(), **COMPAT)
    names = [fisher_of(layer).activation.name for layer in layers_of(model)]
    assert names == ["linear", "relu", "relu", "linear"]


class UnitDescent:
    """Every row of [W b] preconditioned by the inverse of its own weighted, damped, scaled information."""

    def __init__(self, layer, weight_of, *, lr, damping, decay, refresh_every, momentum=0.0):
        self.layer, self.weight_of, self.lr, self.damping = layer, weight_of, lr, damping
        self.decay, self.refresh_every, self.momentum = decay, refresh_every, momentum
        self.sums, self.total, self.steps, self.inverses = 0, 0, 0, []
        self.velocity = [0] * len(layer.weight)

    def step(self, rows):
        """``rows``: (N, D), or (groups, N, D)."""
        weight, bias = self.layer.weight.flatten(1), self.layer.bias
        groups = [rows] * len(weight) if rows.ndim == 2 else rows.repeat_interleave(len(weight) // len(rows), 0)
        moments = []
        for unit, x in enumerate(groups):
            homogeneous = torch.cat([x, torch.ones(len(x), 1)], 1)
            shares = self.weight_of((x @ weight[unit] + bias[unit]).detach())
            moments.append(homogeneous.T @ (shares[:, None] * homogeneous))
        self.sums = self.decay * self.sums + torch.stack(moments)
        self.total = self.decay * self.total + len(groups[0])
        if self.steps in turns(self.refresh_every, self.steps):
            information = self.sums / self.total
            typical = information[:, -1, -1].mean()
            self.inverses = [self.inverse(moment, typical) for moment in information]
        with torch.no_grad():
            for unit, inverse in enumerate(self.inverses):
                gradient = torch.cat([self.layer.weight.grad[unit].flatten(), self.layer.bias.grad[unit : unit + 1]])
                self.velocity[unit] = self.momentum * self.velocity[unit] + gradient
                change = self.lr * inverse @ self.velocity[unit]
                self.layer.weight[unit] -= change[:-1].reshape(self.layer.weight[unit].shape)
                self.layer.bias[unit] -= change[-1]
        self.steps += 1

    def inverse(self, moment, typical):
        share = moment[-1, -1]
        power, mean = moment[:-1, :-1] / share, moment[:-1, -1] / share
        covariance = power - torch.outer(mean, mean)
        damped = covariance + self.damping * covariance.trace() / len(mean) * torch.eye(len(mean))
        scale = min(power.trace(), 4 * covariance.trace()) / (covariance @ torch.linalg.inv(damped)).trace()
        whole = torch.ones(len(moment), len(moment))
        whole[:-1, :-1] = damped / scale + torch.outer(mean, mean)
        whole[:-1, -1] = whole[-1, :-1] = mean
        return torch.linalg.inv(whole) * (1 + self.damping) * typical / (share + self.damping * typical)


def test_descent_is_that_of_every_units_own_information():
    plain, (inputs, targets) = nn.Sequential(nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 3)), vectors()
    model = reconstruct(copy.deepcopy(plain), mode="unit", damping=0.3, decay=0.9, refresh_every=3, statistics_every=1,
                        rank=None)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    first = UnitDescent(plain[0], lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z)), lr=0.05, damping=0.3, decay=0.9,
                        refresh_every=3, momentum=0.9)  # fmt: skip
    last = UnitDescent(plain[2], torch.ones_like, lr=0.05, damping=0.3, decay=0.9, refresh_every=3, momentum=0.9)
    for _ in range(20):
        (loss,) = train(model, optimizer, inputs, targets, 1)
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs), targets)
        expected.backward()
        hidden = plain[:2](inputs).detach()
        first.step(inputs)
        last.step(hidden)
        assert loss == pytest.approx(expected.item(), rel=1e-9)


def test_a_grouped_convolution_has_an_information_for_each_channel():
    torch.manual_seed(0)
    plain, images = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh()), torch.randn(5, 4, 4, 4) + 0.5
    model = reconstruct(copy.deepcopy(plain), mode="unit", damping=0.3, refresh_every=2, statistics_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    reference = UnitDescent(plain[0], lambda z: 1 - z.tanh() ** 2, lr=0.02, damping=0.3, decay=0.95, refresh_every=2)
    for _ in range(6):
        for net in (model, plain):
            net.zero_grad()
            (net(images) - 0.5).square().sum().backward()
        optimizer.step()
        reference.step(unfolded(plain[0], images))
    torch.testing.assert_close(plain_state_dict(model), dict(plain.state_dict()), rtol=1e-8, atol=1e-10)


def test_accumulated_halves_count_as_the_whole_batch():
    inputs, targets = vectors()
    ends = []
    for halves in ([slice(0, 64)], [slice(0, 20), slice(20, 64)]):
        model = reconstruct(perceptron(), mode="unit", rank=None)
        for half in halves:
            functional.cross_entropy(model(inputs[half]), targets[half], reduction="sum").backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        ends.append(plain_state_dict(model))
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("settings", [{"mode": "unit"}, COMPAT], ids=["unit", "compat"])
def test_a_checkpoint_resumes_the_same_course_and_fold_keeps_the_outputs(settings):
    inputs, targets = vectors()
    settings = {**settings, "refresh_every": 3}
    model = reconstruct(relu_network(), **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, inputs, targets, 7)
    other = reconstruct(relu_network(), **settings)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    follower = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, inputs, targets, 9) == train(other, follower, inputs, targets, 9)
    before = model(inputs)
    torch.testing.assert_close(fold(model, optimizer)(inputs), before)
    assert list(model.state_dict()) == list(relu_network().state_dict())


class Hidden(nn.Module):
    """A network that does not say in its modules what follows a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_what_follows_a_layer_is_given_or_refused():
    with pytest.raises(ValueError, match=r"what follows layers 'first', 'second'.*activations=\{'first': 'relu'"):
        reconstruct(Hidden(), mode="unit")
    model = reconstruct(Hidden(), mode="unit", activations={"first": nn.Tanh(), "*": "linear"})
    assert fisher_of(model.first).activation.name == "tanh"
    assert fisher_of(model.second).output is None  # one information for all units: as in mode 'input'


def test_a_wide_layer_is_refused_unless_it_is_linear():
    wide = nn.Sequential(nn.Linear(1000, 600), nn.ReLU(), nn.Linear(600, 3))
    with pytest.raises(ValueError, match="1001 x 1001 matrix for each of the 600 units of layer '0'"):
        reconstruct(wide, mode="unit")
    reconstruct(wide, mode="unit", activations={"0": "linear"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": {"*": "relu"}}, "activations belongs to mode 'unit'"),
        ({"compat": True}, "compat belongs to mode 'unit'"),
        ({**COMPAT, "decay": 1.0}, "decay must be less than 1 with compat"),
        ({"mode": "unit", "activations": {"layer9": "relu"}}, "activations: the pattern 'layer9' matches no"),
        ({"mode": "unit", "activations": {"*": "gelu"}}, "activation must be one of"),
        ({"mode": "unit", "trust_region": 0.1}, "trust_region belongs to modes 'input' and 'kronecker'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(perceptron(), **arguments)
