"""The change of variables: values by M, gradients by M^(-T), both exactly invertible."""

import pytest
import torch

from fisherlayers.inverse_root import LowRank
from fisherlayers.natural_gradient.coordinates import (
    Coordinates,
    change_gradient,
    change_value,
    gradient_from_plain,
    gradient_to_plain,
    value_from_plain,
    value_to_plain,
)
from fisherlayers.root import DenseRoot, LowRankRoot

OUT, D = 3, 5


def coordinates(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "two-sided":
        factor = torch.randn(OUT, OUT, generator=generator)
        output = DenseRoot(factor @ factor.T / OUT + 0.1 * torch.eye(OUT))
        return coordinates("low rank", seed)._replace(output=output)
    mean = torch.randn(D, generator=generator)
    if kind == "low rank":
        basis = torch.linalg.qr(torch.randn(D, 2, generator=generator))[0]
        return Coordinates(LowRankRoot(LowRank(torch.tensor(1.7), basis, torch.tensor([0.3, 0.9]))), mean)
    factor = torch.randn(D, D, generator=generator)
    return Coordinates(DenseRoot(factor @ factor.T / D + 0.1 * torch.eye(D)), mean)


def transform(given):
    """M with [W b] = [W' d] M, written out."""
    root = given.root.dense()
    top = torch.cat([root, -(root @ given.mean)[:, None]], 1)
    return torch.cat([top, torch.cat([torch.zeros(D), torch.ones(1)])[None]], 0)


def left(given):
    """T, with [W b] = T [W' d] M."""
    return torch.eye(OUT) if given.output is None else given.output.dense()


@pytest.fixture(params=["dense", "low rank", "two-sided"])
def pair(request):
    return coordinates(request.param, 1), coordinates(request.param, 2)


def joined(weight, bias):
    return torch.cat([weight, bias[:, None]], 1)


def test_values_map_by_m(pair):
    weight, bias = torch.randn(OUT, D), torch.randn(OUT)
    plain = value_to_plain(weight, bias, pair[0])
    torch.testing.assert_close(joined(*plain), left(pair[0]) @ joined(weight, bias) @ transform(pair[0]))
    torch.testing.assert_close(joined(*value_from_plain(*plain, pair[0])), joined(weight, bias))


def test_gradients_map_by_the_inverse_transpose(pair):
    weight, bias = torch.randn(OUT, D), torch.randn(OUT)
    plain = gradient_to_plain(weight, bias, pair[0])
    expected = torch.linalg.solve(left(pair[0]), joined(weight, bias)) @ torch.linalg.inv(transform(pair[0])).T
    torch.testing.assert_close(joined(*plain), expected)
    torch.testing.assert_close(joined(*gradient_from_plain(*plain, pair[0])), joined(weight, bias))


def test_gradients_are_those_of_autograd(pair):
    weight, bias = torch.randn(OUT, D, requires_grad=True), torch.randn(OUT, requires_grad=True)

    def loss(plain_weight, plain_bias):
        return (plain_weight.sin() * torch.arange(1.0, D + 1)).sum() + plain_bias.exp().sum()

    plain = value_to_plain(weight, bias, pair[0])
    expected = torch.autograd.grad(loss(*plain), [weight, bias])
    leaves = [tensor.detach().requires_grad_() for tensor in plain]
    plain_gradients = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(joined(*gradient_from_plain(*plain_gradients, pair[0])), joined(*expected))


def test_the_transform_whitens_the_homogeneous_input():
    inputs = torch.randn(50, D) @ torch.randn(D, D) + 2
    mean, covariance = inputs.mean(0), torch.cov(inputs.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    given = Coordinates(DenseRoot(vectors / values.sqrt() @ vectors.T), mean)
    homogeneous = joined(inputs, torch.ones(50))
    information = homogeneous.T @ homogeneous / 50
    torch.testing.assert_close(transform(given).T @ transform(given), torch.linalg.inv(information))


def test_a_change_of_coordinates_moves_no_plain_value_and_keeps_the_pairing_with_gradients(pair):
    old, new = pair
    weight, bias, slope, offset = torch.randn(OUT, D), torch.randn(OUT), torch.randn(OUT, D), torch.randn(OUT)
    moved = change_value(weight, bias, old, new)
    torch.testing.assert_close(joined(*value_to_plain(*moved, new)), joined(*value_to_plain(weight, bias, old)))
    moved_gradient = change_gradient(slope, offset, old, new)
    before, after = joined(weight, bias) * joined(slope, offset), joined(*moved) * joined(*moved_gradient)
    torch.testing.assert_close(after.sum(), before.sum())


def test_without_bias_only_the_root_acts(pair):
    given = pair[0]._replace(mean=torch.zeros(D))
    weight = torch.randn(OUT, D)
    plain, bias = value_to_plain(weight, None, given)
    assert bias is None
    torch.testing.assert_close(plain, left(given) @ weight @ given.root.dense())
    torch.testing.assert_close(value_from_plain(plain, None, given)[0], weight)
    torch.testing.assert_close(gradient_to_plain(gradient_from_plain(weight, None, given)[0], None, given)[0], weight)


def test_groups_are_mapped_side_by_side():
    given = [coordinates("dense", seed) for seed in (3, 4)]
    both = Coordinates(DenseRoot(torch.stack([g.root.dense() for g in given])), torch.stack([g.mean for g in given]))
    weight, bias = torch.randn(2, OUT, D), torch.randn(2, OUT)
    for rule in (value_to_plain, value_from_plain, gradient_to_plain, gradient_from_plain):
        together = rule(weight, bias, both)
        for index in range(2):
            apart = rule(weight[index], bias[index], given[index])
            torch.testing.assert_close((together[0][index], together[1][index]), apart)
