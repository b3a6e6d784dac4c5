"""The root of a layer's input: whitening, damping, scale, and what happens at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.inverse_root import LowRank, random_basis
from fisherlayers.natural_gradient.roots import automatic_damping, input_coordinates, plain_coordinates
from fisherlayers.root import DenseRoot, LowRankRoot

D = 8


def samples(size=D, rows=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator) @ torch.randn(size, size, generator=generator) + 1.5


def moment(inputs, origin):
    scores = torch.cat([inputs - origin, torch.ones(len(inputs), 1)], 1)
    return scores.T @ scores / len(inputs)


def dense_start(size=D):
    return DenseRoot(torch.eye(size))


def low_rank_start(size=D, rank=3):
    return LowRankRoot(LowRank(torch.tensor(1.0), random_basis(size, rank), torch.ones(rank)))


def coordinates(inputs, *, damping=0.5, centred=True, start=None, origin=None):
    origin = torch.zeros(inputs.shape[1]) if origin is None else origin
    start = dense_start(inputs.shape[1]) if start is None else start
    options = {"centred": centred, "damping": damping, "previous": start}
    return input_coordinates(moment(inputs, origin), origin, **options)


@pytest.mark.parametrize("centred", [True, False])
def test_the_root_is_the_damped_scaled_inverse_root(centred):
    inputs = samples()
    found = coordinates(inputs, centred=centred)
    matrix = torch.cov(inputs.T, correction=0) if centred else inputs.T @ inputs / len(inputs)
    values, vectors = torch.linalg.eigh(matrix + 0.5 * matrix.trace() / D * torch.eye(D))
    expected = vectors / values.sqrt() @ vectors.T
    power = inputs.square().sum(1).mean()
    expected = expected * (power / (expected @ matrix @ expected).trace()).sqrt()
    torch.testing.assert_close(found.root.dense(), expected)
    torch.testing.assert_close(found.mean, inputs.mean(0) if centred else torch.zeros(D))


@pytest.mark.parametrize("start", [dense_start, low_rank_start])
@given(damping=st.floats(1e-2, 1e3), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_the_whitened_input_has_the_power_of_the_input(start, damping, seed):
    inputs = samples(seed=seed)
    found = coordinates(inputs, damping=damping, start=start())
    if isinstance(found.root, LowRankRoot):
        for _ in range(60):  # subspace iterations: the scale is exact for the eigenvectors
            found = coordinates(inputs, damping=damping, start=found.root)
    whitened = (inputs - found.mean) @ found.root.dense()
    torch.testing.assert_close(whitened.square().sum(1).mean(), inputs.square().sum(1).mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("start", [dense_start, low_rank_start])
@pytest.mark.parametrize("centred", [True, False])
def test_infinite_damping_centres_and_does_no_more(start, centred):
    inputs = samples()
    found = coordinates(inputs, damping=float("inf"), centred=centred, start=start())
    assert torch.equal(found.root.dense(), torch.eye(D))
    torch.testing.assert_close(found.mean, inputs.mean(0) if centred else torch.zeros(D))
    # But for the scale it is the limit of large ones.
    large = coordinates(inputs, damping=1e6, centred=centred, start=start())
    scale = large.root.dense().diagonal().mean()
    torch.testing.assert_close(large.root.dense(), scale * torch.eye(D), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean, large.mean)


def test_damping_grows_with_the_directions_that_a_batch_cannot_tell():
    assert automatic_damping(784, 0) == automatic_damping(784, 784) == 3
    assert automatic_damping(784, 50) == pytest.approx(3 * 0.64 * 784 / 50)
    assert automatic_damping(784, 784, orthogonal=True) == float("inf")
    assert automatic_damping(784, 50, orthogonal=True) == float("inf")


def test_an_input_that_hardly_varies_is_not_blown_up():
    inputs = samples()
    far = inputs + 1000
    found = coordinates(far, origin=far.mean(0))
    whitened = (far - found.mean) @ found.root.dense()
    variance = torch.cov(inputs.T, correction=0).trace()
    torch.testing.assert_close(whitened.square().sum(1).mean(), 4 * variance)


def test_no_scale_of_the_input_changes_the_path():
    # x -> a x, W -> W / a computes the same; W' follows with the same S (x - μ) up to a: S stays.
    inputs = samples()
    one, other = coordinates(inputs), coordinates(1000 * inputs)
    torch.testing.assert_close(one.root.dense(), other.root.dense())


def test_the_origin_makes_no_difference():
    inputs = samples()
    one, other = coordinates(inputs), coordinates(inputs, origin=torch.randn(D))
    torch.testing.assert_close(one.root.dense(), other.root.dense())
    torch.testing.assert_close(one.mean, other.mean)


@pytest.mark.parametrize("centred", [True, False])
def test_a_low_rank_root_of_full_rank_is_the_dense_one(centred):
    inputs = samples()
    dense = coordinates(inputs, centred=centred)
    low_rank = coordinates(inputs, centred=centred, start=low_rank_start(rank=D))
    torch.testing.assert_close(low_rank.root.dense(), dense.root.dense())


def test_the_structure_of_the_previous_root_stays():
    assert isinstance(coordinates(samples()).root, DenseRoot)
    assert coordinates(samples(), start=low_rank_start()).root.basis.shape == (D, 3)


def test_groups_are_rooted_side_by_side():
    inputs = [samples(seed=1), samples(seed=2)]
    starts = (
        DenseRoot(torch.eye(D).repeat(2, 1, 1)),
        LowRankRoot(LowRank(torch.ones(2), random_basis(D, 3).repeat(2, 1, 1), torch.ones(2, 3))),
    )
    for start, single in zip(starts, (dense_start, low_rank_start), strict=True):
        moments = torch.stack([moment(rows, torch.zeros(D)) for rows in inputs])
        both = input_coordinates(moments, torch.zeros(2, D), centred=True, damping=0.5, previous=start)
        for index, rows in enumerate(inputs):
            apart = coordinates(rows, start=single())
            torch.testing.assert_close(both.root.dense()[index], apart.root.dense())
            torch.testing.assert_close(both.mean[index], apart.mean)


@pytest.mark.parametrize("damping", [0.5, float("inf")])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("low_rank", [True, False])
def test_a_group_that_never_varies_stays_as_it_is_beside_the_others(low_rank, centred, damping):
    inputs = [samples(seed=1), torch.full((200, D), 3.0) if centred else torch.zeros(200, D), samples(seed=2)]
    start = DenseRoot(torch.eye(D).repeat(3, 1, 1))
    if low_rank:
        start = LowRankRoot(LowRank(torch.ones(3), random_basis(D, 3).repeat(3, 1, 1), torch.ones(3, 3)))
    moments = torch.stack([moment(rows, torch.zeros(D)) for rows in inputs])
    found = input_coordinates(moments, torch.zeros(3, D), centred=centred, damping=damping, previous=start)
    for index in (0, 2):
        single = low_rank_start() if low_rank else dense_start()
        apart = coordinates(inputs[index], start=single, damping=damping, centred=centred)
        torch.testing.assert_close(found.root.dense()[index], apart.root.dense())
        torch.testing.assert_close(found.mean[index], apart.mean)
    torch.testing.assert_close(found.root.dense()[1], torch.eye(D))
    assert not found.mean[1].any()


@pytest.mark.parametrize(
    ("shift", "dtype"),
    [(15.0, torch.float32), (30.0, torch.float32), (100.0, torch.float64), (1e4, torch.float64)],
)
def test_low_rank_roots_where_the_mean_has_left_the_origin(shift, dtype):
    # Directions without variance are known no better than the power about the origin, which the mean rules.
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(256, 3, generator=generator, dtype=dtype) @ torch.randn(
        3, 200, generator=generator, dtype=dtype
    )
    rows = torch.nn.functional.pad(spread + shift, (0, 1), value=1.0)
    second, root = rows.T @ rows / 256, low_rank_start(200, 31).to(dtype)
    for _ in range(5):
        found = input_coordinates(second, torch.zeros(200, dtype=dtype), centred=True, damping=3.0, previous=root)
        root = found.root
    # what the identity of the definition leaves where the covariance has rank 3
    covariance = torch.cov(spread.double().T, correction=0)
    values, vectors = torch.linalg.eigh(covariance + 3 * covariance.trace() / 200 * torch.eye(200, dtype=torch.float64))
    expected = vectors / values.sqrt() @ vectors.T
    expected = expected * (4 * covariance.trace() / (expected @ covariance @ expected).trace()).sqrt()
    noise = 1e3 * torch.finfo(dtype).eps * (1 + shift**2)
    assert float((root.dense().double() - expected).abs().max()) < noise * float(expected.abs().max())


@pytest.mark.parametrize("start", [dense_start, low_rank_start])
def test_inputs_that_never_vary_have_no_coordinates(start):
    assert coordinates(torch.full((10, D), 3.0), start=start()) is None
    assert coordinates(torch.zeros(10, D), centred=False, start=start()) is None


@pytest.mark.parametrize("start", [dense_start, low_rank_start])
def test_dead_and_repeated_inputs_in_float32(start):
    inputs = samples().float()
    inputs[:, 1:4] = 0
    inputs[:, 5] = inputs[:, 4]
    origin = inputs.mean(0)
    previous = start().float()
    found = input_coordinates(moment(inputs, origin).float(), origin, centred=True, damping=1e-3, previous=previous)
    assert torch.isfinite(found.root.dense()).all()
    assert found.root.dense().dtype == torch.float32


@pytest.mark.parametrize("start", [dense_start, low_rank_start])
def test_plain_coordinates_change_nothing(start):
    given = coordinates(samples(), start=start())
    root, mean, output = plain_coordinates(given)
    assert output is None
    torch.testing.assert_close(root.dense(), torch.eye(D))
    assert not mean.any()
