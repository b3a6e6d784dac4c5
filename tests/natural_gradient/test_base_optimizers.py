"""Every optimizer of torch, and learning-rate schedules, averages and closures around it."""

import copy
import inspect

import pytest
import torch
from torch.nn import functional

from fisherlayers.natural_gradient import plain_state_dict, reconstruct, refresh
from natural_gradient.cases_natural_gradient import perceptron, train, vectors

# Without an image of their own, or for sparse gradients only.
OTHERS = {"Optimizer", "SparseAdam", "LBFGS"}
OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and name not in OTHERS
}
RATES = {
    "SGD": 0.02,
    "ASGD": 0.05,
    "Adadelta": 1.0,
    "RMSprop": 0.003,
    "Rprop": 0.001,
    "Adafactor": 0.05,
    "Muon": 0.02,
    "RAdam": 0.1,
}
OPTIONS = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5, "centered": True}}


def built(name, model):
    for parameter in model.parameters():
        parameter.requires_grad_(name != "Muon" or parameter.ndim == 2)  # Muon takes matrices only
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[name](parameters, lr=RATES.get(name, 0.01), **OPTIONS.get(name, {}))


def reconstructed():
    return reconstruct(perceptron(), statistics_every=1, refresh_every=2)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_it_trains_resumes_exactly_and_a_refresh_moves_nothing(name):
    # A buffer that a refresh does not know would be a warning, and an error here.
    inputs, targets = vectors()
    model = reconstructed()
    optimizer = built(name, model)
    losses = train(model, optimizer, inputs, targets, 15)
    assert losses[-1] < 0.97 * losses[0]

    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    expected = train(model, optimizer, inputs, targets, 6)
    resumed = reconstructed()
    again = built(name, resumed)
    resumed.load_state_dict(states[0])
    again.load_state_dict(states[1])
    assert train(resumed, again, inputs, targets, 6) == expected

    before = plain_state_dict(model)
    refresh(model, optimizer)
    for key, value in plain_state_dict(model).items():
        torch.testing.assert_close(value, before[key])


def closure_of(model, optimizer):
    inputs, targets = vectors()

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    return closure


def test_lbfgs_goes_on_with_its_history():
    model = reconstructed()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    closure = closure_of(model, optimizer)
    losses = [optimizer.step(closure).item() for _ in range(8)]
    assert losses[-1] < 0.2 * losses[0]
    state = optimizer.state[optimizer._params[0]]
    pairs = list(zip(state["old_dirs"], state["old_stps"], strict=True))
    products = [torch.dot(y, s) for y, s in pairs]
    slopes = torch.dot(state["prev_flat_grad"], state["d"])
    steps = [plain_step(model, s) for _, s in pairs]
    old = model[0].parametrizations.weight[0].root.dense().clone()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):  # as if quite other inputs had been seen
            moment = layer.parametrizations.weight[0].information.second_moment
            moment.add_(torch.diag_embed(torch.arange(1.0, len(moment) + 1)))
    refresh(model, optimizer)
    assert not torch.allclose(model[0].parametrizations.weight[0].root.dense(), old, rtol=0.05)
    torch.testing.assert_close([torch.dot(y, s) for y, s in pairs], products)
    torch.testing.assert_close(torch.dot(state["prev_flat_grad"], state["d"]), slopes)
    for (_, s), step in zip(pairs, steps, strict=True):
        torch.testing.assert_close(plain_step(model, s), step)


def plain_step(model, flat):
    """What a step in the parameters is in the plain network's weights."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        sizes = [parameter.numel() for parameter in moved.parameters()]
        for parameter, part in zip(moved.parameters(), flat.split(sizes), strict=True):
            parameter.add_(part.view_as(parameter))
    before = plain_state_dict(model)
    return torch.cat([(value - before[key]).flatten() for key, value in plain_state_dict(moved).items()])


def test_a_checkpoint_after_a_closure_loses_no_statistics():
    model = reconstructed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    closure = closure_of(model, optimizer)
    for _ in range(5):
        optimizer.step(closure)
    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    expected = [optimizer.step(closure).item() for _ in range(6)]
    resumed = reconstructed()
    again = torch.optim.SGD(resumed.parameters(), lr=0.02, momentum=0.9)
    resumed.load_state_dict(states[0])
    again.load_state_dict(states[1])
    closure = closure_of(resumed, again)
    assert [again.step(closure).item() for _ in range(6)] == expected


class Muon(torch.optim.SGD):
    """Known by its name, as those of other libraries; here its steps do not matter."""


class MuonWithAuxiliaryAdam(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "orthogonal"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=0.01), False),
        (lambda weights: torch.optim.AdamW(weights, lr=0.01), False),
        (lambda weights: Muon(weights, lr=0.01), True),
        (lambda weights: MuonWithAuxiliaryAdam([{"params": weights, "use_muon": True}], lr=0.01), True),
        (lambda weights: MuonWithAuxiliaryAdam([{"params": weights, "use_muon": False}], lr=0.01), False),
    ],
)
def test_steps_that_are_orthogonal_are_centred_and_not_whitened_again(make, orthogonal):
    inputs, targets = vectors()
    model = reconstruct(perceptron(), statistics_every=1, refresh_every=1)
    train(model, make(list(model.parameters())), inputs, targets, 2)
    for layer in (layer for layer in model if isinstance(layer, torch.nn.Linear)):
        (fisher,) = layer.parametrizations.weight
        root = fisher.root.dense()
        assert fisher.damping == (float("inf") if orthogonal else 3)
        assert torch.equal(root, torch.eye(len(root))) == orthogonal
        assert fisher.mean.abs().max() > 0


def test_a_layer_without_bias_stays_plain_under_orthogonal_steps():
    inputs, targets = vectors()
    plain = torch.nn.Sequential(torch.nn.Linear(inputs.shape[1], int(targets.max()) + 1, bias=False))
    model = reconstruct(copy.deepcopy(plain), statistics_every=1, refresh_every=1)
    for each in (plain, model):
        train(each, Muon(each.parameters(), lr=0.01), inputs + 5, targets, 5)
    torch.testing.assert_close(model[0].weight, plain[0].weight)


def centred_by_muon(*means, rows=600, bias=True):
    """The layer, and the sample means of batches that were trained on one after the other."""
    torch.manual_seed(0)
    layer = reconstruct(torch.nn.Linear(4, 3, bias=bias), statistics_every=1, refresh_every=1, decay=0.5)
    optimizer = Muon(layer.parameters(), lr=1e-3)
    batches = [mean + torch.randn(rows, 4) for mean in means]
    for batch in batches:
        train(layer, optimizer, batch, torch.zeros(rows, dtype=torch.long), 1)
    return layer, batches


def test_a_mean_alone_is_followed_by_fewer_rows_and_no_more_slowly():
    layer, batches = centred_by_muon(0.0, 5.0)
    (fisher,) = layer.parametrizations.weight
    assert fisher.rows == 256
    first, second = batches
    # The first batch, all of it, weighs as much as 256 rows; the decay halves that.
    expected = (0.5 * first.mean(0) + second.mean(0)) / 1.5
    torch.testing.assert_close(fisher.mean, expected, atol=0.2, rtol=0)
    torch.testing.assert_close(layer.weight.detach(), layer.parametrizations.weight.original.detach())


def test_a_restart_looks_at_as_few_rows():
    layer, batches = centred_by_muon(0.0, 5.0)
    fresh = reconstruct(torch.nn.Linear(4, 3), statistics_every=1, refresh_every=1, decay=0.5)
    fresh.load_state_dict(layer.state_dict())
    targets = torch.zeros(600, dtype=torch.long)
    for each in (layer, fresh):
        train(each, Muon(each.parameters(), lr=1e-3), batches[0], targets, 1)
    (fisher,), (restarted,) = layer.parametrizations.weight, fresh.parametrizations.weight
    assert restarted.rows == 256
    torch.testing.assert_close(restarted.mean, fisher.mean, atol=0, rtol=0)


def test_a_layer_that_stays_plain_is_hardly_looked_at():
    layer, _ = centred_by_muon(0.0, 5.0, 5.0, bias=False)
    assert layer.parametrizations.weight[0].rows == 1


@pytest.mark.parametrize("bias", [True, False])
def test_another_optimizer_after_muon_whitens(bias):
    layer, batches = centred_by_muon(3.0, 3.0, bias=bias)
    (fisher,) = layer.parametrizations.weight
    assert torch.equal(fisher.root.dense(), torch.eye(4))
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    targets = torch.zeros(600, dtype=torch.long)
    skewed = batches[0] * torch.tensor([1.0, 2.0, 4.0, 8.0])
    for _ in range(12):
        train(layer, optimizer, skewed, targets, 1)
    torch.testing.assert_close(layer.weight.detach(), before)
    centred = skewed - skewed.mean(0) if bias else skewed
    values, vectors = torch.linalg.eigh(centred.mT @ centred / 600)
    gains = ((vectors.mT @ fisher.root.dense() @ vectors).diagonal()).square()
    expected = 1 / (values + 3 * values.mean())
    torch.testing.assert_close(gains / gains[0], expected / expected[0], atol=0, rtol=0.05)


@pytest.mark.parametrize("options", [{"mode": "kronecker"}, {"mode": "unit", "activations": {"*": "relu"}}])
def test_other_modes_do_not_ask_for_the_optimizer(options):
    inputs, targets = vectors()
    roots = []
    for make in (Muon, torch.optim.SGD):
        model = reconstruct(perceptron(), statistics_every=1, refresh_every=1, **options)
        train(model, make(model.parameters(), lr=0.01), inputs, targets, 3)
        roots.append([buffer for name, buffer in model.named_buffers() if ".root." in name])
    assert all(torch.equal(one, other) for one, other in zip(*roots, strict=True))


def test_a_damping_that_was_set_stays():
    inputs, targets = vectors()
    model = reconstruct(perceptron(), damping=0.5)
    train(model, Muon(model.parameters(), lr=0.01), inputs, targets, 1)
    assert model[0].parametrizations.weight[0].damping == 0.5
