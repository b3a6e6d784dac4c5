"""Squared-hinge SVMs against liblinear and the definition; both spaces, blocks, paths, the certificate, bad input."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from fisherlayers.fisher_vectors import svm, svm_problems
from fisherlayers.fisher_vectors.rows import as_rows
from fisherlayers.fisher_vectors.svm import fit_svm, one_vs_rest, svm_path, svm_scores
from fisherlayers.fisher_vectors.svm_spaces import GramSpace, RowSpace, gram_matrix

EXACT = 1e-13
SOLVERS = ["gram", "primal"]


def problem(rows=120, features=15, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    points = 0.5 * centres[labels] + torch.randn(rows, features, generator=generator, dtype=torch.float64)
    points /= points.norm(dim=1, keepdim=True)
    return points.to(dtype), labels


def liblinear(points, labels, cost, **options):
    reference = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=10_000, **options).fit(points.numpy(), labels.numpy())
    return torch.from_numpy(reference.coef_), torch.as_tensor(reference.intercept_)


def objective(points, targets, costs, weights, intercepts, bias=1.0):
    """The definition, one row and problem at a time; the regulariser reaches the bias's weight, b / bias."""
    values = []
    for column, (w, b) in enumerate(zip(weights, intercepts, strict=True)):
        value = 0.5 * (w @ w + (b / bias) ** 2)
        for x, y, c in zip(points, targets[:, column], costs[:, column], strict=True):
            value = value + c * torch.clamp(1 - y * (w @ x + b), min=0) ** 2
        values.append(value)
    return torch.stack(values)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("rows", "features", "cost"), [(120, 15, 1.0), (60, 90, 10.0), (200, 5, 0.01), (90, 12, 100.0)]
)
def test_equals_liblinear(solver, rows, features, cost):
    points, labels = problem(rows, features)
    weights, intercepts = liblinear(points, labels, cost)
    fit = fit_svm(points, one_vs_rest(labels, 3), cost, tolerance=EXACT, solver=solver)
    torch.testing.assert_close(fit.weights, weights, rtol=1e-5, atol=1e-5 * float(weights.abs().max()))
    torch.testing.assert_close(fit.intercepts, intercepts, rtol=1e-5, atol=1e-5 * float(weights.abs().max()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bias", [1.0, 3.0])
def test_objective_is_the_definition_and_its_gradient_vanishes(solver, bias):
    points, labels = problem(40, 6)
    targets = one_vs_rest(labels, 3)
    fit = fit_svm(points, targets, 2.0, bias=bias, tolerance=EXACT, solver=solver)
    weights, intercepts = fit.weights.clone().requires_grad_(), fit.intercepts.clone().requires_grad_()
    values = objective(points, targets, 2.0 * targets.abs(), weights, intercepts, bias)
    torch.testing.assert_close(fit.objectives, values.detach())
    gradients = torch.autograd.grad(values.sum(), [weights, intercepts])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_bias_means_no_intercept(solver):
    points, labels = problem()
    weights, _ = liblinear(points, labels, 1.0, fit_intercept=False)
    fit = fit_svm(points, one_vs_rest(labels, 3), 1.0, bias=0.0, tolerance=EXACT, solver=solver)
    torch.testing.assert_close(fit.weights, weights, rtol=1e-5, atol=1e-6)
    assert bool((fit.intercepts == 0).all())


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(4, 40),
    features=st.integers(1, 30),
    cost=st.floats(1e-3, 1e2),
    seed=st.integers(0, 1000),
    bias=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_both_spaces_agree(rows, features, cost, seed, bias):
    points, labels = problem(rows, features, 2, seed)
    targets = one_vs_rest(labels, 2)
    gram, primal = (fit_svm(points, targets, cost, bias=bias, tolerance=EXACT, solver=s) for s in SOLVERS)
    scale = float(primal.weights.abs().max()) + 1
    torch.testing.assert_close(gram.weights, primal.weights, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(gram.intercepts, primal.intercepts, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(gram.objectives, primal.objectives)


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 4), cost=st.floats(0.1, 50), seed=st.integers(0, 1000), solver=st.sampled_from(SOLVERS))
def test_the_gap_certifies_objective_and_distance(steps, cost, seed, solver):
    points, labels = problem(50, 8, 3, seed)
    targets = one_vs_rest(labels, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rough = fit_svm(points, targets, cost, tolerance=EXACT, max_steps=steps, solver=solver)
    exact = fit_svm(points, targets, cost, tolerance=EXACT, solver=solver)
    excess = rough.objectives - exact.objectives
    distance = (rough.weights - exact.weights).square().sum(1) + (rough.intercepts - exact.intercepts).square()
    slack = 1e-9 * exact.objectives
    assert bool((excess >= -slack).all())
    assert bool((excess <= rough.gaps + slack).all())
    assert bool((distance.sqrt() <= (2 * rough.gaps).sqrt() + (2 * exact.gaps).sqrt() + 1e-9).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_lowers_the_objective(solver):
    points, labels = problem(80, 30)
    previous = torch.full((3,), torch.inf, dtype=torch.float64)
    for steps in range(1, 7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = fit_svm(points, one_vs_rest(labels, 3), 10.0, tolerance=EXACT, max_steps=steps, solver=solver)
        assert bool((fit.objectives <= previous * (1 + 1e-12)).all())
        previous = fit.objectives


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_block_size_does_not_matter(block_rows):
    points, labels = problem()
    targets = one_vs_rest(labels, 3)
    whole = fit_svm(points, targets, 1.0, tolerance=EXACT, solver="primal")
    blocks = fit_svm(points, targets, 1.0, tolerance=EXACT, solver="primal", block_rows=block_rows)
    torch.testing.assert_close(blocks.weights, whole.weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_path_equals_single_fits_in_the_order_asked(solver):
    points, labels = problem()
    targets, costs = one_vs_rest(labels, 3), [3.0, 0.1, 30.0, 0.1]
    for cost, fit in zip(costs, svm_path(points, targets, costs, tolerance=EXACT, solver=solver), strict=True):
        single = fit_svm(points, targets, cost, tolerance=EXACT, solver=solver)
        torch.testing.assert_close(fit.weights, single.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fit.objectives, single.objectives)


@pytest.mark.parametrize("solver", SOLVERS)
def test_target_zero_leaves_a_row_out(solver):
    points, labels = problem()
    pair = (labels == 0).double() - (labels == 1).double()
    some = labels != 2
    fit = fit_svm(points, torch.stack([pair, -pair], dim=1), 1.0, tolerance=EXACT, solver=solver)
    without = fit_svm(points[some], pair[some, None], 1.0, tolerance=EXACT, solver=solver)
    torch.testing.assert_close(fit.weights[:1], without.weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.weights[1:], -without.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sample_weight_two_is_the_row_twice(solver):
    points, labels = problem(30, 6)
    targets = one_vs_rest(labels, 3)
    weight = torch.tensor([2.0, 1.0, 0.0]).repeat(10)
    times = weight.long()
    weighted = fit_svm(points, targets, 1.0, sample_weight=weight, tolerance=EXACT, solver=solver)
    repeated = fit_svm(
        points.repeat_interleave(times, 0), targets.repeat_interleave(times, 0), 1.0, tolerance=EXACT, solver=solver
    )
    torch.testing.assert_close(weighted.weights, repeated.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_mapped_rows(tmp_path, dtype, solver):
    points, labels = problem()
    targets = one_vs_rest(labels, 3)
    stored = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=dtype, shape=tuple(points.shape))
    stored[:] = points.numpy()
    stored.flush()
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    fit = fit_svm(mapped, targets, 1.0, solver=solver, tolerance=1e-9, block_rows=16)
    exact = fit_svm(torch.from_numpy(np.asarray(mapped, dtype=np.float64)), targets, 1.0, tolerance=EXACT)
    assert fit.weights.dtype == torch.float32
    torch.testing.assert_close(fit.weights.double(), exact.weights, rtol=1e-3, atol=1e-4)
    scores = svm_scores(mapped, fit.weights, fit.intercepts, block_rows=16)
    torch.testing.assert_close(scores, torch.tensor(mapped.astype(np.float32)) @ fit.weights.T + fit.intercepts)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cost", [0.1, 10.0, 1000.0])
def test_float32_reaches_the_default_tolerance(solver, cost):
    points, labels = problem(300, 40, dtype=torch.float32)
    fit = fit_svm(points, one_vs_rest(labels, 3), cost, solver=solver)
    exact = fit_svm(points.double(), one_vs_rest(labels, 3), cost, tolerance=EXACT)
    assert bool((fit.gaps <= 1e-6 * fit.objectives).all())
    torch.testing.assert_close(fit.objectives, exact.objectives, rtol=1e-5, atol=0)


def few_directions(scale, rows=200, features=64, rank=6, dtype=torch.float32):
    """Rows whose Gram matrix is singular, and large: rounded, it is not even positive."""
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randn(rows, rank, generator=generator)
    labels = torch.arange(rows) % 2
    coordinates[:, 0] += 0.7 * labels
    points = scale * coordinates @ torch.randn(rank, features, generator=generator)
    return points.to(dtype), 2.0 * labels[:, None].double() - 1


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
@pytest.mark.parametrize(("scale", "cost"), [(1.0, 1.0), (10.0, 1.0), (100.0, 1.0), (0.01, 1e4)])
def test_the_certificate_holds_for_float32_rows(solver, scale, cost):
    points, targets = few_directions(scale)
    if solver == "auto":
        points, targets = points[:120], targets[:120]
    fit = fit_svm(points, targets, cost, solver=solver)
    exact = fit_svm(points.double(), targets, cost, tolerance=1e-10)
    assert bool((fit.gaps <= 1e-6 * fit.objectives).all())
    torch.testing.assert_close(fit.objectives, exact.objectives, rtol=1.1e-6, atol=0)
    rounding = 1e-6 * float(exact.weights.norm())
    distance = float((fit.weights.double() - exact.weights).norm())
    assert distance <= float((2 * fit.gaps).sqrt() + (2 * exact.gaps).sqrt()) + rounding
    values = objective(
        points.double(), targets, torch.full_like(targets, cost), fit.weights.double(), fit.intercepts.double()
    )
    torch.testing.assert_close(values, exact.objectives, rtol=1e-5, atol=0)


def test_rounding_of_a_gram_matrix_is_made_good_from_the_rows(monkeypatch):
    points, labels = problem(300, 600, dtype=torch.float32)
    made = []
    monkeypatch.setattr(svm, "GramSpace", lambda *a, **k: made.append(k["precision"]) or GramSpace(*a, **k))
    fit = fit_svm(points, one_vs_rest(labels, 3), 100.0)
    exact = fit_svm(points.double(), one_vs_rest(labels, 3), 100.0, tolerance=EXACT)
    assert made == [torch.float32, torch.float64]  # the second is the exact fit's
    assert bool((fit.gaps <= 1e-6 * fit.objectives).all())
    torch.testing.assert_close(fit.objectives, exact.objectives, rtol=1.1e-6, atol=0)


def test_a_gram_matrix_in_float64_is_made_where_it_fits(monkeypatch):
    points, targets = few_directions(100.0)
    points, targets = points[:100], targets[:100]
    made = []
    for name, space in {"GramSpace": GramSpace, "RowSpace": RowSpace}.items():
        monkeypatch.setattr(
            svm, name, lambda *a, n=name, s=space, **k: made.append((n, k["precision"].itemsize)) or s(*a, **k)
        )
    fits = [svm_path(points, targets, [1.0], largest_gram=size * 100**2)[0] for size in (8, 7, 3)]
    assert made == [("GramSpace", 4), ("GramSpace", 8), ("GramSpace", 4), ("RowSpace", 8), ("RowSpace", 4)]
    for fit in fits:
        torch.testing.assert_close(fit.objectives, fits[0].objectives, rtol=2e-6, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("scale", "offset"), [(10.0, 0.0), (100.0, 0.0), (100.0, 100.0)])
def test_long_rows_are_solved_within_the_default_steps(solver, scale, offset):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (300,), generator=generator)
    points = scale * torch.randn(300, 512, generator=generator, dtype=torch.float64) + offset
    points[:, :5] += 0.5 * scale * labels[:, None]
    reference = LinearSVC(C=1.0, tol=1e-9, max_iter=200_000, random_state=0).fit(points.numpy(), labels.numpy())
    fit = fit_svm(points, 2.0 * labels[:, None] - 1, 1.0, solver=solver)
    expected = torch.from_numpy(reference.coef_)
    torch.testing.assert_close(fit.weights, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_the_start_on_a_sample_leaves_the_solution(monkeypatch):
    points, labels = problem(400, 10)
    targets = one_vs_rest(labels, 3)
    expected = fit_svm(points, targets, 1.0, tolerance=EXACT, solver="primal")
    solved, solve = [], svm_problems.minimize_squared_hinge

    def record(space, *args, **options):
        solved.append(space.num_rows)
        return solve(space, *args, **options)

    monkeypatch.setattr(svm_problems, "minimize_squared_hinge", record)
    monkeypatch.setattr(svm_problems, "_SAMPLED_START", 20)
    sampled = fit_svm(points, targets, 1.0, tolerance=EXACT, solver="primal")
    assert solved == [7, 25, 100, 400]
    torch.testing.assert_close(sampled.weights, expected.weights, rtol=1e-5, atol=1e-6)


def test_auto_takes_the_gram_matrix_of_few_rows(monkeypatch):
    used = []
    for name, space in {"GramSpace": GramSpace, "RowSpace": RowSpace}.items():
        monkeypatch.setattr(svm, name, lambda *a, n=name, s=space, **k: used.append(n) or s(*a, **k))
    for rows, features in [(30, 15), (32, 15)]:
        points, labels = problem(rows, features)
        fit_svm(points, one_vs_rest(labels, 3), 1.0)
    assert used == ["GramSpace", "RowSpace"]


@pytest.mark.parametrize("block_rows", [None, 1, 4])
def test_gram_matrix(block_rows):
    points, _ = problem(13, 5)
    torch.testing.assert_close(gram_matrix(points, bias=2.0, block_rows=block_rows), points @ points.T + 4)
    narrow = points.float()
    exact = narrow.double() @ narrow.double().T
    torch.testing.assert_close(gram_matrix(narrow, block_rows=block_rows, precision=torch.float64), exact)
    torch.testing.assert_close(gram_matrix(narrow, block_rows=block_rows), exact.float())


@pytest.mark.parametrize("make", [RowSpace, GramSpace])
def test_spaces_are_the_definition(make):
    points, _ = problem(20, 4)
    extended = torch.cat([points, torch.full((20, 1), 0.7, dtype=torch.float64)], dim=1)
    space = make(points, bias=0.7, block_rows=3)
    coefficients = torch.randn(20, 2, dtype=torch.float64)
    curvature = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([1.0, 0.0]).repeat(10)[:, None]
    vector, explicit = space.combine(coefficients), extended.T @ coefficients
    torch.testing.assert_close(space.scores(vector), extended @ explicit)
    curved = extended.T @ (curvature * (extended @ explicit))
    torch.testing.assert_close(space.scores(space.curve(vector, curvature)), extended @ curved)
    torch.testing.assert_close(space.dot(vector, space.curve(vector, curvature)), (explicit * curved).sum(0))
    others = torch.randn(20, 2, dtype=torch.float64)
    gradient = space.in_rows(space.gradient(vector, others))
    torch.testing.assert_close(gradient[:-1], (explicit - extended.T @ others)[:-1])
    torch.testing.assert_close(gradient[-1], (explicit - extended.T @ others)[-1])
    weights, intercepts = space.row_space.weights(space.in_rows(vector))
    torch.testing.assert_close(torch.cat([weights.T, intercepts[None] / 0.7]), explicit)
    assert bool((space.scores(space.zeros(2)) == 0).all())


def test_errors_name_the_argument():
    points, labels = problem(12, 4)
    targets = one_vs_rest(labels, 3)
    with pytest.raises(ValueError, match=r"targets must have shape \(12, P\), got \(11, 3\)"):
        fit_svm(points, targets[:11], 1.0)
    with pytest.raises(ValueError, match="targets must be -1, 0"):
        fit_svm(points, 0.5 * targets, 1.0)
    for cost in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="costs must hold positive finite numbers"):
            fit_svm(points, targets, cost)
    with pytest.raises(ValueError, match="costs must hold positive finite numbers"):
        svm_path(points, targets, [])
    with pytest.raises(ValueError, match="tolerance must be positive"):
        fit_svm(points, targets, 1.0, tolerance=0.0)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        fit_svm(points, targets, 1.0, max_steps=0)
    with pytest.raises(ValueError, match="bias must be 0 or a positive number"):
        fit_svm(points, targets, 1.0, bias=-1.0)
    with pytest.raises(ValueError, match="solver must be"):
        fit_svm(points, targets, 1.0, solver="dual")
    with pytest.raises(ValueError, match="block_rows must be at least 1"):
        fit_svm(points, targets, 1.0, block_rows=0)
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(12,\) or \(12, 3\), got \(11,\)"):
        fit_svm(points, targets, 1.0, sample_weight=torch.ones(11))
    with pytest.raises(ValueError, match="sample_weight must be finite and not negative"):
        fit_svm(points, targets, 1.0, sample_weight=-torch.ones(12))
    broken = points.clone()
    broken[9, 1] = torch.nan
    with pytest.raises(ValueError, match="rows must be finite: found NaN or infinity between rows 8 and 12"):
        fit_svm(broken, targets, 1.0, block_rows=4)
    with pytest.raises(ValueError, match=r"rows must have shape \(n, F\)"):
        as_rows(points[0])
    with pytest.raises(TypeError, match="rows must be of float16, float32 or float64, got int64"):
        as_rows(np.arange(6).reshape(2, 3))
    with pytest.raises(TypeError, match=r"rows must be of .* got torch.int64"):
        as_rows(torch.arange(6).view(2, 3))


def test_an_unreached_tolerance_is_said():
    points, labels = problem()
    with pytest.warns(ConvergenceWarning, match="stopped after 1 steps with a relative duality gap"):
        fit_svm(points, one_vs_rest(labels, 3), 10.0, tolerance=EXACT, max_steps=1)
