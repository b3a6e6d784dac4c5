"""Training on another device than the CPU: `test_devices.py` runs these tests in a process of their own."""

import copy
import functools

import pytest
import torch
from torch import nn

from fisherlayers import AveragedPlainModel, FisherVectorLayer, fold, plain_state_dict, precision, reconstruct, refresh
from natural_gradient import stand_in_device as stand_in
from natural_gradient.stand_in_device import NAME


@pytest.fixture(autouse=True)
def _device():
    stand_in.install()
    torch.set_default_dtype(torch.float32)  # others are rounded by no autocast
    with stand_in.OnDevice():
        yield


class Attention(nn.Module):
    """Self-attention, or cross-attention of three tensors."""

    def __init__(self, crossed):
        super().__init__()
        self.attention, self.crossed = nn.MultiheadAttention(32, 4), crossed

    def forward(self, x):
        return self.attention(x, 2 * x, x + 1)[0] if self.crossed else self.attention(x, x, x)[0]


class Recurrent(nn.Module):
    """Two layers, both directions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.RNN(20, 16, 2, bidirectional=True)

    def forward(self, x):
        return self.layers(x)[0]


class Words(nn.Module):
    """A table and a layer."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(self.table((10 * x.abs()).long() % 20))


def perceptron(inputs=20, hidden=16):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 4))


CASES = {
    "dense": (perceptron, (64, 20), {}),
    "more outputs than rows": (lambda: perceptron(20, 64), (8, 20), {}),
    "low rank": (lambda: perceptron(200, 160), (64, 200), {}),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)),
        (40, 16, 8, 8),
        {},
    ),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), (4, 4, 8, 8), {}),
    "kronecker": (lambda: perceptron(20, 116), (64, 20), {"mode": "kronecker"}),
    "trust region": (perceptron, (64, 20), {"trust_region": 0.01}),
    "unit": (perceptron, (64, 20), {"mode": "unit"}),
    "compat": (
        lambda: nn.Sequential(*perceptron(), nn.ReLU(), nn.Linear(4, 3)),
        (64, 20),
        {"mode": "unit", "compat": True},
    ),
    "blocks": (lambda: nn.Linear(50, 16), (64, 50), {"block_size": 20}),
    "recurrent": (Recurrent, (7, 4, 20), {}),
    "cell": (lambda: nn.RNNCell(20, 16), (9, 20), {}),
    "words": (Words, (5, 6), {"include": ["*", nn.Embedding]}),
    "attention": (lambda: Attention(False), (7, 4, 32), {}),
    "cross-attention": (lambda: Attention(True), (7, 4, 32), {}),
}


def step(model, optimizer, inputs, autocast=False):
    device = inputs.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        outputs = model(inputs)
    optimizer.zero_grad()
    outputs.float().square().mean().backward()
    optimizer.step()


@functools.cache
def trained(case, device, autocast=False):
    """Six steps; the model, its plain weights on the CPU, and how often each step waited for the device."""
    make, shape, options = CASES[case]
    torch.manual_seed(0)
    model = reconstruct(make().to(device), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    waits = []
    for _ in range(6):
        inputs = torch.randn(*shape, device="cpu").to(device)
        stand_in.calls.clear()
        step(model, optimizer, inputs, autocast)
        waits.append(stand_in.calls["_local_scalar_dense"])
    plain = {name: tensor.cpu() for name, tensor in plain_state_dict(model).items()}
    fold(model, optimizer)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {device}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), plain[name], rtol=1e-3, atol=1e-5)
    return plain, waits


def check_close(found, expected, share):
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= share * tensor.norm(), name


@pytest.mark.parametrize("case", CASES)
def test_the_course_is_that_on_the_cpu(case):
    check_close(trained(case, NAME)[0], trained(case, "cpu")[0], 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_steps_between_refreshes_wait_for_the_device_only_for_a_trust_region(case):
    _, waits = trained(case, NAME)
    assert waits[0] > 1
    assert [waits[3], waits[5]] == [int(case in {"kronecker", "trust region"})] * 2


@pytest.mark.parametrize("case", CASES)
def test_a_device_without_float64_takes_the_course_of_one_with_it(case, monkeypatch):
    expected, _ = trained(case, NAME)
    monkeypatch.setattr(stand_in, "float64", False)
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", {NAME})
    check_close(trained.__wrapped__(case, NAME)[0], expected, 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_autocast_trains_as_without_but_for_the_layers_own_rounding(case):
    check_close(trained(case, NAME, autocast=True)[0], trained(case, "cpu")[0], 0.1)


@pytest.mark.parametrize("case", CASES)
def test_autocast_does_not_round_the_weight(case):
    make, shape, options = CASES[case]
    model = reconstruct(make().to(NAME), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        step(model, optimizer, torch.randn(*shape).to(NAME))
    plain = plain_state_dict(model)
    with torch.autocast(NAME, dtype=torch.bfloat16):
        for name, tensor in plain_state_dict(model).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor.cpu(), plain[name].cpu())


@pytest.mark.parametrize("mode", ["input", "kronecker"])
def test_plain_weights_load_from_the_cpu(mode):
    model, given = reconstruct(perceptron(), mode=mode).to(NAME), perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        step(model, optimizer, torch.randn(64, 20).to(NAME))
    model.load_state_dict(given.state_dict())
    inputs = torch.randn(5, 20)
    torch.testing.assert_close(model(inputs.to(NAME)).cpu(), given(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["input", "kronecker"])
def test_layers_of_one_model_may_lie_on_two_devices(mode):
    ends = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        model = reconstruct(perceptron(), mode=mode)
        model[0].to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(4):
            hidden = model[1](model[0](torch.randn(64, 20).to(device))).cpu()
            optimizer.zero_grad()
            model[2](hidden).square().mean().backward()
            optimizer.step()
        refresh(model, optimizer)
        ends.append({name: tensor.cpu() for name, tensor in fold(model, optimizer).state_dict().items()})
    check_close(ends[1], ends[0], 1e-4)


@pytest.mark.parametrize("mode", ["input", "kronecker", "unit"])
def test_a_model_moves_between_a_forward_pass_and_the_step(mode):
    model = reconstruct(perceptron(), mode=mode)
    inputs = torch.randn(64, 20)
    model(inputs).square().mean().backward()
    copied = copy.deepcopy(model)
    for device in (NAME, "cpu"):
        copied.to(device)
        assert {tensor.device.type for tensor in (*copied.parameters(), *copied.buffers())} == {device}
        step(copied, torch.optim.SGD(copied.parameters(), lr=0.05), inputs.to(device))


@pytest.mark.parametrize("case", CASES)
def test_a_model_on_the_cpu_trains_under_another_default_device(case):
    expected, _ = trained(case, "cpu")
    make, shape, options = CASES[case]
    torch.manual_seed(0)
    model = make()
    inputs = [torch.randn(*shape) for _ in range(6)]
    with torch.device(NAME):
        reconstruct(model, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for batch in inputs:
            step(model, optimizer, batch)
        assert {tensor.device.type for tensor in model.buffers()} == {"cpu"}
    check_close(plain_state_dict(model), expected, 1e-6)


def test_a_captured_training_step_is_refused(monkeypatch):
    model = reconstruct(perceptron()).to(NAME)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(64, 20).to(NAME)
    step(model, optimizer, inputs)
    monkeypatch.setattr(stand_in.StandInTensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        model(inputs)
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        optimizer.step()
    model.eval()(inputs)


@pytest.mark.parametrize("float64", [True, False])
def test_a_layer_of_fisher_vectors(float64, monkeypatch):
    monkeypatch.setattr(stand_in, "float64", float64)
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", set() if float64 else {NAME})
    maps = torch.randn(2, 6, 5, 5)
    found = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        layer = FisherVectorLayer(4, 6).to(device)
        outputs = layer(maps.to(device))
        outputs.square().mean().backward()
        found.append([outputs.detach().cpu(), *(parameter.grad.cpu() for parameter in layer.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_averages_may_lie_on_the_cpu():
    model = reconstruct(perceptron()).to(NAME)
    average = AveragedPlainModel(model, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    means = []
    for _ in range(3):
        step(model, optimizer, torch.randn(64, 20).to(NAME))
        average.update_parameters(model)
        means.append({name: tensor.cpu() for name, tensor in plain_state_dict(model).items()})
    for name, tensor in average.module.state_dict().items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, sum(each[name] for each in means) / 3)
