"""The peers, where their packages are installed: each steps every parameter and brings the loss down."""

import importlib.util
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.race import PEERS, make_method, peers

NEEDS = dict.fromkeys(("SOAP", "Shampoo", "PSGD-Kron"), "pytorch_optimizer") | {"K-FAC": "singd"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Tanh(), nn.Linear(64, 3))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_a_peer_moves_every_parameter_downhill(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    model, optimizers = make_method(name).prepare(network(), 3e-3)
    before = [parameter.clone() for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(32, 2, 6, 6, generator=generator), torch.arange(32) % 3
    losses = []
    for _ in range(12):
        loss = functional.cross_entropy(model(inputs), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for old, new in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_package_is_named_with_the_extra(name, monkeypatch):
    for module in ("pytorch_optimizer", "singd", "singd.optim.optimizer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{NEEDS[name]}.*fisherlayers\[bench\]"):
        make_method(name).prepare(network(), 0.1)


def test_embeddings_go_to_adamw_under_muon_and_kfac():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    _, (muon, rest) = make_method("Muon").prepare(model, 0.1)
    assert [parameter.shape for parameter in muon.param_groups[0]["params"]] == [(3, 4)]
    assert {parameter.shape for parameter in rest.param_groups[0]["params"]} == {(5, 4), (3,)}
    if importlib.util.find_spec("singd") is None:
        pytest.skip("singd is not installed")
    _, (_, rest) = make_method("K-FAC").prepare(model, 0.1)
    assert [parameter.shape for parameter in rest.param_groups[0]["params"]] == [(5, 4)]
    assert rest.param_groups[0]["lr"] == pytest.approx(0.001)
    assert peers.LARGEST_FACTOR < 10_000
