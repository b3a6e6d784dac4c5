import pytest
import torch
from torch import nn

from fisherlayers.race import BASES, make_method
from fisherlayers.race.methods import _muon


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("reconstructed", [False, True])
def test_every_method_steps_every_parameter_once(base, reconstructed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3))
    model, optimizers = make_method(base, reconstructed=reconstructed).prepare(model, 0.01)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.01}


def test_reconstruction_leaves_the_function_and_passes_the_options():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    before = model(x)
    method = make_method("SGD", reconstructed=True, damping=0.7)
    reconstructed, _ = method.prepare(model, 0.1)
    torch.testing.assert_close(reconstructed(x), before)
    assert method.name == "SGD reconstructed"
    assert dict(method.options) == {"damping": 0.7}
    assert any("parametrizations" in name for name, _ in reconstructed.named_parameters())


def test_muon_takes_matrices_and_adamw_the_rest():
    kinds = [type(optimizer).__name__ for optimizer in _muon(nn.Linear(4, 3), 0.1)]
    assert kinds == ["Muon", "AdamW"]
    assert [type(optimizer).__name__ for optimizer in _muon(nn.Linear(4, 3, bias=False), 0.1)] == ["Muon"]
    assert [type(optimizer).__name__ for optimizer in _muon(nn.BatchNorm1d(3), 0.1)] == ["AdamW"]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="base must be one of"):
        make_method("Newton")
    with pytest.raises(ValueError, match="pass reconstructed=True"):
        make_method("SGD", damping=0.1)
