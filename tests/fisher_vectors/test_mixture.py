"""Mixtures: densities against scipy, EM against the textbook and scikit-learn, degenerate data."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from fisher_vectors.fisher_vector_references import (
    density,
    em_step_loops,
    incremental_pass_loops,
    random_mixture,
    sample,
)
from fisherlayers.fisher_vectors.expectation_maximisation import em_step, fit_mixture
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, log_prob, log_responsibilities, responsibilities


def test_log_prob_and_posteriors_are_their_definitions():
    mixture = random_mixture(5, 3)
    rows = sample(mixture, 20)
    joint = torch.stack([density(mixture, x) for x in rows])
    torch.testing.assert_close(log_prob(mixture, rows), joint.sum(-1).log())
    torch.testing.assert_close(responsibilities(mixture, rows), joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(log_responsibilities(mixture, rows).exp(), joint / joint.sum(-1, keepdim=True))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_stays_accurate_far_from_the_origin(offset):
    mixture = random_mixture(8, 16)
    rows = sample(mixture, 500)
    moved = DiagonalMixture(mixture.weights, mixture.means + offset, mixture.variances)
    # Rounding the inputs to float32 alone costs offset * 6e-8 in x.
    single = moved.to(torch.float32)
    gamma = responsibilities(single, (rows + offset).float())
    torch.testing.assert_close(gamma.double(), responsibilities(mixture, rows), rtol=0, atol=2e-5 + 2e-6 * offset)


def test_far_points_get_finite_log_densities_and_posteriors_that_sum_to_one():
    mixture = random_mixture(4, 3, dtype=torch.float32)
    rows = torch.tensor([[1e4, -1e4, 1e4]])
    assert torch.isfinite(log_prob(mixture, rows)).all()
    torch.testing.assert_close(responsibilities(mixture, rows).sum(-1), torch.ones(1))


def test_posteriors_are_never_denormal():
    mixture = DiagonalMixture(torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
    posteriors = responsibilities(mixture, torch.linspace(-150, 150, 601)[:, None])
    assert float(posteriors.min()) > torch.finfo(torch.float32).tiny
    torch.testing.assert_close(posteriors.sum(-1), torch.ones(601))


def test_em_step_is_the_textbook_step():
    mixture = random_mixture(4, 3)
    rows = sample(random_mixture(4, 3, seed=1), 60)
    stepped, log_likelihood = em_step(mixture, rows, variance_floor=0.5, min_weight=1e-12)
    expected = em_step_loops(mixture, rows, 0.5)
    assert log_likelihood == pytest.approx(float(log_prob(mixture, rows).mean()), rel=1e-12)
    for name in ("weights", "means", "variances"):
        torch.testing.assert_close(getattr(stepped, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    assert (stepped.variances == 0.5).any()


@settings(max_examples=25, deadline=None)
@given(
    components=st.integers(1, 6),
    features=st.integers(1, 4),
    rows=st.integers(6, 60),
    seed=st.integers(0, 1000),
    floor=st.floats(1e-3, 1.0),
)
def test_em_never_lowers_the_likelihood(components, features, rows, seed, floor):
    descriptors = sample(random_mixture(3, features, seed=seed), rows, seed=seed)
    start = random_mixture(components, features, seed=seed + 1)
    # The floor holds from the start: EM maximises over the mixtures above the floor.
    mixture = DiagonalMixture(start.weights, start.means, start.variances.clamp_min(floor))
    previous = -float("inf")
    for _ in range(8):
        mixture, log_likelihood = em_step(mixture, descriptors, variance_floor=floor, min_weight=1e-12)
        assert log_likelihood >= previous - 1e-9 * abs(log_likelihood)
        previous = log_likelihood


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(1, 70), seed=st.integers(0, 1000))
def test_chunked_em_equals_one_chunk(chunk, seed):
    rows = sample(random_mixture(3, 2, seed=seed), 64, seed=seed)
    start = random_mixture(3, 2, seed=seed + 1)
    chunked, whole = (em_step(start, rows, chunk=c) for c in (chunk, 64))
    assert chunked[1] == pytest.approx(whole[1], rel=1e-12)
    for name in ("weights", "means", "variances"):
        torch.testing.assert_close(getattr(chunked[0], name), getattr(whole[0], name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_em_agrees_with_scikit_learn_from_the_same_start(dtype, tolerance):
    rows = sample(random_mixture(5, 4, spread=1.5), 2000)
    start = random_mixture(5, 4, seed=3)
    peer = GaussianMixture(
        5,
        covariance_type="diag",
        tol=0.0,
        reg_covar=0.0,
        max_iter=20,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=1 / start.variances.numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(rows.numpy())
    ours = fit_mixture(
        rows.to(dtype), 5, start=start, max_iterations=20, tolerance=-1.0, variance_floor=1e-9, min_weight=1e-9
    )
    for name, theirs in (("weights", peer.weights_), ("means", peer.means_), ("variances", peer.covariances_)):
        torch.testing.assert_close(
            getattr(ours, name).double(), torch.from_numpy(theirs), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_passes_in_blocks_are_neals_and_hintons_incremental_em(chunk, dtype, tolerance):
    rows = sample(random_mixture(4, 3, seed=1), 62)
    start, floor = random_mixture(4, 3), 0.02
    expected, gamma = start, torch.full((62, 4), float("nan"), dtype=torch.float64)
    reports = []
    for passes in (1, 2, 3):
        expected, met = incremental_pass_loops(expected, rows, gamma, 3, floor * rows.var(0, correction=0))
        fitted = fit_mixture(
            rows.to(dtype),
            4,
            start=start,
            max_iterations=passes,
            blocks=3,
            chunk=chunk,
            tolerance=-1.0,
            variance_floor=floor,
            min_weight=1e-12,
            progress=lambda *report: reports.append(report),
        )
        for name in ("weights", "means", "variances"):
            mine = getattr(fitted, name).double()
            torch.testing.assert_close(mine, getattr(expected, name), rtol=tolerance, atol=tolerance)
        assert len(reports) == passes * (passes + 1) / 2
        assert reports[-1] == (passes, passes, pytest.approx(met, rel=tolerance))


def test_blocks_end_where_em_ends():
    rows = sample(random_mixture(3, 2, spread=4.0), 400)
    fitted = fit_mixture(rows, 3, max_iterations=200, blocks=5, tolerance=-1.0, variance_floor=1e-6)
    stepped, _ = em_step(fitted, rows, variance_floor=1e-9)
    for name in ("weights", "means", "variances"):
        torch.testing.assert_close(getattr(stepped, name), getattr(fitted, name), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_six_passes_in_blocks_are_worth_ten_steps(seed):
    truth = random_mixture(60, 8, seed=seed, spread=1.0)
    rows, unseen = sample(truth, 50_000, seed=seed).float(), sample(truth, 20_000, seed=seed + 10).float()
    start = fit_mixture(rows, 40, seed=seed, max_iterations=0)

    def likelihood(iterations, blocks):
        fitted = fit_mixture(rows, 40, start=start, max_iterations=iterations, blocks=blocks, tolerance=-1.0)
        return np.array([float(log_prob(fitted, given).mean()) for given in (rows, unseen)])

    assert (likelihood(6, None) > likelihood(10, 1)).all()


@pytest.mark.parametrize("rows", [600, 12_000])
def test_fit_recovers_separated_components_from_the_k_means_start(rows):
    truth = DiagonalMixture(
        torch.tensor([0.5, 0.3, 0.2]),
        torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]]),
        torch.tensor([[1.0, 4.0], [2.0, 1.0], [0.5, 0.5]]),
    )
    fitted = fit_mixture(sample(truth, rows), 3, seed=1, variance_floor=1e-3)
    order = torch.cdist(truth.means, fitted.means).argmin(dim=1)
    noise = 8 / rows**0.5
    torch.testing.assert_close(fitted.weights[order], truth.weights, rtol=0, atol=noise / 4)
    torch.testing.assert_close(fitted.means[order], truth.means, rtol=0, atol=noise)
    torch.testing.assert_close(fitted.variances[order], truth.variances, rtol=noise, atol=0)


@pytest.mark.parametrize("rows", [500, 12_000])
def test_fit_is_a_function_of_data_and_seed(rows):
    rows = sample(random_mixture(6, 3), rows).float()
    first, again, other = (fit_mixture(rows, 6, seed=seed, max_iterations=2) for seed in (4, 4, 5))
    assert torch.equal(first.means, again.means)
    assert torch.equal(first.variances, again.variances)
    assert not torch.equal(first.means, other.means)


def test_batches_of_k_means_start_as_well_as_all_rows():
    rows = sample(random_mixture(40, 8), 20_000, seed=3).float()

    def likelihood(**start):
        return float(log_prob(fit_mixture(rows, 40, max_iterations=5, **start), rows).mean())

    def around(centers):
        nearest = torch.cdist(rows, centers).argmin(dim=1)
        groups = [rows[nearest == k] for k in range(40)]
        weights = torch.tensor([len(group) / len(rows) for group in groups])
        variances = torch.stack([group.var(0, correction=0) for group in groups])
        return DiagonalMixture(weights, centers, variances.clamp_min(1e-3))

    lloyd = likelihood(
        start=around(torch.from_numpy(KMeans(40, n_init=1, random_state=0).fit(rows.numpy()).cluster_centers_))
    )
    random = likelihood(start=around(rows[:40]))
    assert lloyd - np.mean([likelihood(seed=seed) for seed in range(4)]) < 0.25 * (lloyd - random)


@pytest.mark.parametrize("rows", [3000, 12_000])
def test_the_start_does_not_depend_on_where_the_descriptors_lie(rows):
    near = sample(random_mixture(20, 8), rows).float()
    far = near + 2.0**16
    near = far - 2.0**16  # rounded alike
    fits = [fit_mixture(given, 20, max_iterations=0) for given in (near, far)]
    torch.testing.assert_close(fits[1].means - 2.0**16, fits[0].means, rtol=0, atol=0.02)
    torch.testing.assert_close(fits[1].weights, fits[0].weights, rtol=0, atol=0.002)


def test_progress_reports_rising_likelihood_and_the_tolerance_stops():
    rows = sample(random_mixture(4, 3), 800)
    reports = []
    fit_mixture(rows, 4, max_iterations=40, tolerance=1e-4, progress=lambda *report: reports.append(report))
    iterations, totals, likelihoods = zip(*reports, strict=True)
    assert iterations == tuple(range(1, len(reports) + 1))
    assert set(totals) == {40}
    assert list(likelihoods) == sorted(likelihoods)
    gains = np.diff(likelihoods) / np.abs(likelihoods[1:])
    assert (gains[:-1] >= 1e-4).all()
    assert gains[-1] < 1e-4
    assert len(reports) < 40


def test_half_precision_is_raised_to_float32():
    rows = sample(random_mixture(2, 3), 100).half()
    fitted = fit_mixture(rows, 2)
    assert fitted.means.dtype == torch.float32
    assert torch.equal(fitted.means, fit_mixture(rows.float(), 2).means)


def test_zero_iterations_gives_the_clusters_moments():
    rows = torch.tensor([[0.0], [2.0], [100.0], [104.0], [108.0]])
    start = fit_mixture(rows, 2, max_iterations=0, variance_floor=1e-3)
    order = start.means[:, 0].argsort()
    torch.testing.assert_close(start.means[order], torch.tensor([[1.0], [104.0]]))
    torch.testing.assert_close(start.weights[order], torch.tensor([0.4, 0.6]))
    torch.testing.assert_close(start.variances[order], torch.tensor([[1e-3 * float(rows.var(correction=0))], [32 / 3]]))


def test_constant_features_and_the_variance_floor():
    rows = torch.cat([torch.randn(400, 2), torch.full((400, 1), 7.0)], dim=1)
    fitted = fit_mixture(rows, 5, variance_floor=0.01)
    variances = rows.var(0, correction=0)
    torch.testing.assert_close(fitted.means[:, 2], torch.full((5,), 7.0))
    torch.testing.assert_close(fitted.variances[:, 2], (0.01 * 1e-3 * variances.mean()).expand(5))
    assert (fitted.variances[:, :2] >= 0.01 * variances[:2] * (1 - 1e-6)).all()
    assert torch.isfinite(log_prob(fitted, rows)).all()


@pytest.mark.parametrize("copies", [30, 4000])
def test_fewer_distinct_descriptors_than_components(copies):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]).repeat(copies, 1)
    fitted = fit_mixture(rows, 8)
    assert torch.isfinite(log_prob(fitted, rows)).all()
    assert float(fitted.weights.min()) > 0
    for point in rows[:3]:
        nearest = (fitted.means - point).norm(dim=1).min()
        assert float(nearest) < 1e-3


def test_a_starved_component_keeps_its_place():
    rows = torch.randn(200, 2, dtype=torch.float64)
    start = DiagonalMixture(
        torch.tensor([0.9, 0.1]).double(),
        torch.tensor([[0.0, 0.0], [500.0, 500.0]]).double(),
        torch.ones(2, 2).double(),
    )
    stepped, _ = em_step(start, rows, min_weight=1e-4)
    assert torch.equal(stepped.means[1], start.means[1])
    assert torch.equal(stepped.variances[1], start.variances[1])
    assert float(stepped.weights[1]) == pytest.approx(1e-4 / (1 + 1e-4))
    torch.testing.assert_close(stepped.means[0], rows.mean(0))


def test_one_component_is_the_sample_mean_and_variance():
    rows = torch.randn(50, 3, dtype=torch.float64) * 3 + 100
    fitted = fit_mixture(rows, 1)
    torch.testing.assert_close(fitted.means[0], rows.mean(0))
    torch.testing.assert_close(fitted.variances[0], rows.var(0, correction=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_components": 0}, "num_components must lie between 1 and the 30 descriptors, got 0"),
        ({"num_components": 31}, "num_components must lie between 1 and the 30 descriptors, got 31: give more"),
        ({"variance_floor": 0.0}, r"variance_floor must lie in \(0, 1\], got 0.0"),
        ({"min_weight": 0.6}, "min_weight must lie in"),
        ({"blocks": 0}, "blocks must lie between 1 and the 30 descriptors, got 0"),
        ({"blocks": 31}, "blocks must lie between 1 and the 30 descriptors, got 31"),
        ({"max_iterations": -1}, "max_iterations must be at least 0, got -1"),
        ({"descriptors": torch.full((30, 2), 0.1)}, "descriptors must differ from each other, all rows are equal"),
        ({"descriptors": torch.zeros(30, 2)}, "descriptors must differ from each other, all rows are equal"),
        ({"descriptors": torch.zeros(30)}, r"descriptors must be a floating-point tensor of shape \(N, D\)"),
        ({"descriptors": torch.zeros(30, 2, dtype=torch.int64)}, "floating-point tensor .* got torch.int64"),
        ({"descriptors": [[1.0]]}, "got list"),
        ({"start": random_mixture(2, 5)}, r"start must have means of shape \(2, 2\), got \(2, 5\)"),
    ],
)
def test_fit_refuses_bad_arguments(change, message):
    arguments = {"descriptors": torch.randn(30, 2), "num_components": 2} | change
    with pytest.raises(ValueError, match=message):
        fit_mixture(arguments.pop("descriptors"), arguments.pop("num_components"), **arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fit_counts_the_rows_that_are_not_finite(bad):
    rows = torch.randn(30, 2)
    rows[3, 0] = rows[3, 1] = rows[7, 1] = bad
    with pytest.raises(ValueError, match="descriptors must be finite, found NaN or infinity in 2 rows"):
        fit_mixture(rows, 2)


W, M, V = torch.tensor([0.5, 0.5]), torch.zeros(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((W, M, [[1.0]]), TypeError, "variances must be a floating-point tensor, got list"),
        ((W.long(), M, V), TypeError, "weights must be a floating-point tensor, got torch.int64"),
        ((W.double(), M, V), TypeError, "weights must have dtype and device of means, got torch.float64 on cpu"),
        ((W, M[0], V), ValueError, r"means must have shape \(K, D\)"),
        ((W[:1], M, V), ValueError, r"weights must have shape \(2,\), got \(1,\)"),
        ((W, M, V[:, :2]), ValueError, r"variances must have shape \(2, 3\), got \(2, 2\)"),
        ((W, M * float("nan"), V), ValueError, "means must be finite"),
        ((W, M, V * 0), ValueError, "variances must be positive, got a smallest entry of 0"),
        ((torch.tensor([1.5, -0.5]), M, V), ValueError, "weights must be positive, got a smallest entry of -0.5"),
        ((W / 2, M, V), ValueError, "weights must sum to one, got 0.5"),
    ],
)
def test_a_mixture_refuses_bad_tensors(arguments, error, message):
    with pytest.raises(error, match=message):
        DiagonalMixture(*arguments)


def test_features_must_fit_the_mixture():
    with pytest.raises(ValueError, match=r"descriptors must have 3 features, as the mixture; got \(5, 2\)"):
        log_prob(random_mixture(2, 3), torch.zeros(5, 2, dtype=torch.float64))
