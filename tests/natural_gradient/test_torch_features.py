"""The rest of torch keeps working: functional calls, copies, dtypes, autocast, compilation."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fisherlayers.natural_gradient import fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import convolutional, images, layers_of, perceptron, train, vectors


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def trained(rank="auto", **options):
    model = reconstruct(perceptron(), rank=rank, statistics_every=1, refresh_every=2, **options)
    optimizer = sgd(model)
    train(model, optimizer, *vectors(), 5)
    return model, optimizer


@pytest.mark.parametrize("rank", [None, 3])
def test_gradients_of_single_samples_by_vmap(rank):
    model, _ = trained(rank)
    inputs, targets = vectors(8)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    count = float(fisher_of(model[0]).information.count)

    def loss(parameters, sample, target):
        return functional.cross_entropy(functional_call(model, parameters, (sample[None],)), target[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    assert float(fisher_of(model[0]).information.count) == count  # transforms are not training
    for index in range(8):
        model.zero_grad()
        functional.cross_entropy(model(inputs[index : index + 1]), targets[index : index + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad)


def test_functional_call_uses_the_given_weight_for_the_bias_as_well():
    model, _ = trained()
    model.eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    inputs, _ = vectors()
    given = dict(other.named_parameters())
    torch.testing.assert_close(functional_call(model, given, (inputs,)), other(inputs))


def test_a_deep_copy_is_independent_and_trains_alike():
    model, optimizer = trained()
    duplicate = copy.deepcopy(model)
    duplicate_optimizer = sgd(duplicate)
    duplicate_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    inputs, targets = vectors()
    untouched = {key: value.clone() for key, value in model.state_dict().items()}
    expected = train(duplicate, duplicate_optimizer, inputs, targets, 6)
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())
    assert train(model, optimizer, inputs, targets, 6) == expected
    torch.testing.assert_close(fold(duplicate)(inputs), model(inputs))


@pytest.mark.parametrize("mode", ["input", "kronecker"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(120, 8), (64, 120)),
        (lambda: nn.Conv2d(16, 4, 3), (4, 16, 6, 6)),
        (lambda: nn.LSTM(120, 8), (3, 16, 120)),
        (lambda: nn.GRUCell(120, 100), (16, 120)),
    ],
    ids=["linear", "convolution", "LSTM", "cell"],
)
def test_training_goes_on_after_validation_in_inference_mode(make, shape, mode):
    torch.manual_seed(0)
    model, inputs = reconstruct(make(), mode=mode), torch.randn(shape)
    optimizer = sgd(model)

    def step():
        outputs = model(inputs)
        (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean().backward()
        optimizer.step()

    step()  # a new root: its factors are made at the next read
    with torch.inference_mode():
        model.eval()(inputs)
    model.train()
    step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_does_not_count_inputs_twice(reentrant):
    inputs = torch.randn(32, 300, generator=torch.Generator().manual_seed(0)) + 0.5

    def end(forward):
        torch.manual_seed(0)
        model = reconstruct(nn.Sequential(nn.Linear(300, 8), nn.Tanh(), nn.Linear(8, 3)))
        optimizer = sgd(model)
        for _ in range(4):
            for part in inputs.split(16):  # two batches a step
                forward(model, part).square().mean().backward()
            optimizer.step()
        assert fisher_of(model[0]).rows == 32
        return nn.utils.parameters_to_vector(model.parameters())

    def again(model, part):
        return checkpoint(model, part.clone().requires_grad_(), use_reentrant=reentrant)

    assert torch.equal(end(again), end(lambda model, part: model(part)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("mode", ["input", "kronecker"])
def test_nested_and_sparse_inputs_of_a_linear_layer_are_rows(mode):
    parts = [torch.randn(3, 6), torch.randn(5, 6)]
    for layout in (torch.jagged, torch.strided):
        layer = reconstruct(nn.Linear(6, 3), mode=mode)
        nested = torch.nested.nested_tensor(parts, layout=layout)
        for found, part in zip(layer(nested).unbind(), parts, strict=True):
            torch.testing.assert_close(found, nn.functional.linear(part, layer.weight, layer.bias))
        dense = reconstruct(nn.Linear(6, 3))
        dense(torch.cat(parts))
        torch.testing.assert_close(fisher_of(layer).pending.sums, fisher_of(dense).pending.sums)
    sparse = reconstruct(nn.Linear(6, 3))
    sparse(torch.cat(parts).to_sparse())
    torch.testing.assert_close(fisher_of(sparse).pending.sums, fisher_of(dense).pending.sums)


def test_a_linear_layer_that_is_called_with_something_else_is_not_observed():
    class Chosen(nn.Linear):
        def forward(self, tokens):
            return super().forward(nn.functional.one_hot(tokens, 6).double())

    layer = reconstruct(Chosen(6, 3))
    assert layer(torch.tensor([1, 4])).shape == (2, 3)
    assert fisher_of(layer).pending is None


@pytest.mark.parametrize("rank", [None, 3])
def test_bfloat16_parameters_keep_the_information_in_float32(rank):
    model = reconstruct(perceptron().to(torch.float32), rank=rank, statistics_every=1, refresh_every=2)
    inputs, targets = vectors()
    train(model, sgd(model), inputs.float(), targets, 3)
    root = fisher_of(model[0]).root.dense().clone()
    model.to(torch.bfloat16)
    assert torch.equal(fisher_of(model[0]).root.dense(), root)
    losses = train(model, sgd(model), inputs.bfloat16(), targets, 20)
    assert losses[-1] < losses[0]
    assert model[0].weight.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in fisher_of(model[0]).buffers()} == {torch.float32, torch.float64}
    assert next(fold(model).parameters()).dtype == torch.bfloat16


def test_double_makes_everything_double():
    model = reconstruct(perceptron().float()).double()
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float64}


def test_autocast_leaves_the_statistics_in_full_precision():
    inputs, targets = vectors()
    moments = []
    for enabled in (False, True):
        model = reconstruct(perceptron().float())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = functional.cross_entropy(model(inputs.float()), targets)
        loss.backward()
        sgd(model).step()
        moments.append(fisher_of(model[0]).information.value())
    assert torch.equal(*moments)


@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        (perceptron, vectors, {"rank": None}),
        (perceptron, vectors, {"rank": 3}),
        (perceptron, vectors, {"mode": "kronecker"}),
        (perceptron, vectors, {"mode": "unit"}),
        (perceptron, vectors, {"block_size": 4}),
        (convolutional, images, {}),
    ],
)
def test_autocast_rounds_neither_what_is_read_nor_what_a_step_moves(make, data, options):
    inputs, targets = data()
    finals = []
    for enabled in (False, True):
        model = reconstruct(make().float(), statistics_every=1, refresh_every=2, **options)
        optimizer = sgd(model)
        for _ in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs.float()), targets).backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            finals.append(plain_state_dict(model))
    for name, tensor in finals[0].items():
        assert torch.equal(finals[1][name], tensor), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, with any parametrization
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_as_an_eager_one(backend):
    inputs, targets = vectors()
    losses = []
    for compiled in (False, True):
        model = reconstruct(perceptron(), rank=3, statistics_every=1, refresh_every=2)
        optimizer = sgd(model)
        torch._dynamo.reset()
        runs = torch.compile(model, backend=backend) if compiled else model
        losses.append(train(runs, optimizer, inputs, targets, 6))
        assert fisher_of(model[0]).refreshed_at == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_of_the_optimizer_ticks_as_an_eager_one(backend):
    inputs, targets = vectors()
    losses = []
    for compiled in (False, True):
        model = reconstruct(perceptron(), rank=3, statistics_every=1, refresh_every=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        losses.append([])
        for _ in range(6):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            step()
            losses[-1].append(loss.item())
        assert fisher_of(model[0]).refreshed_at == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_compilation_happens_once():
    counter = CompileCounterWithBackend("eager")
    model = reconstruct(perceptron(), rank=3, statistics_every=1, refresh_every=2)
    optimizer = sgd(model)
    torch._dynamo.reset()
    runs, (inputs, targets) = torch.compile(model, backend=counter), vectors()
    train(runs, optimizer, inputs, targets, 1)
    compiled = counter.frame_count
    assert 0 < compiled <= len(layers_of(model))  # what a layer observes happens between two graphs
    train(runs, optimizer, inputs, targets, 10)
    assert counter.frame_count == compiled


def test_convolutions_in_channels_last():
    inputs, targets = images()
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = convolutional().to(memory_format=layout)
        reconstruct(model, statistics_every=1, refresh_every=2)
        losses.append(train(model, sgd(model), inputs.to(memory_format=layout), targets, 6))
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


def test_tokens_are_positions_of_a_linear_layer():
    model = reconstruct(nn.Linear(4, 2), decay=1.0)
    model(torch.randn(3, 5, 4))
    assert fisher_of(model).pending.number == 15
    assert len(layers_of(model)) == 1


def replicas(model):
    # As torch.nn.parallel.replicate makes them, which needs two GPUs.
    return [module._replicate_for_data_parallel() for module in model.modules()]


def test_data_parallel_is_refused_where_it_copies_the_model():
    model = reconstruct(perceptron())
    inputs, _ = vectors()
    assert torch.equal(nn.DataParallel(model)(inputs), model(inputs))  # without a GPU it copies nothing
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        replicas(model)
    assert len(replicas(fold(model))) == 6


def test_autocast_trains_through_low_rank_roots_as_well():
    torch.manual_seed(0)
    inputs, targets, first = torch.randn(40, 120).float(), torch.randint(0, 3, (40,)), nn.Linear(120, 3).float()
    finals = []
    for enabled in (False, True):
        model = reconstruct(copy.deepcopy(first), rank=8)
        optimizer = sgd(model)
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        finals.append(loss.item())
    assert finals[1] == pytest.approx(finals[0], rel=0.02)


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.attention, self.head = nn.LSTM(7, 6), nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

    def forward(self, inputs):
        lengths = torch.arange(len(inputs), 0, -1, device="cpu")
        packed = nn.utils.rnn.pack_padded_sequence(inputs.expand(len(inputs), -1, -1), lengths)
        states = nn.utils.rnn.unpack_sequence(self.recurrent(packed)[0])
        last = torch.stack([sequence[-1] for sequence in states])
        return self.head(self.attention(last, last, last)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 3},
        {"rank": None},
        {"mode": "kronecker", "rank": 3},
        {"mode": "unit"},
        {"mode": "unit", "compat": True, "damping": 0.1},
        {"block_size": 3, "rank": None},
    ],
)
@pytest.mark.parametrize("make", [perceptron, Sequences])
def test_the_default_device_has_no_influence(make, options):
    # "meta" holds no numbers: whatever is made there by mistake cannot be used.
    if make is Sequences and options.get("mode") == "unit":
        pytest.skip("mode unit is for layers whose activation is known")
    inputs, labels = vectors(8)
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.set_default_device(device)
        try:
            reconstruct(model, **options)
            losses = train(model, optimizer, inputs, labels, 6)
            state = copy.deepcopy(model.state_dict())
            model.load_state_dict(state)
            losses += train(model, optimizer, inputs, labels, 3)
            fold(model)
        finally:
            torch.set_default_device(None)
        found.append((losses, {tensor.device.type for tensor in state.values()}))
    assert found[0] == found[1]
