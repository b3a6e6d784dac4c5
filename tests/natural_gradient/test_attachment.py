"""Parametrizations go on and come off without a trace: order of parameters, objects, strides."""

import copy

import pytest
import torch
from torch import nn

from fisherlayers import fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import perceptron, train, vectors


class LowRankAdapted(nn.Linear):
    """A linear layer with two matrices of its own, behind weight and bias."""

    def __init__(self):
        super().__init__(7, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 7)), nn.Parameter(torch.randn(3, 2))

    def forward(self, inputs):
        return super().forward(inputs) + inputs @ self.down.T @ self.up.T


class Attention(nn.MultiheadAttention):
    """Attention whose in-projection comes before two vectors that no local Fisher layer belongs to."""

    def __init__(self):
        super().__init__(7, 1, add_bias_kv=True)

    def forward(self, inputs):
        return super().forward(inputs, inputs, inputs)[0][:, :3]


def sharing():
    """Two linear layers with one bias."""
    first, second = nn.Linear(7, 7), nn.Linear(7, 7)
    second.bias = first.bias
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(7, 3))


MODELS = {"attention": Attention, "adapters": LowRankAdapted, "shared bias": sharing}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_parameters_keep_their_order_and_their_objects(make):
    torch.manual_seed(0)
    model = make()
    plain, keys = list(model.parameters()), list(model.state_dict())
    reconstruct(model, statistics_every=1, refresh_every=1)
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in plain]
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), *vectors(), 3)
    outputs = model.eval()(vectors()[0])
    assert list(plain_state_dict(model)) == keys
    fold(model)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in plain]
    torch.testing.assert_close(model(vectors()[0]), outputs)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_optimizer_made_before_loads_into_one_made_after(make):
    def built(before):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01) if before else None
        reconstruct(model, statistics_every=1, refresh_every=1)
        return model, optimizer or torch.optim.AdamW(model.parameters(), lr=0.01)

    model, optimizer = built(before=True)
    train(model, optimizer, *vectors(), 4)
    other, fresh = built(before=False)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    assert train(other, fresh, *vectors(), 4) == train(model, optimizer, *vectors(), 4)


def test_plain_checkpoints_load_where_parameters_stand_behind_reconstructed_ones():
    torch.manual_seed(0)
    model, plain = reconstruct(LowRankAdapted()), LowRankAdapted()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(vectors()[0]), plain(vectors()[0]))


def test_weights_and_biases_with_an_optimizer_each_go_on_after_folding():
    ends = []
    for several in (False, True):
        model = reconstruct(perceptron(), statistics_every=1, refresh_every=3)
        matrices, vectors_ = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
        groups = [matrices, vectors_] if several else [matrices + vectors_]
        optimizers = [torch.optim.SGD(group, lr=0.05) for group in groups]
        for step in range(6):
            if step == 4:
                fold(model, optimizers if several else optimizers[0])
                assert fisher_of(model[0]) is None
            for optimizer in optimizers:
                optimizer.zero_grad()
            nn.functional.cross_entropy(model(vectors()[0]), vectors()[1]).backward()
            for optimizer in optimizers:
                optimizer.step()
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*ends)


def test_fold_refuses_what_is_no_model_and_no_optimizer_of_it():
    model = reconstruct(perceptron())
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        fold(3)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, or several of them, got str"):
        fold(model, "SGD")
    with pytest.raises(ValueError, match=r"optimizer \(SGD\) holds none of the model's parameters"):
        fold(model, torch.optim.SGD(perceptron().parameters(), lr=0.1))
    assert fisher_of(model[0]) is not None
