"""Weight decay acts on W and on the mean output W μ + b: in one parameter group, in the usual two, in two optimizers.

Where W and b decay alike this is decay of W and b. Where W alone decays, W μ shrinks with it and no step of W' brings
the mean output back: were b to stay, it would drift from step to step.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import fold, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.cases_natural_gradient import convolutional, images, layers_of, perceptron, train, vectors
from natural_gradient.references_natural_gradient import PreconditionedDescent

LR = 0.01
DECOUPLED = {
    "AdamW": torch.optim.AdamW,
    "AdamW, foreach": lambda groups, **options: torch.optim.AdamW(groups, foreach=True, **options),
    "Adam, decoupled": lambda groups, **options: torch.optim.Adam(groups, decoupled_weight_decay=True, **options),
    "NAdam, decoupled": lambda groups, **options: torch.optim.NAdam(groups, decoupled_weight_decay=True, **options),
    "SGD": torch.optim.SGD,
    "SGD, momentum": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
    "SGD, Nesterov": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options),
}
# Weight decay of the weights, and of the biases.
DECAYS = {"together": (0.3, 0.3), "weights only": (0.3, 0.0), "biases only": (0.0, 0.3), "both": (0.3, 0.1)}


def groups_of(model, decays):
    by_size = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]]
    return [{"params": group, "weight_decay": decay} for group, decay in zip(by_size, decays, strict=True)]


def moved_model(network="perceptron"):
    """A network whose coordinates have means: after some steps without decay."""
    make, data = {"perceptron": (perceptron, vectors), "convolutional": (convolutional, images)}[network]
    model = reconstruct(make(), rank=3, statistics_every=1, refresh_every=2)
    train(model, torch.optim.SGD(model.parameters(), lr=0.05), *data(), 5)
    assert all(fisher_of(layer).mean.any() for layer in layers_of(model))
    for layer in layers_of(model):
        fisher_of(layer).refreshed_at = 1000  # the coordinates stay from here on
    return model, data()


def plain_values(model):
    return [tensor.detach().clone() for layer in layers_of(model) for tensor in (layer.weight, layer.bias)]


def decaying_values(model):
    """W and the mean output W μ + b of every layer: what decays."""
    found = []
    for layer in layers_of(model):
        fisher, weight = fisher_of(layer), layer.weight.detach()
        offset = (fisher.layout.rows(weight) @ fisher.mean.unsqueeze(-1)).flatten()
        found += [weight.clone(), offset + layer.bias.detach()]
    return found


@pytest.mark.parametrize("network", ["perceptron", "convolutional"])
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("name", DECOUPLED)
def test_what_decay_adds_to_a_step_is_decay_of_the_weights_and_the_mean_outputs(name, decays, network):
    model, (inputs, targets) = moved_model(network)
    values = plain_values if decays == "together" else decaying_values
    start = values(model)
    after = []
    for used in (DECAYS[decays], (0.0, 0.0)):
        twin = copy.deepcopy(model)
        train(twin, DECOUPLED[name](groups_of(twin, used), lr=LR), inputs, targets, 1)
        after.append(values(twin))
    for index, (value, decayed, undecayed) in enumerate(zip(start, *after, strict=True)):
        factor = 1.9 if "Nesterov" in name else 1.0
        expected = -LR * DECAYS[decays][index % 2] * factor * value
        torch.testing.assert_close(decayed - undecayed, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("decays", DECAYS)
def test_muon_on_the_weights_and_adamw_on_the_biases(decays, order):
    model, (inputs, targets) = moved_model()
    start, after = decaying_values(model), []
    for used in (DECAYS[decays], (0.0, 0.0)):
        twin = copy.deepcopy(model)
        weights, biases = groups_of(twin, used)
        # Muon's own products are in bfloat16: the decay is told apart in what is exact, so no gradient reaches it.
        optimizers = [torch.optim.Muon([weights], lr=LR), torch.optim.AdamW([biases], lr=LR)][::order]
        functional.cross_entropy(twin(inputs), targets).backward()
        for parameter in twin.parameters():
            parameter.grad.zero_()
        for optimizer in optimizers:
            optimizer.step()
        after.append(decaying_values(twin))
    for index, (value, decayed, undecayed) in enumerate(zip(start, *after, strict=True)):
        expected = -LR * DECAYS[decays][index % 2] * value
        torch.testing.assert_close(decayed - undecayed, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("flavour", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {}])
def test_sgd_with_decay_is_preconditioned_descent_with_the_same_decay(decays, flavour):
    # W <- W - lr (P-preconditioned velocity + velocity of λ W), for 30 steps in the same coordinates.
    plain, (inputs, targets) = perceptron(), vectors()
    settings = {"damping": 0.1, "decay": 1.0, "refresh_every": 10**6}
    model = reconstruct(copy.deepcopy(plain), **settings, statistics_every=10**6, rank=None)
    optimizer = torch.optim.SGD(groups_of(model, DECAYS[decays]), lr=LR, **flavour)
    for layer in layers_of(model):
        fisher_of(layer).settings = fisher_of(layer).settings._replace(refresh_every=10**6)
    reference = PreconditionedDescent(
        layers_of(plain), lr=LR, **settings, **flavour, weight_decays=DECAYS[decays], only_once=True
    )
    for _ in range(30):
        (loss,) = train(model, optimizer, inputs, targets, 1)
        for layer in layers_of(model):  # no second root: it would come at step 1
            fisher_of(layer).refreshed_at = 1000
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs), targets)
        expected.backward()
        seen = [inputs, plain[:2](inputs).detach(), plain[:4](inputs).detach()]
        reference.step(seen)
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    for layer, other in zip(layers_of(model), layers_of(plain), strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(layer.bias, other.bias, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("decays", [(0.5, 0.0), (0.5, 0.5)])
def test_pure_decay_through_every_refresh(decays):
    # No gradient at all, while the coordinates change at every step.
    model, (inputs, _) = reconstruct(perceptron(), statistics_every=1, refresh_every=1), vectors()
    optimizer = torch.optim.AdamW(groups_of(model, decays), lr=0.1)
    start = plain_values(model)
    generator = torch.Generator().manual_seed(0)
    shifts = [torch.zeros_like(bias) for bias in start[1::2]]
    for _ in range(20):
        optimizer.zero_grad()
        (0.0 * model(inputs + torch.randn(7, generator=generator))).sum().backward()
        before = [layer.weight.detach().clone() for layer in layers_of(model)]
        optimizer.step()
        for shift, layer, weight in zip(shifts, layers_of(model), before, strict=True):
            shift += 0.05 * weight @ fisher_of(layer).mean  # what W loses of the mean output
    end = plain_values(fold(model))
    for index, (before, after) in enumerate(zip(start, end, strict=True)):
        alone = index % 2 and not decays[1]
        expected = before + shifts[index // 2] if alone else 0.95**20 * before
        torch.testing.assert_close(after, expected, rtol=1e-8, atol=1e-10)


def test_biases_do_not_drift_where_weights_alone_decay():
    """A deep network with ReLU, long trained: with b left alone its biases grew to 287, and its loss to .44."""
    ends, losses = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        if again:
            reconstruct(model)
        optimizer = torch.optim.AdamW(groups_of(model, (1.0, 0.0)), lr=0.01)
        losses.append(train(model, optimizer, vectors()[0] + 2, vectors()[1], 1500)[-1])
        ends.append(max(float(layer.bias.detach().abs().max()) for layer in layers_of(model)))
    assert ends[1] < 10 * ends[0]
    assert losses[1] < losses[0]


def test_maximizing_and_learning_rates_that_differ():
    model, (inputs, targets) = moved_model()
    start, after = decaying_values(model), []
    for used in ((0.3, 0.1), (0.0, 0.0)):
        twin = copy.deepcopy(model)
        groups = groups_of(twin, used)
        groups[1]["lr"] = 5 * LR
        train(twin, torch.optim.SGD(groups, lr=LR, maximize=True), inputs, targets, 1)
        after.append(decaying_values(twin))
    for index, (value, decayed, undecayed) in enumerate(zip(start, *after, strict=True)):
        expected = -(5 * LR * 0.1 if index % 2 else LR * 0.3) * value
        torch.testing.assert_close(decayed - undecayed, expected, rtol=1e-7, atol=1e-10)


def test_a_bias_without_a_gradient_keeps_the_mean_output():
    model, (inputs, targets) = moved_model()
    optimizer = torch.optim.AdamW(groups_of(model, (0.3, 0.3)), lr=LR)
    functional.cross_entropy(model(inputs), targets).backward()
    fisher_of(model[0]).biases()[0].parameter.grad = None
    _, before, *_ = decaying_values(model)
    optimizer.step()
    _, after, *_ = decaying_values(model)
    torch.testing.assert_close(after, before)


def test_l2_in_adam_is_left_alone():
    model, (inputs, targets) = moved_model()
    twin = copy.deepcopy(model)
    biases = [fisher_of(layer).biases()[0].parameter for layer in layers_of(model)]
    before = [bias.detach().clone() for bias in biases]
    train(model, torch.optim.Adam(groups_of(model, (0.3, 0.0)), lr=LR), inputs, targets, 1)
    train(twin, torch.optim.Adam(groups_of(twin, (0.0, 0.0)), lr=LR), inputs, targets, 1)
    others = [fisher_of(layer).biases()[0].parameter for layer in layers_of(twin)]
    for bias, start, other in zip(biases, before, others, strict=True):
        assert not torch.equal(bias, start)
        torch.testing.assert_close(bias, other)


def test_parameters_of_other_layers_decay_as_always():
    norm = nn.LayerNorm(7)
    model = nn.Sequential(norm, *moved_model()[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.5)
    (0.0 * model(vectors()[0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(norm.weight, (1 - LR * 0.5) * torch.ones(7))
