"""Fused products against the roots' own, with their derivatives."""

import pytest
import torch

from fisherlayers.inverse_root import LowRank, random_basis
from fisherlayers.natural_gradient import reconstruct
from fisherlayers.natural_gradient.exchange import exchange_gradient, exchange_value
from fisherlayers.natural_gradient.products import (
    DenseFactors,
    LowRankFactors,
    ScaledIdentity,
    centred_product,
    fusible,
    multiply,
    multiply_and_shift,
    shifted_factors,
    solve,
)
from fisherlayers.natural_gradient.readers import originals
from fisherlayers.root import DenseRoot, LowRankRoot
from natural_gradient.cases_natural_gradient import perceptron, train, vectors

N, D, R = 5, 7, 3


def low_rank():
    return LowRankRoot(LowRank(torch.tensor(0.7), random_basis(D, R), torch.tensor([0.2, 0.9, 1.4])))


def multiple(structure, scale=0.7):
    """Return scale I in a structure that could hold more."""
    if structure == "dense":
        return DenseRoot(scale * torch.eye(D))
    return LowRankRoot(LowRank(torch.tensor(scale), random_basis(D, R), torch.full((R,), scale))).double()


ROOTS = {
    "low rank": (lambda: low_rank().double(), LowRankFactors),
    "dense": (lambda: DenseRoot(torch.eye(D) + 0.1), DenseFactors),
    "a multiple of the identity, of low rank": (lambda: multiple("low rank"), ScaledIdentity),
    "a multiple of the identity, dense": (lambda: multiple("dense"), ScaledIdentity),
    "the identity": (lambda: multiple("low rank", 1.0), ScaledIdentity),
}


@pytest.mark.parametrize("root", [low_rank(), DenseRoot(torch.eye(D) + 0.1)], ids=["low rank", "dense"])
def test_products_are_those_of_the_root(root):
    root = root.double()
    rows = torch.randn(N, D, requires_grad=True)
    for fused, slow in ((multiply, root.multiply), (solve, root.solve)):
        torch.testing.assert_close(fused(root, rows), slow(rows))
        aim = torch.randn(N, D)
        (found,) = torch.autograd.grad((fused(root, rows) * aim).sum(), rows)
        (expected,) = torch.autograd.grad((slow(rows) * aim).sum(), rows)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("structure", list(ROOTS))
def test_the_product_and_the_shifted_bias_come_together(structure):
    rows, bias, shift = torch.randn(N, D, requires_grad=True), torch.randn(N, requires_grad=True), torch.randn(D)
    root, kind = ROOTS[structure][0](), ROOTS[structure][1]
    factors = shifted_factors(root, shift)
    assert isinstance(factors, kind)
    plain, shifted = multiply_and_shift(rows, bias, factors)
    torch.testing.assert_close(plain, root.multiply(rows))
    torch.testing.assert_close(shifted, bias - rows @ shift)

    def both(rows, bias):
        return tuple(result.sin() for result in multiply_and_shift(rows, bias, factors))

    assert torch.autograd.gradcheck(both, (rows, bias))
    assert torch.autograd.gradgradcheck(both, (rows, bias))


@pytest.mark.parametrize("structure", list(ROOTS))
def test_a_centred_product_is_that_of_the_root(structure):
    root, rows, centre = ROOTS[structure][0](), torch.randn(N, D, requires_grad=True), torch.randn(D)
    factors = shifted_factors(root, torch.randn(D))
    torch.testing.assert_close(centred_product(rows, centre, factors), root.multiply(rows - centre))
    assert torch.autograd.gradcheck(lambda rows: centred_product(rows, centre, factors).sin(), rows)


@pytest.mark.parametrize("structure", list(ROOTS))
def test_autocast_does_not_round_the_product(structure):
    rows, bias, shift = (torch.randn(*shape).float().requires_grad_() for shape in ((N, D), (N,), (D,)))
    root = ROOTS[structure][0]().float()
    factors = shifted_factors(root, shift)
    expected = root.multiply(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, shifted = multiply_and_shift(rows, bias, factors)
        plain.backward(rows.detach())
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(shifted, bias - rows @ shift)
    torch.testing.assert_close(rows.grad, expected)


def test_products_can_be_differentiated_twice():
    root, rows = low_rank().double(), torch.randn(N, D, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda rows: multiply(root, rows).sin(), rows)


def check_exchange(old, new):
    rows, column, vector = torch.randn(N, D), torch.randn(N), torch.randn(D)
    moved, offset = exchange_value(rows.clone(), old, new, vector)
    torch.testing.assert_close(moved @ new.dense(), rows @ old.dense())
    torch.testing.assert_close(offset, rows @ old.dense() @ vector)
    plain = rows @ torch.linalg.inv(old.dense())
    torch.testing.assert_close(exchange_gradient(rows, old, new, None, vector), plain @ new.dense())
    expected = (plain + torch.outer(column, vector)) @ new.dense()
    torch.testing.assert_close(exchange_gradient(rows, old, new, column, vector), expected)


@pytest.mark.parametrize("rank", [1, 3, D])
@pytest.mark.parametrize("fused", [True, False])
def test_an_exchange_of_roots_leaves_one_and_enters_the_other(rank, fused):
    new = LowRankRoot(LowRank(torch.tensor(1.9), random_basis(D, rank, seed=1), torch.linspace(0.1, 3, rank))).double()
    old = low_rank().double() if fused else DenseRoot(torch.eye(D) + 0.1)
    check_exchange(old, new)


@pytest.mark.parametrize("before", list(ROOTS))
@pytest.mark.parametrize("after", list(ROOTS))
def test_an_exchange_with_a_multiple_of_the_identity(before, after):
    old, new = ROOTS[before][0](), ROOTS[after][0]()
    if after in {"a multiple of the identity, of low rank", "a multiple of the identity, dense"}:
        new = multiple("low rank" if "low" in after else "dense", 1.9)
    check_exchange(old, new)


def test_one_gain_of_another_size_is_no_multiple_of_the_identity():
    shift = torch.zeros(D)
    low, dense = multiple("low rank"), multiple("dense")
    low.gains[1] *= 1.1
    dense.matrix[2, 3] = dense.matrix[3, 2] = 0.1
    assert isinstance(shifted_factors(low, shift), LowRankFactors)
    assert isinstance(shifted_factors(dense, shift), DenseFactors)


def test_groups_and_other_dtypes_take_the_general_way():
    root = low_rank().double()
    assert not fusible(root, torch.randn(2, N, D))
    assert not fusible(root, torch.randn(N, D).float())


class TestReadingTheWeightAndThenTheBias:
    """The weight's product leaves W' · shift for the bias; it must never be a stale one."""

    @pytest.fixture
    def layer(self):
        model = reconstruct(perceptron(), rank=3, refresh_every=2, statistics_every=1)
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), *vectors(), 5)
        assert model[0].parametrizations.weight[0].shift.any()
        model.zero_grad()
        return model[0]

    def expected(self, layer):
        weight, bias = originals(layer)
        return bias - weight @ layer.parametrizations.weight[0].shift

    def test_in_any_order(self, layer):
        torch.testing.assert_close(layer.bias, self.expected(layer))
        weight = layer.weight
        torch.testing.assert_close(layer.bias, self.expected(layer))
        torch.testing.assert_close(layer.bias, self.expected(layer))
        assert weight.shape == (9, 7)

    def test_after_the_weight_has_moved(self, layer):
        weight = layer.weight
        with torch.no_grad():
            originals(layer)[0].mul_(2)
        torch.testing.assert_close(layer.bias, self.expected(layer))
        assert weight.requires_grad

    def test_with_gradients_after_a_read_without(self, layer):
        with torch.no_grad():
            weight = layer.weight
        layer.bias.sum().backward()
        shift = layer.parametrizations.weight[0].shift
        torch.testing.assert_close(originals(layer)[0].grad, -shift.expand_as(weight))

    def test_gradients_of_both_together(self, layer):
        aim = torch.randn(9, 7)
        ((layer.weight * aim).sum() + layer.bias.exp().sum()).backward()
        found = originals(layer)[0].grad.clone()
        weight, bias = originals(layer)
        fisher = layer.parametrizations.weight[0]
        plain = fisher.root.multiply(weight)
        loss = (plain * aim).sum() + (bias - weight @ fisher.shift).exp().sum()
        (expected,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(found, expected)
