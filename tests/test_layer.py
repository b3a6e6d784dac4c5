"""The Fisher layer and its roots: whitening, exact inverses, structure, state."""

import copy

import pytest
import torch

from fisherlayers.information import DenseInformation, DiagonalInformation, FisherInformation, KroneckerInformation
from fisherlayers.inverse_root import RootError, inverse_square_root
from fisherlayers.layer import FisherLayer, identity_root, root_of
from fisherlayers.root import BlockRoot, DenseRoot, DiagonalRoot, KroneckerRoot, LowRankRoot
from matrices import with_condition

D = 6


def correlated(rows, seed=0, size=D):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.cholesky(with_condition(1e3, size, seed=seed))
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mixing.T


def dense_information(size=D, seed=0):
    information = DenseInformation(size, dtype=torch.float64)
    information.update(correlated(100, seed, size))
    return information


def diagonal_information():
    information = DiagonalInformation(D, dtype=torch.float64)
    information.update(correlated(100))
    return information


def kronecker_information():
    information = KroneckerInformation(D, 3, dtype=torch.float64)
    information.update((correlated(80), correlated(80, 1, 3)))
    return information


CASES = {
    "dense": (dense_information, {}, DenseRoot),
    "dense by Denman-Beavers": (dense_information, {"method": "denman-beavers"}, DenseRoot),
    "dense by Newton-Schulz": (dense_information, {"method": "newton-schulz"}, DenseRoot),
    "low rank": (dense_information, {"rank": 3}, LowRankRoot),
    "rank of at least D": (dense_information, {"rank": D}, DenseRoot),
    "diagonal": (diagonal_information, {}, DiagonalRoot),
    "kronecker": (kronecker_information, {}, KroneckerRoot),
    "kronecker, low rank": (kronecker_information, {"rank": 2}, KroneckerRoot),
}


@pytest.mark.parametrize("name", CASES)
def test_solve_inverts_multiply_and_dense_is_the_matrix(name):
    make, options, kind = CASES[name]
    root = root_of(make(), damping=0.1, **options)
    assert type(root) is kind
    rows = torch.randn(3, D, dtype=torch.float64, generator=torch.manual_seed(0))
    torch.testing.assert_close(root.solve(root.multiply(rows)), rows)
    torch.testing.assert_close(root.multiply(root.solve(rows)), rows)
    torch.testing.assert_close(root(rows), root.multiply(rows))
    matrix = root.dense()
    torch.testing.assert_close(matrix, matrix.T)
    if kind is KroneckerRoot:  # a weight's columns stacked, as in vec(B W A) = (A ⊗ B) vec(W)
        torch.testing.assert_close(root.multiply(rows).T.reshape(-1), matrix @ rows.T.reshape(-1))
    else:
        torch.testing.assert_close(root.multiply(rows), rows @ matrix)


@pytest.mark.parametrize("name", ["dense", "dense by Newton-Schulz", "diagonal", "kronecker"])
def test_root_is_the_inverse_square_root_of_the_damped_value(name):
    make, options, kind = CASES[name]
    information = make()
    root = root_of(information, damping=0.2, **options)
    if kind is KroneckerRoot:  # each factor is damped relative to its own mean eigenvalue
        factors = (information.inputs.value(), information.gradients.value())
        expected = torch.kron(*(inverse_square_root(factor, damping=0.2) for factor in factors))
    else:
        value = information.value()
        expected = inverse_square_root(torch.diag(value) if value.ndim == 1 else value, damping=0.2)
    torch.testing.assert_close(root.dense(), expected)


@pytest.mark.parametrize("name", CASES)
def test_identity_root_has_the_structure_and_changes_nothing(name):
    make, options, kind = CASES[name]
    root = identity_root(make(), rank=options.get("rank"))
    assert type(root) is kind
    rows = torch.randn(3, D, dtype=torch.float64, generator=torch.manual_seed(0))
    torch.testing.assert_close(root.multiply(rows), rows)
    torch.testing.assert_close(root.solve(rows), rows)
    expected = {key: value.shape for key, value in root_of(make(), damping=0.1, **options).state_dict().items()}
    assert {key: value.shape for key, value in root.state_dict().items()} == expected


@pytest.mark.parametrize("diagonal", [False, True])
def test_whitened_scores_have_identity_second_moment(diagonal):
    scores = correlated(500)
    layer = FisherLayer((DiagonalInformation if diagonal else DenseInformation)(D, dtype=torch.float64), damping=0.0)
    torch.testing.assert_close(layer(scores), scores)  # the identity before the first refresh
    layer.update(scores)
    layer.refresh()
    whitened = layer(scores)
    moment = whitened.T @ whitened / len(scores)
    expected = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(moment.diag(), expected.diag())
    if not diagonal:
        torch.testing.assert_close(moment, expected)
    torch.testing.assert_close(layer.unnormalize(whitened), scores)


def test_gradient_reaches_the_scores_but_not_the_information():
    layer = FisherLayer(dense_information(), damping=0.1)
    layer.refresh()
    scores = correlated(4).requires_grad_()
    layer(scores).sum().backward()
    torch.testing.assert_close(scores.grad, torch.ones(4, D, dtype=torch.float64) @ layer.root.dense())
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_every_refresh_is_a_further_step_towards_the_leading_directions():
    information = DenseInformation(40, dtype=torch.float64)
    information.update_from_moment(torch.diag(torch.tensor([100.0, 80.0, 60.0, 50.0] + 36 * [1.0])), 1)
    exact = inverse_square_root(information.value(), damping=0.1)
    layer = FisherLayer(information, damping=0.1, rank=4)
    errors = []
    for _ in range(8):
        layer.refresh()
        errors.append(float(torch.linalg.norm(layer.root.dense() - exact)))
    assert errors[-1] < 1e-9 < errors[0]


@pytest.mark.parametrize("name", CASES)
def test_state_dict_and_deepcopy_continue_exactly(name):
    make, options, _ = CASES[name]
    layer = FisherLayer(make(), damping=0.1, **options)
    layer.refresh()
    empty = {DenseInformation: dense_information, DiagonalInformation: diagonal_information}
    fresh = FisherLayer(empty.get(type(layer.information), kronecker_information)(), damping=0.1, **options)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    rows = torch.randn(3, D, dtype=torch.float64, generator=torch.manual_seed(1))
    copied = copy.deepcopy(layer)
    for _ in range(2):
        assert torch.equal(fresh(rows), layer(rows))
        assert torch.equal(copied(rows), layer(rows))
        for each in (layer, fresh, copied):
            each.refresh()


def test_batched_roots_multiply_their_own_rows():
    information = DenseInformation(D, batch_shape=(2,), dtype=torch.float64)
    rows = torch.stack([correlated(50, 0), correlated(50, 1)])
    information.update(rows)
    for rank in (None, 2):
        root = root_of(information, damping=0.1, rank=rank)
        for i in range(2):
            single = DenseInformation(D, dtype=torch.float64)
            single.update(rows[i])
            torch.testing.assert_close(
                root.multiply(rows)[i], root_of(single, damping=0.1, rank=rank).multiply(rows[i])
            )


def test_errors():
    zero = DiagonalInformation(2)
    zero.update(torch.tensor([[1.0, 0.0]]))
    with pytest.raises(RootError, match="zero along a coordinate: raise damping"):
        root_of(zero, damping=0.0)
    with pytest.raises(ValueError, match="damping must be at least 0 and finite, got -1"):
        root_of(zero, damping=-1)

    class Unknown(FisherInformation):
        def update(self, scores, *, new_step=True): ...
        def merge(self, other): ...
        def value(self): ...

    for function in (root_of, lambda information, damping: identity_root(information)):
        with pytest.raises(TypeError, match="must be dense, diagonal or Kronecker, got Unknown"):
            function(Unknown(), damping=0.1)


@pytest.mark.parametrize(("blocks", "width", "size"), [(1, 6, 6), (3, 2, 6), (3, 2, 5), (2, 4, 5)])
def test_a_block_root_is_the_root_of_the_block_diagonal_matrix(blocks, width, size):
    rows = correlated(50, size=blocks * width)
    rows[:, size:] = 0  # the surplus of the last block
    parts = [rows[:, start : start + width] for start in range(0, blocks * width, width)]
    covariance = torch.stack([part.T @ part / 50 + torch.eye(width, dtype=torch.float64) for part in parts])
    root = BlockRoot(inverse_square_root(covariance), size)
    whole = torch.block_diag(*covariance)[:size, :size]
    torch.testing.assert_close(root.dense() @ whole @ root.dense(), torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(root.multiply(rows[:, :size]), rows[:, :size] @ root.dense())
    torch.testing.assert_close(root.solve(root.multiply(rows[:, :size])), rows[:, :size])


def test_blocks_that_do_not_cover_the_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"blocks .* of 9 coordinates"):
        BlockRoot(torch.eye(2).repeat(4, 1, 1), 9)


def test_settings_are_refused_when_the_layer_is_made():
    for options, message in (
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"damping": float("inf")}, "damping must be at least 0 and finite, got inf"),
        ({"method": "svd"}, "method must be one of"),
        ({"rank": 0}, "rank must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FisherLayer(DenseInformation(3), **options)
    nothing = DiagonalInformation(3)
    nothing.update(torch.zeros(4, 3))
    with pytest.raises(RootError, match="all scores were zero"):
        root_of(nothing, damping=0.1)
