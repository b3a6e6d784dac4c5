"""The theorem: gradient descent on the reconstructed network is preconditioned descent on the plain one.

"optimizing the original network using NGD is equivalent to using fast GD to optimize the reconstructed network"
(Liu et al., arXiv 2412.07441).
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import ExactNaturalGradient, fold, reconstruct
from natural_gradient.cases_natural_gradient import (
    convolutional,
    images,
    layers_of,
    perceptron,
    rows_of,
    train,
    vectors,
)
from natural_gradient.references_natural_gradient import PreconditionedDescent

STEPS = 200
SGD_FLAVOURS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}
NETWORKS = {
    "perceptron": (perceptron, vectors, STEPS),
    "a layer without bias": (lambda: perceptron(bias=False), vectors, STEPS),
    "convolutions": (convolutional, images, 30),
}


def plain_inputs(model, inputs):
    """The rows that each layer of a plain sequential network sees."""
    seen = []
    for module in model:
        if isinstance(module, nn.Linear | nn.Conv2d):
            seen.append(rows_of(module, inputs))
        inputs = module(inputs)
    return [rows.detach() for rows in seen]


@pytest.mark.parametrize("flavour", SGD_FLAVOURS)
@pytest.mark.parametrize("network", ["perceptron", "a layer without bias"])
def test_descent_on_the_reconstruction_is_preconditioned_descent(network, flavour):
    make, data, steps = NETWORKS[network]
    plain, (inputs, targets) = make(), data()
    model = reconstruct(copy.deepcopy(plain), damping=0.1, decay=0.9, refresh_every=7, statistics_every=1, rank=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **SGD_FLAVOURS[flavour])
    reference = PreconditionedDescent(
        layers_of(plain), lr=0.01, damping=0.1, decay=0.9, refresh_every=7, **SGD_FLAVOURS[flavour]
    )
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        batch = torch.randint(0, len(inputs), (32,), generator=generator)
        (loss,) = train(model, optimizer, inputs[batch], targets[batch], 1)
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs[batch]), targets[batch])
        expected.backward()
        reference.step(plain_inputs(plain, inputs[batch]))
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    for layer, other in zip(layers_of(model), layers_of(plain), strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(layer.bias, other.bias, rtol=1e-8, atol=1e-10)


def test_convolutions_descend_as_the_linear_layers_of_their_patches():
    # Without groups: one information per layer, which the reference holds.
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 5, 2, dilation=2, bias=False),
        nn.Tanh(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    inputs, targets = images()
    model = reconstruct(copy.deepcopy(plain), damping=0.1, decay=0.9, refresh_every=7, statistics_every=1, rank=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    reference = PreconditionedDescent(layers_of(plain), lr=0.02, damping=0.1, decay=0.9, refresh_every=7, momentum=0.9)
    for _ in range(40):
        (loss,) = train(model, optimizer, inputs, targets, 1)
        plain.zero_grad()
        expected = functional.cross_entropy(plain(inputs), targets)
        expected.backward()
        reference.step(plain_inputs(plain, inputs))
        assert loss == pytest.approx(expected.item(), rel=1e-9)


def test_a_grouped_convolution_descends_as_its_groups_apart():
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    parts = [nn.Conv2d(2, 3, 3) for _ in range(2)]
    with torch.no_grad():
        for index, part in enumerate(parts):
            part.weight.copy_(grouped.weight[3 * index : 3 * index + 3])
            part.bias.copy_(grouped.bias[3 * index : 3 * index + 3])
    inputs, aim = torch.randn(4, 4, 6, 6) + 1, torch.randn(4, 6, 4, 4)
    settings = {"damping": 0.1, "refresh_every": 3, "statistics_every": 1, "rank": None}
    reconstruct(grouped, **settings)
    for part in parts:
        reconstruct(part, **settings)
    together = torch.optim.SGD(grouped.parameters(), lr=0.02, momentum=0.9)
    apart = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.02, momentum=0.9)
    for _ in range(20):
        outputs = torch.cat([part(inputs[:, 2 * i : 2 * i + 2]) for i, part in enumerate(parts)], 1)
        for optimizer, result in ((together, grouped(inputs)), (apart, outputs)):
            optimizer.zero_grad()
            (result - aim).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(grouped.weight, torch.cat([part.weight for part in parts]))
    torch.testing.assert_close(grouped.bias, torch.cat([part.bias for part in parts]))


def test_rank_deficit_of_the_input_makes_a_low_rank_root_exact():
    # 40 inputs that vary in 6 directions: all the others have the same (zero) variance.
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 40, generator=generator)
    inputs, targets = torch.randn(64, 6, generator=generator) @ mixing + 1, torch.randint(0, 3, (64,))
    first = nn.Linear(40, 3)
    runs = []
    for rank in (None, 6):
        model = reconstruct(copy.deepcopy(first), damping=0.1, refresh_every=5, statistics_every=1, rank=rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        runs.append(train(model, optimizer, inputs, targets, 60))
    assert runs[1] == pytest.approx(runs[0], rel=1e-8)


def test_a_low_rank_root_follows_the_dense_one_on_a_quickly_decaying_spectrum():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(60, 60, generator=generator))[0]
    inputs = torch.randn(128, 60, generator=generator) * 0.7 ** torch.arange(60.0) @ rotation
    targets = torch.randint(0, 3, (128,), generator=generator)
    first = nn.Linear(60, 3)
    finals = []
    for rank in (None, 12, 3):
        model = reconstruct(copy.deepcopy(first), damping=0.1, refresh_every=5, statistics_every=1, rank=rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        finals.append(train(model, optimizer, inputs, targets, 100)[-1])
    dense, enough, too_few = finals
    assert abs(enough - dense) < 0.01 * dense
    assert abs(too_few - dense) > 2 * abs(enough - dense)


def test_large_damping_gives_the_direction_of_plain_descent():
    plain, (inputs, targets) = perceptron(), vectors()
    for layer in layers_of(plain):
        layer.bias = None
    model = reconstruct(copy.deepcopy(plain), damping=1e9, rank=None)
    functional.cross_entropy(plain(inputs), targets).backward()
    before = [layer.weight.detach().clone() for layer in layers_of(model)]
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs, targets, 1)
    for layer, other, start in zip(layers_of(model), layers_of(plain), before, strict=True):
        # The scale undoes the damping: c² / λ -> 1.
        torch.testing.assert_close(layer.weight, start - 0.1 * other.weight.grad, rtol=1e-6, atol=1e-9)


def test_on_a_deep_linear_network_the_input_mode_times_the_output_factor_is_the_exact_natural_gradient():
    # Gaussian output: J_l = B_l ⊗ x with B_l the product of the later layers, the same for every sample, so a layer's
    # exact information is (B_lᵀ B_l) ⊗ E[x̃ x̃ᵀ]; input mode inverts the second factor.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    inputs, aims = torch.randn(50, 4) @ torch.randn(4, 4) + 1, torch.randn(50, 5)
    damping = 1e-12
    for chosen, layer in enumerate(network):
        rest = network[chosen + 1 :]
        out = layer.out_features
        jacobian = (rest(torch.eye(out)) - rest(torch.zeros(1, out))).T  # (outputs, out)

        exact = copy.deepcopy(network)
        for index, module in enumerate(exact):
            module.requires_grad_(index == chosen)
        optimizer = ExactNaturalGradient(exact, lr=0.1, damping=damping, output="gaussian")
        optimizer.observe(inputs)
        functional.mse_loss(exact(inputs), aims, reduction="sum").backward()
        optimizer.step()

        model = copy.deepcopy(network)
        reconstruct(model[chosen], damping=damping, rank=None)
        with torch.no_grad():
            seen = network[:chosen](inputs)
        power = torch.minimum(seen.square().sum(1).mean(), 4 * torch.cov(seen.T, correction=0).trace())
        scale = power / seen.shape[1]  # c², which the exact method does not have
        functional.mse_loss(model(inputs), aims, reduction="sum").backward()
        torch.optim.SGD(model[chosen].parameters(), lr=0.1).step()
        factor = torch.linalg.inv(jacobian.T @ jacobian)
        step = factor @ (fold(model[chosen]).weight - layer.weight) / scale
        torch.testing.assert_close(step, exact[chosen].weight - layer.weight, rtol=1e-5, atol=1e-8)
