"""Fisher vectors: the score against autograd, the encoding against loops, scikit-image and VLFeat, its theorems."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import fisher_vector as skimage_fisher_vector
from sklearn.mixture import GaussianMixture

from fisher_vectors.fisher_vector_references import fisher_vector_loops, random_mixture, sample
from fisherlayers.fisher_vectors import encoding
from fisherlayers.fisher_vectors.encoding import (
    append_positions,
    closed_form_information,
    closed_form_root,
    empirical_information,
    fisher_vectors,
    mixture_score,
)
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.mixture import DiagonalMixture, log_prob
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.information import DiagonalInformation
from fisherlayers.layer import FisherLayer, root_of

FIXTURE = Path(__file__).parent / "fixtures" / "vlfeat_fisher.npz"


def score_by_autograd(mixture, rows):
    means = mixture.means.clone().requires_grad_()
    deviations = mixture.variances.sqrt().requires_grad_()
    likelihood = log_prob(DiagonalMixture(mixture.weights, means, deviations.square()), rows).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(likelihood, (means, deviations))])


@settings(max_examples=25, deadline=None)
@given(components=st.integers(1, 7), features=st.integers(1, 5), rows=st.integers(1, 40), seed=st.integers(0, 999))
def test_score_is_the_gradient_of_log_prob(components, features, rows, seed):
    mixture = random_mixture(components, features, seed=seed)
    descriptors = sample(mixture, rows, seed=seed)
    torch.testing.assert_close(
        mixture_score(mixture, descriptors), score_by_autograd(mixture, descriptors), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("recorded", [True, False], ids=["autograd", "in place"])
@pytest.mark.parametrize(("assignment", "threshold"), [("soft", 0.0), ("soft", 0.05), ("hard", 0.0)])
def test_encoding_is_the_double_loop(assignment, threshold, recorded):
    mixture = random_mixture(5, 3, spread=1.0)
    images = torch.stack([sample(mixture, 12, seed=s) for s in range(3)])
    before = images.clone()
    with torch.set_grad_enabled(recorded):
        encodings = fisher_vectors(mixture, images, assignment=assignment, threshold=threshold)
    assert torch.equal(images, before)
    assert encodings.shape == (3, 2 * 5 * 3)
    for image, result in zip(images, encodings, strict=True):
        torch.testing.assert_close(result, fisher_vector_loops(mixture, image, assignment, threshold))


def test_posteriors_below_a_ten_thousandth_count_as_zero_by_default():
    # Two components of equal variance: the posterior of the second falls with x as a logistic function.
    mixture = DiagonalMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    for posterior, counts in ((9e-5, False), (1.1e-4, True)):
        descriptor = torch.tensor([[math.log(posterior / (1 - posterior)) / 2]])
        encoding = fisher_vectors(mixture, descriptor)
        assert bool(encoding[1] != 0) is counts
        assert torch.equal(encoding, fisher_vectors(mixture, descriptor, threshold=1e-4))


def test_the_encoding_is_the_fisher_layer_of_the_mean_score():
    mixture = random_mixture(4, 3)
    images = sample(mixture, 40).reshape(2, 20, 3)
    layer = FisherLayer(closed_form_information(mixture), damping=0.0)
    layer.refresh()
    scores = mixture_score(mixture, images)
    torch.testing.assert_close(layer(scores), fisher_vectors(mixture, images, threshold=0.0))
    torch.testing.assert_close(closed_form_root(mixture).gains, layer.root.gains)
    torch.testing.assert_close(layer.unnormalize(layer(scores)), scores)


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_blocks_of_images_and_of_rows_change_nothing(assignment, monkeypatch):
    mixture = random_mixture(4, 3)
    images = sample(mixture, 6 * 50).reshape(2, 3, 50, 3)
    whole = fisher_vectors(mixture, images, assignment=assignment)
    for block in (7, 50, 120):
        monkeypatch.setattr(encoding, "_BLOCK", block)
        torch.testing.assert_close(fisher_vectors(mixture, images, assignment=assignment), whole)
    assert whole.shape == (2, 3, 24)


def test_ragged_images_equal_one_by_one():
    mixture = random_mixture(4, 3)
    images = [sample(mixture, rows, seed=rows) for rows in (1, 17, 5)]
    together = fisher_vectors(mixture, images)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(fisher_vectors(mixture, image), result)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), hard=st.booleans())
def test_the_order_of_descriptors_does_not_matter(seed, hard):
    mixture = random_mixture(4, 3, seed=seed)
    rows = sample(mixture, 30, seed=seed)
    shuffled = rows[torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    first, second = (fisher_vectors(mixture, x, assignment="hard" if hard else "soft") for x in (rows, shuffled))
    torch.testing.assert_close(first, second)


def test_pooling_is_additive_over_descriptors():
    mixture = random_mixture(4, 3)
    rows = sample(mixture, 30)
    single = fisher_vectors(mixture, rows.unsqueeze(1))
    torch.testing.assert_close(single.mean(0), fisher_vectors(mixture, rows))


def test_a_hard_descriptor_has_two_d_non_zeros():
    mixture = random_mixture(6, 5)
    single = fisher_vectors(mixture, sample(mixture, 50).unsqueeze(1), assignment="hard")
    assert ((single != 0).sum(-1) == 2 * 5).all()


def test_dimensions_of_the_paper():
    for components, features, size in ((512, 80, 81_920), (256, 256, 131_072)):
        mixture = DiagonalMixture(
            torch.full((components,), 1 / components),
            torch.randn(components, features),
            torch.ones(components, features),
        )
        assert fisher_vectors(mixture, torch.randn(3, features)).shape == (size,)


def test_mean_score_vanishes_at_the_maximum_of_the_likelihood():
    rows = sample(random_mixture(3, 2, spread=3.0), 400)
    fitted = fit_mixture(rows, 3, max_iterations=2000, tolerance=1e-15, variance_floor=1e-9)
    assert float(fisher_vectors(fitted, rows, threshold=0.0).abs().max()) < 1e-5
    assert float(fisher_vectors(fitted, rows + 0.5, threshold=0.0).abs().max()) > 0.1


@pytest.mark.parametrize(("spread", "lowest"), [(0.5, 0.0), (2.0, 0.0), (30.0, 0.93)])
def test_closed_form_information_is_an_upper_bound_reached_by_separated_components(spread, lowest):
    mixture = random_mixture(4, 3, spread=spread, seed=2)
    rows = sample(mixture, 40_000)
    ratio = empirical_information(mixture, rows).value() / closed_form_information(mixture).value()  # E[phi^2]
    noise = 6 * (60 / len(rows) / 0.1) ** 0.5 / 2  # the fourth moment of z^2 - 1 is 60, the smallest weight about 0.1
    assert float(ratio.max()) <= 1 + noise
    assert float(ratio.min()) >= lowest
    if spread == 0.5:
        assert float(ratio.mean()) < 0.7


def test_the_empirical_root_normalises_the_descriptors_scores_to_one():
    mixture = random_mixture(4, 3, spread=0.7)
    rows = sample(mixture, 3000)
    root = root_of(empirical_information(mixture, rows), damping=0.0)
    phi = fisher_vectors(mixture, rows.unsqueeze(1), threshold=0.0, root=root)
    torch.testing.assert_close(phi.square().mean(0), torch.ones(24, dtype=torch.float64))


def test_empirical_information_is_the_mean_square_of_single_scores(monkeypatch):
    mixture = random_mixture(3, 2)
    rows = sample(mixture, 25)
    expected = torch.stack([score_by_autograd(mixture, x.unsqueeze(0)) for x in rows]).square().mean(0)
    torch.testing.assert_close(empirical_information(mixture, rows).value(), expected)
    monkeypatch.setattr(encoding, "_ENTRIES", 30)  # five descriptors a chunk
    torch.testing.assert_close(empirical_information(mixture, rows).value(), expected)


def test_standard_deviations_and_variances_give_the_same_encoding():
    # Another parameter of the same family: the score in sigma^2 and its information w / (2 sigma^4) give the same phi.
    mixture = random_mixture(4, 3)
    rows = sample(mixture, 20)
    variances = mixture.variances.clone().requires_grad_()
    likelihood = log_prob(DiagonalMixture(mixture.weights, mixture.means, variances), rows).mean()
    (score,) = torch.autograd.grad(likelihood, variances)
    information = mixture.weights[:, None] / (2 * mixture.variances.square())
    phi = (score / information.sqrt()).flatten()
    torch.testing.assert_close(fisher_vectors(mixture, rows, threshold=0.0)[12:], phi)


def test_the_fisher_kernel_is_invariant_under_reparametrisation():
    # theta = A eta: scores become A^T s and the information A^T F A; the kernel s^T F^-1 s' stays.
    mixture = random_mixture(3, 2)
    scores = mixture_score(mixture, sample(mixture, 50).reshape(5, 10, 2))
    information = torch.diag(closed_form_information(mixture).value())
    jacobian = torch.randn(12, 12, dtype=torch.float64) + 4 * torch.eye(12)
    moved = scores @ jacobian
    kernel = moved @ torch.linalg.solve(jacobian.T @ information @ jacobian, moved.T)
    encodings = fisher_vectors(mixture, sample(mixture, 50).reshape(5, 10, 2), threshold=0.0)
    torch.testing.assert_close(encodings @ encodings.T, kernel)


def test_encoding_is_differentiable_in_descriptors_and_mixture():
    mixture = random_mixture(3, 2)
    rows = sample(mixture, 6)

    def encode(x, means, variances):
        return mixture_score(DiagonalMixture(mixture.weights, means, variances), x)

    inputs = [t.clone().requires_grad_() for t in (rows, mixture.means, mixture.variances)]
    assert torch.autograd.gradcheck(encode, inputs)


def test_scikit_image_after_its_sign_and_without_the_weights():
    mixture = random_mixture(5, 4)
    rows = sample(mixture, 60)
    peer = GaussianMixture(5, covariance_type="diag")
    peer.weights_, peer.means_ = mixture.weights.numpy(), mixture.means.numpy()
    peer.covariances_ = mixture.variances.numpy()
    peer.precisions_cholesky_ = 1 / np.sqrt(peer.covariances_)
    theirs = torch.from_numpy(skimage_fisher_vector(rows.numpy(), peer))
    ours = fisher_vectors(mixture, rows, threshold=0.0)
    torch.testing.assert_close(ours[:20], theirs[5:25])
    torch.testing.assert_close(ours[20:], -theirs[25:])


def vlfeat_fixture():
    with np.load(FIXTURE) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return DiagonalMixture(arrays["weights"], arrays["means"], arrays["variances"]), arrays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["raw", "hard", "improved", "normalized"])
def test_vlfeat_fixture(name, dtype):
    mixture, arrays = vlfeat_fixture()
    ours = fisher_vectors(
        mixture.to(dtype),
        arrays["descriptors"].to(dtype),
        assignment="hard" if name == "hard" else "soft",
        threshold=1e-6,
    )
    if name == "improved":
        ours = signed_power(ours)
    if name in {"improved", "normalized"}:
        ours = l2_normalize(ours)
    theirs = arrays[name].to(dtype)
    # VLFeat works in float32: 1.1e-5 raw in relative norm.
    assert float((ours - theirs).norm() / theirs.norm()) < 5e-5


@pytest.mark.skipif(importlib.util.find_spec("cyvlfeat") is None, reason="needs VLFeat's Python binding")
def test_vlfeat_live():
    from cyvlfeat.fisher import fisher

    mixture = random_mixture(20, 16, spread=1.0, dtype=torch.float32)
    rows = sample(mixture, 500)
    parameters = [t.numpy() for t in (mixture.means, mixture.variances, mixture.weights)]
    for fast in (False, True):
        theirs = torch.from_numpy(fisher(rows.numpy(), *parameters, fast=fast)).flatten()
        ours = fisher_vectors(mixture, rows, assignment="hard" if fast else "soft", threshold=1e-6)
        assert float((ours - theirs).norm() / theirs.norm()) < 5e-5


def test_positions_become_two_features():
    descriptors = torch.randn(3, 6, 4, dtype=torch.float64)
    positions = torch.rand(6, 2) - 0.5
    augmented = append_positions(descriptors, positions, weight=2.0)
    assert torch.equal(augmented[..., :4], descriptors)
    for image in augmented:
        torch.testing.assert_close(image[:, 4:], 2.0 * positions.double())
    own = torch.rand(3, 6, 2)
    torch.testing.assert_close(append_positions(descriptors, own)[..., 4:], own.double())


@pytest.mark.parametrize("shape", [(5, 2), (6, 3), (6,), (3, 5, 2)])
def test_positions_must_fit(shape):
    with pytest.raises(ValueError, match="positions must have one row of 2 for each of 6 descriptors"):
        append_positions(torch.zeros(3, 6, 4), torch.zeros(shape))


def test_bad_arguments():
    mixture = random_mixture(2, 3)
    rows = sample(mixture, 4)
    for bad in (rows[:, :2], rows[0], rows[:0], torch.zeros(2, 0, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"descriptors must have shape \(\.\.\., N, 3\) with N at least 1"):
            fisher_vectors(mixture, bad)
    with pytest.raises(ValueError, match="assignment must be 'soft' or 'hard', got 'fast'"):
        fisher_vectors(mixture, rows, assignment="fast")
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\)"):
            fisher_vectors(mixture, rows, threshold=threshold)
    with pytest.raises(ValueError, match="at least one image, got an empty sequence"):
        fisher_vectors(mixture, [])


def test_information_of_whole_images_comes_from_the_same_class():
    mixture = random_mixture(3, 2)
    scores = mixture_score(mixture, sample(mixture, 200).reshape(20, 10, 2))
    information = DiagonalInformation(12, dtype=torch.float64)
    information.update(scores)
    phi = fisher_vectors(
        mixture, sample(mixture, 200).reshape(20, 10, 2), threshold=0.0, root=root_of(information, damping=0.0)
    )
    torch.testing.assert_close(phi.square().mean(0), torch.ones(12, dtype=torch.float64))


def test_a_mask_is_for_tensors_only():
    with pytest.raises(ValueError, match="mask is for one tensor"):
        fisher_vectors(random_mixture(4, 3), [torch.ones(2, 3)], mask=torch.ones(2, dtype=torch.bool))
