"""Whole models by torch.save and pickle: they compute the same, resume exactly, fold, and are copies of their own."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import fold, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_weights

SETTINGS = {"refresh_every": 3, "statistics_every": 1}


class Attending(nn.Module):
    """An encoder layer with the shape of a plain layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs)


class First(nn.Module):
    """The outputs of a recurrent layer without its states."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)[0]


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2)), (6, 4)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ConvTranspose2d(4, 2, 3)), (3, 2, 5, 5)),
    "attention": (Attending, (3, 5, 8)),
    "LSTM": (lambda: First(nn.LSTM(4, 3, num_layers=2, bidirectional=True)), (5, 2, 4)),
    "GRU": (lambda: First(nn.GRU(4, 3)), (5, 2, 4)),
}


def train(model, inputs, steps):
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False, map_location="cpu")


@pytest.mark.parametrize("through", [by_pickle, by_torch, copy.deepcopy])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_and_goes_on(name, through):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    plain, inputs = make(), torch.randn(shape) + 1
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    train(model, inputs, 4)
    again = through(through(model))
    assert torch.equal(again(inputs), model(inputs))
    assert [key for key, _ in again.named_parameters()] == [key for key, _ in model.named_parameters()]
    expected = train(model, inputs, 5)
    assert train(again, inputs, 5) == expected
    assert len(list(fisher_weights(again))) == len(list(fisher_weights(model)))
    before = again(inputs)
    fold(again)
    torch.testing.assert_close(again(inputs), before)
    assert [type(module) for module in again.modules()] == [type(module) for module in plain.modules()]
    torch.testing.assert_close(model(inputs), before)  # and the original is as it was
    assert list(fisher_weights(model))


def test_a_pickle_taken_while_sums_are_pending_holds_them():
    model, inputs = reconstruct(nn.Linear(4, 2), **SETTINGS), torch.randn(6, 4)
    model(inputs)
    (fisher,) = fisher_weights(by_pickle(model))
    assert fisher.pending.number == 6


def test_dtypes_move_and_come_back():
    model, inputs = reconstruct(nn.Linear(4, 2).float(), **SETTINGS), torch.randn(6, 4)
    train(model, inputs.float(), 4)
    again = by_pickle(model.to(torch.bfloat16))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    (fisher,), (mine,) = fisher_weights(again), fisher_weights(model)
    assert fisher.root.dense().dtype == torch.float32
    assert torch.equal(fisher.root.dense(), mine.root.dense())


PROGRAM = """
import sys
import torch
import fisherlayers.natural_gradient
assert "torch._dynamo" not in sys.modules, "the compiler takes seconds to import"
torch.set_default_dtype(torch.float64)
model, inputs, expected = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(model(inputs), expected)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(inputs).sum().backward()
optimizer.step()
assert not torch.allclose(model(inputs), expected)
assert next(fisherlayers.natural_gradient.parametrization.fisher_weights(model)).steps == 5
"""


def test_another_process_imports_no_compiler_and_loads_the_model(tmp_path):
    torch.manual_seed(0)  # classes that the other process can import:
    model, inputs = (
        reconstruct(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), **SETTINGS),
        torch.randn(6, 4),
    )
    train(model, inputs, 4)
    with torch.no_grad():
        torch.save((model, inputs, model(inputs)), tmp_path / "model.pt")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class TestReadingPastTorchsContainers:
    """W is computed without calling the containers; where they do more than that, they are called."""

    @pytest.fixture
    def layer(self):
        model = reconstruct(torch.nn.Sequential(torch.nn.Linear(4, 3)))
        train(model, torch.randn(8, 4), 3)
        return model[0]

    def test_it_is_what_torch_computes(self, layer):
        torch.testing.assert_close(layer.weight, layer.parametrizations.weight())
        torch.testing.assert_close(layer.bias, layer.parametrizations.bias())

    def test_a_cache_holds(self, layer):
        with torch.nn.utils.parametrize.cached():
            assert layer.weight is layer.weight
        assert layer.weight is not layer.weight

    def test_hooks_are_called(self, layer):
        layer.parametrizations.weight.register_forward_hook(lambda module, args, output: 2 * output)
        torch.testing.assert_close(layer.weight, layer.parametrizations.weight())

    def test_another_parametrization_comes_after_ours(self, layer):
        class Double(torch.nn.Module):
            def forward(self, weight):
                return 2 * weight

        before = layer.weight.detach()
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Double())
        torch.testing.assert_close(layer.weight, 2 * before)
