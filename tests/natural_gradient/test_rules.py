"""A rule for a new kind of layer: made-up layers train as the linear layers that they are made of."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import Layout, Rule, Weight, fold, plain_state_dict, reconstruct, register_rule
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights
from fisherlayers.natural_gradient.rules import rule_of
from natural_gradient.cases_natural_gradient import train, vectors

SETTINGS = {"damping": 0.1, "decay": 0.9, "refresh_every": 3, "statistics_every": 1}


class Dense(nn.Module):
    """A linear layer that keeps its weight as (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.offset = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.kernel + self.offset


class DenseRule(Rule):
    def weights(self, layer):
        return [Weight("kernel", "offset", Layout(transposed=True))]

    def input_rows(self, layer, call):
        return {"kernel": call.argument(0, "x").flatten(0, -2)}


class Pair(nn.Module):
    """Two weights of different inputs that share one bias, the second in a submodule, and a scale of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 3) / 2)
        self.second = nn.Parameter(torch.randn(5, 4) / 2)
        self.bias = nn.Parameter(torch.randn(9))
        self.scale = nn.Parameter(torch.ones(9))
        self.inner = nn.Linear(9, 2)

    def forward(self, x):
        hidden = torch.cat([x[:, :3] @ self.first.T, x[:, 3:] @ self.second.T], 1) + self.bias
        hidden = (self.scale * hidden).tanh()
        return functional.linear(hidden, self.inner.weight, self.inner.bias)


class PairRule(Rule):
    def weights(self, layer):
        return [
            Weight("first", "bias", part=slice(None, 4)),
            Weight("second", "bias", part=slice(4, None)),
            Weight("inner.weight", "bias"),
        ]

    def input_rows(self, layer, call):
        (x,) = call.args
        seen = torch.cat([x[:, :3] @ layer.first.T, x[:, 3:] @ layer.second.T], 1) + layer.bias
        return {"first": x[:, :3], "second": x[:, 3:], "inner.weight": (layer.scale * seen).tanh()}


class Apart(nn.Module):
    """The same as ``Pair``, of linear layers."""

    def __init__(self, pair):
        super().__init__()
        self.first, self.second, self.inner = nn.Linear(3, 4), nn.Linear(4, 5), copy.deepcopy(pair.inner)
        self.scale = nn.Parameter(pair.scale.detach().clone())
        with torch.no_grad():
            self.first.weight.copy_(pair.first), self.second.weight.copy_(pair.second)
            self.first.bias.copy_(pair.bias[:4]), self.second.bias.copy_(pair.bias[4:])

    def forward(self, x):
        hidden = torch.cat([self.first(x[:, :3]), self.second(x[:, 3:])], 1)
        return self.inner((self.scale * hidden).tanh())


@pytest.fixture(autouse=True)
def _rules():
    register_rule(Dense, DenseRule())
    register_rule(Pair, PairRule())


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_transposed_weight_trains_as_a_linear_layer(rank):
    torch.manual_seed(0)
    ours = nn.Sequential(Dense(7, 5), nn.Tanh(), Dense(5, 3))
    linear = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for index in (0, 2):
            linear[index].weight.copy_(ours[index].kernel.T), linear[index].bias.copy_(ours[index].offset)
    reconstruct(ours, rank=rank, **SETTINGS), reconstruct(linear, rank=rank, **SETTINGS)
    inputs, targets = vectors()
    losses = train(ours, sgd(ours), inputs, targets, 30)
    assert losses == pytest.approx(train(linear, sgd(linear), inputs, targets, 30), rel=1e-9)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("rank", [None, 2])
def test_several_weights_with_slices_of_a_bias_train_as_linear_layers(rank):
    torch.manual_seed(0)
    pair = Pair()
    apart = Apart(pair)
    reconstruct(pair, rank=rank, **SETTINGS)
    with pytest.warns(UserWarning, match=r"left alone, trained as before:  \(Apart\)"):  # the scale
        reconstruct(apart, rank=rank, **SETTINGS)
    inputs, _ = vectors()
    targets = torch.arange(64) % 2
    losses = train(pair, sgd(pair), inputs, targets, 30)
    assert losses == pytest.approx(train(apart, sgd(apart), inputs, targets, 30), rel=1e-9)
    torch.testing.assert_close(pair.bias, torch.cat([apart.first.bias, apart.second.bias]))
    means = torch.cat([fisher_of(pair, "first").mean, fisher_of(pair, "second").mean])
    torch.testing.assert_close(means, inputs.mean(0))


def test_the_rule_of_the_documentation_takes_gpt2s_layers():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Conv1DRule(Rule):
        def weights(self, layer):
            return [Weight("weight", bias="bias", layout=Layout(transposed=True))]

        def input_rows(self, layer, call):
            return {"weight": call.argument(0, "x").flatten(0, -2)}

    register_rule(conv1d, Conv1DRule())
    inputs, targets = vectors()
    torch.manual_seed(0)
    made = nn.Sequential(conv1d(9, 7), nn.Tanh(), conv1d(3, 9))
    linear = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3))
    for ours, theirs in ((linear[0], made[0]), (linear[2], made[2])):
        ours.load_state_dict({"weight": theirs.weight.detach().T, "bias": theirs.bias.detach()})
    losses = [
        train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), inputs, targets, 10)
        for model in (reconstruct(made, **SETTINGS), reconstruct(linear, **SETTINGS))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_what_is_made_plain_again_is_what_was_there():
    torch.manual_seed(0)
    pair = Pair()
    names, parameters = list(pair.state_dict()), {id(p) for p in pair.parameters()}
    inputs, targets = vectors()[0], torch.arange(64) % 2
    optimizer = sgd(reconstruct(pair, **SETTINGS))
    assert {id(p) for p in pair.parameters()} == parameters
    train(pair, optimizer, inputs, targets, 5)
    before, exported = pair(inputs), plain_state_dict(pair)
    assert list(exported) == names
    fold(pair, optimizer)
    torch.testing.assert_close(pair(inputs), before)
    assert type(pair) is Pair
    assert list(pair.state_dict()) == names
    fresh = reconstruct(Pair(), **SETTINGS)
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(inputs), before)


def test_plain_values_load_into_moved_coordinates():
    pair, other = reconstruct(Pair(), **SETTINGS), Pair()
    inputs = vectors()[0]
    train(pair, sgd(pair), inputs, torch.arange(64) % 2, 5)
    pair.load_state_dict(other.state_dict())
    torch.testing.assert_close(pair(inputs), other(inputs))
    torch.testing.assert_close(pair.bias, other.bias)


def test_inner_modules_of_a_rule_are_chosen_by_their_own_name():
    model = nn.Sequential(Pair(), nn.Linear(2, 2))
    reconstruct(model, exclude=["0.inner"])
    assert len(list(fisher_weights(model))) == 3
    assert fisher_of(model[0].inner) is None
    model = nn.Sequential(Pair(), nn.Linear(2, 2))
    # Read past its own forward: without the rule of its parent it has no inputs.
    with pytest.warns(UserWarning, match=r"0\.inner \(Linear\)"):
        reconstruct(model, exclude=["0"])
    assert len(list(fisher_weights(model))) == 1


def test_layers_are_chosen_by_class():
    model = nn.Sequential(Dense(7, 5), nn.Linear(5, 5), nn.Conv1d(5, 5, 1))
    reconstruct(model, include=[Dense, nn.Conv1d], exclude=["0"])
    assert [len(list(fisher_weights(layer))) for layer in model] == [0, 0, 1]
    with pytest.raises(ValueError, match=r"exclude: the class <class '.*LSTM'> matches no module"):
        reconstruct(Dense(2, 2), exclude=[nn.LSTM])
    with pytest.raises(ValueError, match="include must be a sequence of patterns or classes, got the class"):
        reconstruct(Dense(2, 2), include=nn.Linear)


def test_a_subclass_takes_the_rule_of_its_base_unless_it_has_its_own():
    class Special(Dense):
        pass

    special = Special(3, 2)
    assert rule_of(special) is rule_of(Dense(3, 2))
    own = DenseRule()
    register_rule(Special, own)
    assert rule_of(special) is own
    assert rule_of(nn.ReLU()) is None


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match=r"layer_type must be a class of torch\.nn\.Module, got 3"):
        register_rule(3, DenseRule())
    with pytest.raises(TypeError, match=r"rule must be an instance of .*Rule, got <class"):
        register_rule(Dense, DenseRule)


def test_layers_that_have_no_information_are_named():
    for layer, what in ((nn.Linear(3, 2, dtype=torch.complex64), "complex parameters"), (empty(), "without entries")):
        model = nn.Sequential(nn.Linear(3, 3), layer)
        with pytest.raises(ValueError, match=f"layer '1' has .*{what}: leave it out"):
            reconstruct(model)
        assert reconstruct(model, exclude=["1"]) is model


def empty():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its initialisation
        return nn.Linear(0, 2)
