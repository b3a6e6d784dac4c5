"""Mode ``kronecker``: descent on W' is K-FAC, and what the output side sees."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fisherlayers.natural_gradient import fold, reconstruct
from fisherlayers.natural_gradient.kronecker import normalized_covariance
from fisherlayers.natural_gradient.moments import moments
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.rules import rule_of
from natural_gradient.cases_natural_gradient import images, layers_of, perceptron, train, vectors
from natural_gradient.references_natural_gradient import damped_inverse, turns, unfolded

DENSE = {"mode": "kronecker", "rank": None, "trust_region": None, "statistics_every": 1}


def ungrouped():
    """Two convolutions, one without bias, and a linear layer, for 3 x 8 x 8 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 5, 2, dilation=2, bias=False),
        nn.Tanh(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


class KroneckerFactoredDescent:
    """K-FAC on a plain network: gradients of [W b] between the inverses of two damped, scaled moving averages."""

    def __init__(self, layers, *, lr, damping, output_damping, decay, refresh_every, momentum):
        self.layers, self.lr, self.dampings, self.momentum = layers, lr, (damping, output_damping), momentum
        self.decay, self.refresh_every = decay, refresh_every
        self.sums, self.totals, self.inverses, self.velocity = {}, {}, {}, {}
        self.steps = 0

    def average(self, key, matrix, count):
        self.sums[key] = self.decay * self.sums.get(key, 0) + count * matrix
        self.totals[key] = self.decay * self.totals.get(key, 0) + count
        return self.sums[key] / self.totals[key]

    def step(self, inputs, derivatives):
        for layer, rows, slopes in zip(self.layers, inputs, derivatives, strict=True):
            homogeneous = torch.cat([rows, torch.ones(len(rows), 1)], 1)
            a = self.average((layer, "a"), homogeneous.T @ homogeneous / len(rows), len(rows))
            b = torch.cov(slopes.T, correction=0)
            b = self.average((layer, "b"), b / b.diagonal().mean(), len(slopes))
            if self.steps in turns(self.refresh_every, self.steps):
                ridge = self.dampings[1] * b.trace() / len(b) * torch.eye(len(b))
                inverse = torch.linalg.inv(b + ridge)
                inverse = inverse * b.trace() / (b @ inverse).trace()
                self.inverses[layer] = damped_inverse(a, self.dampings[0], centred=layer.bias is not None), inverse
            gradient = layer.weight.grad.flatten(1)
            bias = torch.zeros(len(gradient)) if layer.bias is None else layer.bias.grad
            gradient = torch.cat([gradient, bias[:, None]], 1)
            self.velocity[layer] = self.momentum * self.velocity.get(layer, 0) + gradient
            right, left = self.inverses[layer]
            change = self.lr * left @ self.velocity[layer] @ right
            with torch.no_grad():
                layer.weight -= change[:, :-1].reshape(layer.weight.shape)
                if layer.bias is not None:
                    layer.bias -= change[:, -1]
        self.steps += 1


def seen_by(model, inputs, targets):
    """Inputs of the layers of a plain sequential network, and the loss's derivatives by their outputs, as rows."""
    rows, outputs = [], []
    for module in model:
        before, inputs = inputs, module(inputs)
        if isinstance(module, nn.Linear):
            rows.append(before.detach())
            outputs.append(inputs)
        elif isinstance(module, nn.Conv2d):
            rows.append(unfolded(module, before.detach())[0])
            outputs.append(inputs)
    loss = functional.cross_entropy(inputs, targets)
    for output in outputs:
        output.retain_grad()
    loss.backward()
    slopes = [output.grad if output.ndim == 2 else output.grad.movedim(1, -1).flatten(0, 2) for output in outputs]
    return loss, rows, slopes


@pytest.mark.parametrize(
    ("make", "data", "steps"),
    [(perceptron, vectors, 60), (lambda: perceptron(bias=False), vectors, 60), (ungrouped, images, 20)],
    ids=["perceptron", "a layer without bias", "convolutions"],
)
def test_descent_on_the_reconstruction_is_kronecker_factored_descent(make, data, steps):
    plain, (inputs, targets) = make(), data()
    model = reconstruct(copy.deepcopy(plain), damping=0.5, output_damping=0.2, decay=0.9, refresh_every=5, **DENSE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    reference = KroneckerFactoredDescent(
        layers_of(plain), lr=0.003, damping=0.5, output_damping=0.2, decay=0.9, refresh_every=5, momentum=0.9
    )
    for _ in range(steps):
        (loss,) = train(model, optimizer, inputs, targets, 1)
        plain.zero_grad()
        expected, rows, slopes = seen_by(plain, inputs, targets)
        reference.step(rows, slopes)
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    for layer, other in zip(layers_of(model), layers_of(plain), strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-8, atol=1e-10)
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias, other.bias, rtol=1e-8, atol=1e-10)


def test_a_grouped_convolution_has_a_root_for_each_group():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    gradient = torch.randn(5, 6, 2, 3)
    rows = rule_of(layer).output_rows(layer, gradient)
    expected = torch.stack([gradient[:, 3 * g : 3 * g + 3].permute(0, 2, 3, 1).reshape(-1, 3) for g in range(2)])
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(rule_of(layer).output_rows(layer, gradient[0]), expected[:, :6])
    model = reconstruct(nn.Sequential(layer), **DENSE)
    model(torch.randn(5, 4, 4, 5)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert fisher_of(layer).output.dense().shape == (2, 3, 3)
    before = model(torch.ones(1, 4, 4, 5))
    torch.testing.assert_close(fold(model)(torch.ones(1, 4, 4, 5)), before)


def test_neither_the_reduction_of_the_loss_nor_a_scaler_matters():
    inputs, targets = vectors()
    finals = []
    for reduction, scale in (("mean", 1.0), ("mean", 2.0**16), ("sum", 1.0)):
        model = reconstruct(perceptron(), refresh_every=3, **DENSE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        unscale = scale * (len(inputs) if reduction == "sum" else 1)
        for _ in range(10):
            optimizer.zero_grad()
            (functional.cross_entropy(model(inputs), targets, reduction=reduction) * scale).backward()
            for parameter in model.parameters():
                parameter.grad /= unscale
            optimizer.step()
        finals.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(finals[1], finals[0])
    torch.testing.assert_close(finals[2], finals[0])


def gradients_of(model, index=0):
    return fisher_of(model[index]).gradients


def test_an_activation_in_place_and_accumulated_halves_give_the_covariance_of_the_whole_batch():
    inputs, targets = vectors()
    plain = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    model = copy.deepcopy(plain)
    model[1] = nn.ReLU(inplace=True)
    reconstruct(model, **DENSE)
    for half in (slice(0, 20), slice(20, 64)):
        functional.cross_entropy(model(inputs[half]), targets[half], reduction="sum").backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    _, _, (slopes, _) = seen_by(plain, inputs, targets)
    covariance = torch.cov(slopes.T, correction=0)
    torch.testing.assert_close(gradients_of(model).value(), covariance / covariance.diagonal().mean())


def test_a_layer_that_is_read_twice_sees_both_derivatives():
    layer = nn.Linear(4, 4)
    twin = copy.deepcopy(layer)
    inputs = torch.randn(10, 4)
    model = reconstruct(nn.Sequential(layer, nn.Tanh(), layer), **DENSE)
    model(inputs).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    first = twin(inputs)
    last = twin(first.tanh())
    slopes = torch.cat(torch.autograd.grad(last.square().sum(), [first, last]))
    covariance = torch.cov(slopes.T, correction=0)
    torch.testing.assert_close(fisher_of(layer).gradients.value(), covariance / covariance.diagonal().mean())


def test_the_parts_of_a_step_weigh_by_their_rows_and_the_past_decays_once():
    fisher = fisher_of(reconstruct(nn.Linear(3, 2), mode="kronecker", decay=0.5))
    parts = [torch.randn(rows, 2) for rows in (5, 4, 6)]
    for step, gradients in zip((0, 1, 1), parts, strict=True):  # a closure's batches may come in several parts
        fisher.steps = step
        fisher.observe(torch.randn(len(gradients), 3))
        fisher.observe_gradient(gradients)
        fisher.absorb()
    covariances = [torch.cov(part.T, correction=0) for part in parts]
    first, second, third = (2 * covariance / covariance.trace() for covariance in covariances)
    expected = (0.5 * 5 * first + 4 * second + 6 * third) / (0.5 * 5 + 4 + 6)
    torch.testing.assert_close(fisher.gradients.value(), expected)


def test_derivatives_that_are_not_finite_are_passed_over():
    inputs, targets = vectors()
    model = reconstruct(perceptron(), **DENSE)
    (functional.cross_entropy(model(inputs), targets) * torch.inf).backward()
    assert fisher_of(model[0]).pending_gradients is None
    functional.cross_entropy(model(inputs), targets).backward()
    assert fisher_of(model[0]).pending_gradients.number == len(inputs)


def test_derivatives_that_do_not_vary_leave_the_root_alone():
    assert normalized_covariance(moments(torch.ones(5, 3), torch.ones(3))) is None
    model = reconstruct(nn.Sequential(nn.Linear(4, 3)), **DENSE)
    model(torch.randn(10, 4)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(fisher_of(model[0]).output.dense(), torch.eye(3))


def test_nothing_is_observed_in_evaluation_without_gradients_or_under_transforms():
    inputs, targets = vectors()
    model = reconstruct(perceptron(), **DENSE)
    parameters = dict(model.named_parameters())
    model.eval()
    functional.cross_entropy(model(inputs), targets).backward()
    model.train()
    with torch.no_grad():
        model(inputs)
    loss = torch.func.grad(lambda p: functional.cross_entropy(functional_call(model, p, (inputs,)), targets))
    loss({name: parameter.detach() for name, parameter in parameters.items()})
    vmap(lambda x: functional_call(model, parameters, (x[None],)))(inputs)
    assert all(fisher_of(layer).pending_gradients is None for layer in layers_of(model))


def test_a_checkpoint_resumes_the_same_course_and_plain_keys_load():
    inputs, targets = vectors()
    settings = DENSE | {"refresh_every": 3, "trust_region": 0.05}
    model = reconstruct(perceptron(), **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, inputs, targets, 7)
    other = reconstruct(perceptron(seed=3), **settings)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    follower = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    third = copy.deepcopy(model)
    assert train(model, optimizer, inputs, targets, 9) == train(other, follower, inputs, targets, 9)
    plain = perceptron(seed=5)
    third.load_state_dict(plain.state_dict())
    torch.testing.assert_close(third(inputs), plain(inputs))


def test_low_rank_roots_follow_the_dense_ones_where_few_directions_matter():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(60, 60, generator=generator))[0]
    inputs = torch.randn(128, 60, generator=generator) * 0.7 ** torch.arange(60.0) @ rotation
    aims = torch.randn(128, 40, generator=generator) * 0.7 ** torch.arange(40.0)
    first, finals = nn.Linear(60, 40), []
    for rank in (None, 14, 3):
        model = reconstruct(copy.deepcopy(first), refresh_every=5, output_damping=0.5, damping=0.5,
                            **(DENSE | {"rank": rank}))  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(inputs) - aims).square().sum(1).mean()
            loss.backward()
            optimizer.step()
        finals.append(loss.item())
    dense, enough, too_few = finals
    assert abs(enough - dense) < 0.01 * dense
    assert abs(too_few - dense) > 2 * abs(enough - dense)


def test_other_kinds_of_layers_are_reconstructed_on_the_input_side():
    model = reconstruct(nn.MultiheadAttention(4, 2, batch_first=True), mode="kronecker")
    assert fisher_of(model, "in_proj_weight").output is None


def test_output_damping_belongs_to_this_mode():
    with pytest.raises(ValueError, match="output_damping belongs to mode 'kronecker', and mode is 'input'"):
        reconstruct(perceptron(), output_damping=1.0)
