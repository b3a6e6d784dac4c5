"""Recurrent layers train as loops over linear layers do, with the inputs and states that these loops see."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from fisherlayers.natural_gradient import fold, plain_state_dict, reading, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights
from fisherlayers.natural_gradient.products import multiply_and_shift
from fisherlayers.natural_gradient.rules import Call, rule_of

D, H, TIME, BATCH = 5, 4, 6, 3
SETTINGS = {"damping": 0.1, "decay": 0.9, "refresh_every": 3, "statistics_every": 1}
KINDS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN, ReLU": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM, projected": (nn.LSTM, {"proj_size": 3}),
}
SHAPES = {"one layer": {}, "two layers, both directions": {"num_layers": 2, "bidirectional": True}}
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]


def sequence(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TIME, BATCH, D, generator=generator).cumsum(-1) + 0.5


def made(kind, **options):
    torch.manual_seed(0)
    make, own = KINDS[kind]
    return make(D, H, **own | options)


class Step(nn.Module):
    """One layer in one direction as a cell of linear layers; ``seen`` collects what each of them is given."""

    def __init__(self, layer, suffix):
        super().__init__()
        self.mode, self.seen = layer.mode, {}
        self.parts = nn.ModuleDict()
        for side in ("ih", "hh", "hr"):
            weight = getattr(layer, f"weight_{side}{suffix}", None)
            if weight is None:
                continue
            bias = getattr(layer, f"bias_{side}{suffix}", None)
            self.parts[side] = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            self.seen[side] = []
            with torch.no_grad():
                self.parts[side].weight.copy_(weight)
                if bias is not None:
                    self.parts[side].bias.copy_(bias)

    def product(self, side, rows):
        self.seen[side].append(rows.detach())
        weight, bias = self.parts[side].weight, self.parts[side].bias
        return rows @ weight.T + (0 if bias is None else bias)

    def forward(self, x, state):
        h, c = state
        entering, recurrent = self.product("ih", x), self.product("hh", h)
        if self.mode == "LSTM":
            i, f, g, o = (entering + recurrent).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (self.product("hr", h) if "hr" in self.parts else h), c
        if self.mode == "GRU":
            (r, z, n), (hr, hz, hn) = entering.chunk(3, 1), recurrent.chunk(3, 1)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            return (1 - z) * (n + r * hn).tanh() + z * h, c
        total = entering + recurrent
        return (total.relu() if self.mode == "RNN_RELU" else total.tanh()), c


class Spelled(nn.Module):
    """A recurrent layer as loops over steps, one sequence at a time, so that lengths may differ."""

    def __init__(self, layer):
        super().__init__()
        self.directions, self.depth = (2 if layer.bidirectional else 1), layer.num_layers
        self.width = layer.proj_size or layer.hidden_size
        suffixes = [f"_l{d}{r}" for d in range(self.depth) for r in ["", "_reverse"][: self.directions]]
        self.steps = nn.ModuleDict({suffix: Step(layer, suffix) for suffix in suffixes})

    def forward(self, sequences, hidden=None, cells=None):
        """Return each sequence's outputs (time, width)."""
        results = []
        for number, sequence in enumerate(sequences):
            rows = sequence
            for depth in range(self.depth):
                both = []
                for direction, name in enumerate(["", "_reverse"][: self.directions]):
                    step, index = self.steps[f"_l{depth}{name}"], depth * self.directions + direction
                    h = torch.zeros(1, self.width) if hidden is None else hidden[index, number : number + 1]
                    c = torch.zeros(1, H) if cells is None else cells[index, number : number + 1]
                    outputs = []
                    for row in reversed(rows) if direction else rows:
                        h, c = step(row[None], (h, c))
                        outputs.append(h)
                    both.append(torch.cat(outputs[::-1] if direction else outputs))
                rows = torch.cat(both, 1)
            results.append(rows)
        return results

    def rows(self):
        """What every weight was multiplied with so far, by the name that torch gives the weight."""
        return {
            f"weight_{side}{suffix}": torch.cat(seen)
            for suffix, step in self.steps.items()
            for side, seen in step.seen.items()
        }


def sorted_rows(rows):
    """Rows in an order of their own, to compare as sets."""
    return rows[torch.argsort(rows @ torch.arange(1.0, 1 + rows.shape[1]).sqrt())]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(call, model, aim, steps=12):
    optimizer, losses = sgd(model), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (call() - aim).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_what_the_loops_multiply(kind, shape, packed):
    layer, x = made(kind, **SHAPES[shape]), sequence()
    spelled = Spelled(layer)
    number = layer.num_layers * spelled.directions
    start = torch.randn(number, BATCH, spelled.width), torch.randn(number, BATCH, H)
    lengths = [4, 6, 2] if packed else [TIME] * BATCH
    sequences = [x[:length, i] for i, length in enumerate(lengths)]
    given = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False) if packed else x
    spelled(sequences, *start)
    rows = rule_of(layer).input_rows(layer, Call((given, start if layer.mode == "LSTM" else start[0]), {}, 10**6))
    expected = spelled.rows()
    assert set(rows) == set(expected)
    for name, seen in expected.items():
        torch.testing.assert_close(sorted_rows(rows[name]), sorted_rows(seen), msg=name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_trains_as_loops_over_linear_layers(kind, shape):
    layer, x = made(kind, **SHAPES[shape]), sequence()
    spelled = Spelled(layer)
    aim = torch.randn(TIME, BATCH, layer(x)[0].shape[-1])
    reconstruct(layer, rank=None, **SETTINGS)

    # The loops call no layer: the linear layers that they read are observed here, all rows of a step at once.
    reconstruct(spelled, rank=None, **SETTINGS)

    def outputs():
        for step in spelled.steps.values():
            step.seen = {side: [] for side in step.seen}
        results = torch.stack(spelled([x[:, i] for i in range(BATCH)]), 1)
        for name, seen in spelled.rows().items():
            _, side, *suffix = name.split("_")
            part = spelled.steps["_" + "_".join(suffix)].parts[side]
            if fisher_of(part).statistics_due:
                fisher_of(part).observe(seen)
        return results

    losses = train(lambda: layer(x)[0], layer, aim)
    assert losses == pytest.approx(train(outputs, spelled, aim), rel=1e-8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_between_layers_is_that_of_the_forward_and_the_random_state_goes_on_as_without_us(dtype):
    layer = nn.LSTM(D, H, num_layers=2, dropout=0.5).to(dtype)
    plain, x = copy.deepcopy(layer), sequence().to(dtype)
    reconstruct(layer, decay=1.0)
    torch.manual_seed(1)
    expected, _ = plain(x)
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    outputs, _ = layer(x)
    torch.testing.assert_close(outputs, expected)
    assert torch.equal(torch.random.get_rng_state(), after)
    # What the second layer was given, from its outputs alone: the inner inputs are dropped out in the same places.
    second = nn.LSTM(H, H).to(dtype)
    second.load_state_dict({name[:-1] + "0": value for name, value in plain.state_dict().items() if name[-1] == "1"})
    first = nn.LSTM(D, H).to(dtype)
    first.load_state_dict({name: value for name, value in plain.state_dict().items() if name[-1] == "0"})
    torch.manual_seed(1)
    dropped = nn.functional.dropout(first(x)[0], 0.5)
    torch.testing.assert_close(second(dropped)[0], expected)
    pending = fisher_of(layer, "weight_ih_l1").pending
    rows = dropped.flatten(0, 1)
    torch.testing.assert_close(pending.origin + pending.sums[-1, :-1] / len(rows), rows.mean(0))
    shifted = rows - pending.origin
    torch.testing.assert_close(pending.sums[:-1, :-1], shifted.T @ shifted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_uses_the_weights_in_place_and_gradients_reach_them(kind):
    layer, x = made(kind, bidirectional=True, batch_first=True), sequence()
    plain = copy.deepcopy(layer)
    reconstruct(layer, **SETTINGS)
    aim = torch.randn(TIME, BATCH, layer(x)[0].shape[-1])
    train(lambda: layer(x)[0], layer, aim, 4)
    plain.load_state_dict(plain_state_dict(layer))
    torch.testing.assert_close(layer(x)[0], plain(x)[0])
    for model in (layer, plain):
        model.zero_grad()
        model(x)[0].sin().sum().backward()
    for name in layer._flat_weights_names:
        fisher = fisher_of(layer, name)
        if fisher is None:
            continue
        bias = getattr(plain, name.replace("weight", "bias"), None)
        gradient = getattr(plain, name).grad
        if bias is not None:
            gradient = gradient - torch.outer(bias.grad, fisher.mean)
        torch.testing.assert_close(fisher.weight.grad, gradient @ fisher.root.dense(), msg=name)


def test_a_sequence_without_batch_and_without_biases():
    layer, x = made("LSTM", bias=False), sequence()[:, 0]
    spelled = Spelled(layer)
    spelled([x])
    rows = rule_of(layer).input_rows(layer, Call((x,), {}, 10**6))
    for name, seen in spelled.rows().items():
        torch.testing.assert_close(rows[name], seen)
    reconstruct(layer, **SETTINGS)
    losses = train(lambda: layer(x)[0], layer, torch.randn(TIME, H))
    assert losses[-1] < losses[0]
    assert not fisher_of(layer, "weight_ih_l0").mean.any()


def test_packed_sequences_train():
    layer = made("GRU", num_layers=2)
    packed = pack_sequence([torch.randn(length, D) for length in (6, 4, 1)])
    reconstruct(layer, **SETTINGS)
    losses = train(lambda: layer(packed)[0].data, layer, torch.randn(11, H))
    assert losses[-1] < losses[0]
    assert all(fisher.refreshed_at >= 0 for fisher in fisher_weights(layer))
    assert fisher_of(layer, "weight_hh_l1").information.count < 11 * 12


@pytest.mark.parametrize("make", CELLS)
@pytest.mark.parametrize("batched", [False, True])
def test_cells(make, batched):
    torch.manual_seed(0)
    cell, x = make(D, H), sequence()
    x = x if batched else x[:, 0]
    reconstruct(cell, decay=1.0, statistics_every=1)
    state, states = None, []
    for row in x:
        hidden = state[0] if make is nn.LSTMCell and state is not None else state
        states.append(torch.zeros(BATCH if batched else 1, H) if hidden is None else hidden.reshape(-1, H))
        state = cell(row, state)
    hidden = state[0] if make is nn.LSTMCell else state
    for name, rows in (("weight_ih", x.reshape(-1, D)), ("weight_hh", torch.cat(states))):
        pending = fisher_of(cell, name).pending
        assert pending.number == len(rows)
        torch.testing.assert_close(pending.origin + pending.sums[-1, :-1] / len(rows), rows.mean(0))
    hidden.sum().backward()
    before = hidden.detach()
    sgd(cell).step()
    assert fisher_of(cell, "weight_hh").refreshed_at == 0
    assert not torch.allclose(cell(x[-1])[0], before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_exactly_and_folds(kind):
    plain, x = made(kind, num_layers=2, bidirectional=True), sequence()
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    aim = torch.randn(TIME, BATCH, model(x)[0].shape[-1])
    train(lambda: model(x)[0], model, aim, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = reconstruct(made(kind, num_layers=2, bidirectional=True), **SETTINGS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    duplicate = copy.deepcopy(model)
    expected = train(lambda: model(x)[0], model, aim)
    assert train(lambda: resumed(x)[0], resumed, aim) == expected
    assert train(lambda: duplicate(x)[0], duplicate, aim) == expected
    before, exported = model(x)[0], plain_state_dict(model)
    refresh(model)
    torch.testing.assert_close(model(x)[0], before)
    model.float().double()
    fold(model)
    torch.testing.assert_close(model(x)[0], before, rtol=1e-5, atol=1e-5)
    assert type(model) is type(plain)
    assert list(model.state_dict()) == list(plain.state_dict()) == list(exported)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    with torch.no_grad():
        model.weight_hh_l0.zero_()  # the folded layer computes with its parameters
    assert not torch.allclose(model(x)[0], before)
    plain.load_state_dict(exported)
    torch.testing.assert_close(plain(x)[0], before)
    fresh = reconstruct(made(kind, num_layers=2, bidirectional=True), **SETTINGS)
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(x)[0], before)


def test_functional_call_uses_the_given_weights():
    model, x = reconstruct(made("LSTM", num_layers=2), **SETTINGS), sequence()
    train(lambda: model(x)[0], model, torch.randn(TIME, BATCH, H), 4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    found, _ = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(found, other(x)[0])
    assert not torch.allclose(found, model(x)[0])


def test_a_weight_is_computed_once_a_pass(monkeypatch):
    model, x = reconstruct(made("LSTM"), **SETTINGS, rank=2), sequence()
    fisher, computed = fisher_of(model, "weight_ih_l0"), []

    def compute(rows, *others):
        computed.extend([rows] if rows is fisher.weight else [])
        return multiply_and_shift(rows, *others)

    monkeypatch.setattr(reading, "multiply_and_shift", compute)
    model.eval()(x)
    assert len(computed) == 1
    model(x)
    assert len(computed) == 2
    assert fisher.reading._kept is None
