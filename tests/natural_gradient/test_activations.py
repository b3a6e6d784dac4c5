"""The relative information of one unit against the derivatives of what it is the information of."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient.activations import Activation, activation_after, as_activation

Z = torch.linspace(-4, 4, 41, dtype=torch.float64)


def derivative(function):
    """The derivative of an elementwise function at Z, by autograd."""
    z = Z.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(z).sum(), z)
    return result


GAUSSIAN = {
    "linear": (as_activation("linear"), lambda z: z),
    "relu": (as_activation("relu"), functional.softplus),
    "leaky relu": (as_activation(nn.LeakyReLU(0.2)), lambda z: torch.logaddexp(0.2 * z, z)),
    "elu": (as_activation(nn.ELU(0.7)), lambda z: functional.elu(z, alpha=0.7)),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_gaussian_output_has_the_squared_slope_of_its_mean(name):
    activation, mean = GAUSSIAN[name]
    torch.testing.assert_close(activation.weight(Z), derivative(mean).square())


@pytest.mark.parametrize(("name", "labels"), [("sigmoid", (0.0, 1.0)), ("tanh", (-1.0, 1.0))])
def test_a_bernoulli_output_has_the_variance_of_its_score(name, labels):
    # p(y) such that E[y] is the activation: log p = y z - log(1 + e^z), or log((1 + y tanh z) / 2).
    expected = torch.zeros_like(Z)
    for label in labels:
        if name == "sigmoid":
            score = derivative(lambda z, y=label: y * z - functional.softplus(z))
            probability = torch.sigmoid(Z) if label else torch.sigmoid(-Z)
        else:
            score = derivative(lambda z, y=label: torch.log((1 + y * torch.tanh(z)) / 2))
            probability = (1 + label * torch.tanh(Z)) / 2
        expected += probability * score.square()
    torch.testing.assert_close(as_activation(name).weight(Z), expected)


def test_the_activation_is_the_given_one_the_next_one_or_unknown():
    block = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Dropout(), nn.ELU(0.3), block, nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)
    )
    assert activation_after(model, "0") == Activation("elu", 0.3)
    assert activation_after(model, "3.0") == Activation("tanh", 0.0)
    assert activation_after(model, "3.2") is None  # the last of an inner block: what follows is not seen
    assert activation_after(model, "4") is None  # GELU has no entry
    assert activation_after(model, "6") == Activation("linear", 0.0)
    assert activation_after(model, "3.2", {"4": "relu", "3.*": nn.LeakyReLU(0.5)}) == Activation("leaky_relu", 0.5)
    assert activation_after(nn.Linear(2, 2), "") == Activation("linear", 0.0)


def test_outside_of_a_sequential_nothing_is_guessed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.act = nn.ReLU()

    assert activation_after(Net(), "first") is None


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'gelu'"):
        as_activation("gelu")
