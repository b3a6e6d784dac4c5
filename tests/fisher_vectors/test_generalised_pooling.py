"""Generalised max pooling against the system of equations that defines it, with all matrices formed."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fisher_vectors.fisher_vector_references import fisher_vector_loops
from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork
from fisherlayers.cli import app
from fisherlayers.fisher_vectors import generalised_pooling
from fisherlayers.fisher_vectors.encoding import THRESHOLD, fisher_vectors
from fisherlayers.fisher_vectors.evidence import evidence_maps
from fisherlayers.fisher_vectors.generalised_pooling import generalised_max_pooling
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.fisher_vectors.persistence import network_tensors
from fisherlayers.fisher_vectors.stage import join

QUICK = {"components": (3, 4), "dimensions": 6, "step": 4, "training_descriptors": 500, "iterations": 2}
GENERALISED = {"global_pooling": "generalised-max", "random_state": 0}


def random_mixture(components=5, features=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(components, features, generator=generator, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    mixture = DiagonalMixture(weights / weights.sum(), 3 * draw[0], 0.2 + draw[1])
    images = 3 * torch.rand(3, 40, features, generator=generator, dtype=torch.float64)
    # Bursts: one descriptor again and again.
    images[:, 10:25] = images[:, 10:11]
    return mixture.to(dtype), images.to(dtype)


def definition(mixture, descriptors, damping, assignment="soft", encode=fisher_vectors):
    """One image: every descriptor's Fisher vector, their Gram matrix, and its solution."""
    single = torch.stack([encode(mixture, row.unsqueeze(0), assignment=assignment) for row in descriptors])
    ridge = damping * single.shape[1] * torch.eye(len(single), dtype=single.dtype)
    return single.T @ torch.linalg.solve(single @ single.T + ridge, torch.ones(len(single), dtype=single.dtype))


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("damping", [1e-3, 1.0, 100.0])
def test_the_definition(damping, assignment, monkeypatch):
    monkeypatch.setattr(generalised_pooling, "_BLOCK", 17)
    mixture, images = random_mixture()
    found = generalised_max_pooling(mixture, images, damping=damping, assignment=assignment, tolerance=1e-12)
    loops = partial(fisher_vector_loops, threshold=THRESHOLD)
    expected = torch.stack([definition(mixture, image, damping, assignment, loops) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    one = generalised_max_pooling(mixture, images[1], damping=damping, assignment=assignment, tolerance=1e-12)
    assert torch.equal(one, found[1])


def test_single_precision_and_its_tolerance():
    mixture, images = random_mixture()
    expected = torch.stack([definition(mixture, image, 1.0) for image in images])
    single, rows = random_mixture(dtype=torch.float32)
    found = generalised_max_pooling(single, rows).double()
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-4


def test_little_damping_makes_all_descriptors_equally_similar():
    mixture, images = random_mixture(components=12, features=6)
    pooled = generalised_max_pooling(mixture, images, damping=1e-7, tolerance=1e-9, iterations=1000)
    products = (fisher_vectors(mixture, images.unsqueeze(-2), threshold=1e-4) @ pooled.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(products, torch.ones_like(products), rtol=0, atol=1e-3)
    mean = fisher_vectors(mixture, images)
    of_mean = (fisher_vectors(mixture, images.unsqueeze(-2)) @ mean.unsqueeze(-1)).squeeze(-1)
    assert float((of_mean / of_mean.mean()).std()) > 0.3


def test_much_damping_is_the_mean():
    mixture, images = random_mixture()
    found = l2_normalize(generalised_max_pooling(mixture, images, damping=1e7, tolerance=1e-12))
    torch.testing.assert_close(found, l2_normalize(fisher_vectors(mixture, images)), rtol=0, atol=1e-5)


def test_bursts_count_less():
    mixture, images = random_mixture()
    burst = fisher_vectors(mixture, images[:, 10:11])
    shares = [
        (l2_normalize(pooled) * l2_normalize(burst)).sum(dim=1)
        for pooled in (fisher_vectors(mixture, images), generalised_max_pooling(mixture, images))
    ]
    assert bool((shares[1] < shares[0] - 0.05).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damping": 0.0}, "damping must be positive and finite, got 0"),
        ({"damping": float("nan")}, "damping must be positive and finite, got nan"),
        ({"damping": float("inf")}, "damping must be positive and finite, got inf"),
        ({"tolerance": 0.0}, "tolerance must be positive and iterations at least 1"),
        ({"iterations": 0}, "tolerance must be positive and iterations at least 1"),
        ({"assignment": "firm"}, "assignment must be 'soft' or 'hard'"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\)"),
        ({"descriptors": torch.zeros(2, 0, 4)}, "descriptors must have shape"),
        ({"descriptors": torch.zeros(5)}, "descriptors must have shape"),
        ({"descriptors": torch.zeros(2, 3, 5)}, "descriptors must have shape"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    mixture, images = random_mixture()
    with pytest.raises(ValueError, match=message):
        generalised_max_pooling(mixture, arguments.pop("descriptors", images), **arguments)


def test_no_image_at_all():
    mixture, images = random_mixture()
    assert generalised_max_pooling(mixture, images[:0]).shape == (0, 40)


@pytest.fixture(scope="module")
def fitted():
    images, labels = textures(5)
    return DeepFisherNetwork(**QUICK, **GENERALISED, pooling_damping=0.5, patch_side=5).fit(images, labels), images


def test_a_network_pools_every_layer_and_stream(fitted):
    model, images = fitted
    network, pixels = model.network_, torch.tensor(np.stack(images[:4]), dtype=torch.float32)[:, None]
    assert network.streams == [0, 1, "colour", "grey patches"]
    grids = [(network.stage(stream), network.grids(pixels, stream=stream)) for stream in network.streams]
    encodings = network.encode(pixels)
    parts = torch.split(encodings, [stage.num_outputs for stage, _ in grids], dim=1)
    for (stage, found), part in zip(grids, parts, strict=True):
        mixture = stage.mixture.to(torch.float64)
        descriptors = join(stage.prepare(found)).double()
        pooled = torch.stack([definition(mixture, image, 0.5) for image in descriptors])
        expected = l2_normalize(signed_power(pooled * stage.gains))
        assert float((l2_normalize(part).double() * expected).sum(dim=1).min()) > 0.9999


def test_windows_and_their_projection_stay_means(fitted):
    """The first layer's mixture and W are those of the mean, bit for bit."""
    model, images = fitted
    _, labels = textures(5)
    mean = DeepFisherNetwork(**QUICK, random_state=0, patch_side=5).fit(images, labels)
    pooled, plain = network_tensors(model.network_), network_tensors(mean.network_)
    for name in ("stage.0.means", "projection.0", "stage.1.means"):
        assert torch.equal(pooled[name], plain[name])
    assert not torch.equal(pooled["stage.0.gains"], plain["stage.0.gains"])


def test_a_saved_network_scores_the_same(fitted, tmp_path):
    model, images = fitted
    model.save(tmp_path / "m")
    again = DeepFisherNetwork.load(tmp_path / "m")
    assert np.array_equal(again.decision_function(images), model.decision_function(images))
    assert again.get_params()["global_pooling"] == "generalised-max"


def test_what_takes_the_mean_is_refused(fitted, tmp_path):
    model, _ = fitted
    uses = [
        model.to_module,
        lambda: model.evidence(["no image is read"]),
        lambda: model.export_program((32, 32)),
        lambda: model.export_onnx(tmp_path / "m.onnx", (32, 32)),
        lambda: evidence_maps(model.network_, torch.zeros(1, 1), torch.zeros(1, 1, 8, 8)),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="needs a network with global_pooling='mean', got 'generalised-max'"):
            use()
    assert not list(tmp_path.iterdir())
    model.save(tmp_path / "m")
    result = CliRunner().invoke(app, ["evidence", str(tmp_path / "m"), "missing.png", "-o", str(tmp_path / "maps")])
    assert result.exit_code != 0
    assert "global_pooling='mean'" in result.output
    assert not (tmp_path / "maps").exists()


def test_settings_are_checked():
    settings = DeepFisherNetwork(**QUICK)
    images, labels = textures(2)
    for wrong, message in (
        ({"global_pooling": "max"}, r"global_pooling must be one of \('mean', 'generalised-max'\), got 'max'"),
        ({"pooling_damping": 0.0}, "pooling_damping must be positive and finite, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.set_params(global_pooling=None, pooling_damping=None).set_params(**wrong).fit(images, labels)


def test_a_stage_without_damping_takes_the_mean(fitted):
    model, images = fitted
    pixels = torch.tensor(np.stack(images[:2]), dtype=torch.float32)[:, None]
    stage = model.network_.stages[0]
    grids = stage.prepare(model.network_.grids(pixels, stream=0))
    mean = replace(stage, pooling_damping=None).pool(grids)
    assert torch.equal(mean, fisher_vectors(stage.mixture, join(grids)))
