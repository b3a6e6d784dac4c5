"""The network's pipeline against the functions that it is made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fisher_vectors.texture_images import textures
from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.encoding import append_positions, fisher_vectors
from fisherlayers.fisher_vectors.evidence import evidence_maps
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.fisher_vectors.semi_local import SemiLocalPooling
from fisherlayers.fisher_vectors.settings import PRESETS, NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.sift import DenseSift
from fisherlayers.fisher_vectors.stage import join
from fisherlayers.fisher_vectors.training import fit_network

SETTINGS = NetworkSettings(
    bin_sizes=(3, 4),
    step=3,
    components=(4, 5),
    dimensions=(8, 6),
    windows=(2, 3),
    training_descriptors=2000,
    color_components=3,
    color_dimensions=5,
    iterations=5,
    projection_size=7,
    information="closed-form",
    intensity_weight=0.0,
    layer_weight=1.0,
)


def fitted(settings, images, labels, **kwargs):
    prepared = ImageList(images).prepared(
        max_pixels=settings.max_pixels, upsample=settings.upsample, padding=settings.padding
    )
    indices = np.unique(labels, return_inverse=True)[1]
    return *fit_network(prepared, indices, settings, **kwargs), prepared


def in_float64(network):
    def stage_in_float64(stage):
        pca = {name: tensor.double() for name, tensor in stage.components.to_tensors().items()}
        return replace(
            stage,
            components=PrincipalComponents.from_tensors(pca),
            mixture=stage.mixture.to(torch.float64),
        )

    return replace(
        network,
        stages=tuple(map(stage_in_float64, network.stages)),
        projections=tuple(projection.double() for projection in network.projections),
    )


@pytest.fixture(scope="module")
def grey():
    images, labels = textures(5)
    return fitted(SETTINGS, images, labels, seed=3)


@pytest.mark.parametrize(
    "changes", [{"stacking": False}, {"unit_length": False}, {"window_assignment": "soft", "window_power": True}]
)
def test_other_windows_give_another_second_layer(grey, changes):
    images, labels = textures(5)
    network, _, prepared = fitted(replace(SETTINGS, **changes), images, labels, seed=3)
    batch = prepared.load(prepared.batches()[0])
    encodings, common = network.encode(batch), network.stages[0].num_outputs
    torch.testing.assert_close(encodings[:, :common], grey[0].encode(batch)[:, :common])
    assert float((encodings - grey[0].encode(batch)).norm(dim=1).min()) > 0.1
    # In float64: a posterior at the threshold must not be a matter of rounding.
    network, batch = in_float64(network), batch.double()
    encodings = network.encode(batch)
    evidence = evidence_maps(network, torch.ones_like(encodings), batch)
    torch.testing.assert_close(evidence.sum(dim=(1, 2)), encodings.sum(dim=1), rtol=0, atol=1e-10)


def test_one_layer_is_the_shallow_fisher_vector_bit_for_bit():
    images, labels = textures(5)
    network, _, prepared = fitted(SETTINGS.with_depth(1), images, labels)
    batch = prepared.load(prepared.batches()[0])
    (stage,) = network.stages
    rows = []
    for grid in DenseSift(bin_sizes=(3, 4), step=3)(batch):
        reduced = (grid.descriptors - stage.components.mean) @ stage.components.basis
        rows.append(append_positions(reduced, grid.positions).flatten(1, 2))
    expected = l2_normalize(signed_power(fisher_vectors(stage.mixture, torch.cat(rows, dim=1))))
    assert torch.equal(network.encode(batch), expected)


def test_the_first_layer_of_two_is_the_network_of_one():
    images, labels = textures(5)
    settings = replace(SETTINGS, information="images")
    (deep, _, _), (shallow, _, _) = (fitted(settings.with_depth(depth), images, labels, seed=3) for depth in (2, 1))
    first, only = deep.stages[0], shallow.stages[0]
    for name in ("weights", "means", "variances"):
        assert torch.equal(getattr(first.mixture, name), getattr(only.mixture, name))
    assert torch.equal(first.components.basis, only.components.basis)
    torch.testing.assert_close(first.gains, only.gains, rtol=1e-5, atol=0)


def test_the_descriptors_of_an_image_and_its_mirror_image_are_pooled_together():
    images, labels = textures(5)
    settings = replace(SETTINGS, mirror=True, patch_side=5, patch_components=3, patch_dimensions=6)
    network, _, prepared = fitted(settings, images, labels, seed=3)
    batch = prepared.load(prepared.batches()[0])
    # The signed square root makes 1e-3 of a rounding error of 1e-6.
    assert torch.allclose(network.encode(batch), network.encode(batch.flip(-1)), atol=3e-3)
    # What is pooled is the mean of both, at every layer and in every stream.
    single = replace(network, settings=replace(settings, mirror=False))
    assert network.streams == [0, 1, "grey patches"]
    for stream in network.streams:
        stage, of_both = network.stage(stream), network.grids(batch, stream=stream)
        sides = [single.grids(side, stream=stream) for side in (batch, batch.flip(-1))]
        mean = sum(stage.pool(stage.prepare(side)) for side in sides) / 2
        assert torch.allclose(stage.pool(stage.prepare(of_both)), mean, atol=1e-3)


def test_first_layer_of_a_deep_network_is_the_shallow_one(grey):
    network, _, prepared = grey
    batch = prepared.load(prepared.batches()[0])
    shallow, _, _ = fitted(SETTINGS.with_depth(1), *textures(5), seed=3)
    first = shallow.num_features
    torch.testing.assert_close(network.encode(batch)[:, :first] * 2**0.5, shallow.encode(batch))


def test_second_layer_is_made_of_the_semi_local_layer(grey):
    network, _, prepared = grey
    batch = prepared.load(prepared.batches()[0])
    first, second = network.stages
    below = first.prepare(DenseSift(bin_sizes=(3, 4), step=3)(batch))
    pooled = SemiLocalPooling((2, 3), 1, 1.0)(below, first.mixture, network.projections[0][-1])
    assert len(pooled) == 4
    reduced = [
        append_positions((g.descriptors - second.components.mean) @ second.components.basis, g.positions).flatten(1, 2)
        for g in pooled
    ]
    expected = l2_normalize(signed_power(fisher_vectors(second.mixture, torch.cat(reduced, dim=1))))
    torch.testing.assert_close(network.encode(batch)[:, first.num_outputs :] * 2**0.5, expected)


def test_sizes(grey):
    network, _, _ = grey
    assert network.projections[0].shape == (4, 7, 2 * 4 * 10)
    assert network.num_features == 2 * 4 * 10 + 2 * 5 * 8


def test_without_coordinates_the_order_of_descriptors_is_of_no_importance():
    images, labels = textures(5)
    network, _, prepared = fitted(replace(SETTINGS.with_depth(1), position_weight=0.0), images, labels)
    (stage,) = network.stages
    grids = stage.prepare(network.grids(prepared.load(prepared.batches()[0]), stream=0))
    order = torch.randperm(join(grids).shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = grids[0]._replace(descriptors=join(grids)[:, order, None])
    torch.testing.assert_close(stage.encode([shuffled]), stage.encode(grids), rtol=1e-4, atol=1e-5)


def test_encodings_of_training_images_use_the_projection_of_their_fold(grey):
    network, folds, prepared = grey
    assert sorted(np.bincount(folds)) == [4, 8, 8]
    encodings, empty = encode_images(network, prepared, folds=folds)
    assert empty == 0
    for index in (0, 7, 19):
        (batch,) = prepared.batches(indices=[index])
        own = network.encode(prepared.load(batch), fold=int(folds[index]))[0]
        other = network.encode(prepared.load(batch))[0]
        np.testing.assert_allclose(encodings[index], own, atol=1e-5)
        assert float((own - other).abs().max()) > 1e-3


def test_result_does_not_depend_on_the_number_of_threads():
    images, labels = textures(5)
    stores = []
    for n_jobs in (1, 2):
        execution = Execution(n_jobs=n_jobs)
        network, folds, prepared = fitted(SETTINGS, images, labels, seed=1, execution=execution)
        stores.append(encode_images(network, prepared, folds=folds, execution=execution).rows)
    assert np.array_equal(*stores)
    assert np.isfinite(stores[0]).all()


def test_colour_stream():
    images, labels = textures(5)
    colour = [np.stack([image, image[::-1], 1 - image], axis=-1) for image in images]
    network, _, prepared = fitted(SETTINGS, [*colour[:10], *images[10:]], labels)
    assert network.color is not None
    assert network.has_color
    (batch,) = prepared.batches(indices=[3])
    pixels = prepared.load(batch)
    grids = network.color.prepare(LocalColorStatistics(bin_sizes=(3, 4), step=3)(pixels))
    expected = l2_normalize(signed_power(fisher_vectors(network.color.mixture, join(grids))))
    torch.testing.assert_close(network.encode(pixels)[:, -expected.shape[1] :] * 3**0.5, expected)
    without, _, _ = fitted(replace(SETTINGS, color=False), colour, labels)
    assert without.color is None


def test_the_empirical_information_makes_second_moments_equal():
    images, labels = textures(6)
    network, _, prepared = fitted(replace(SETTINGS.with_depth(1), information="images"), images, labels)
    (stage,) = network.stages
    grids = DenseSift(bin_sizes=(3, 4), step=3)(torch.stack([prepared._load(index) for index in range(len(prepared))]))
    plain = fisher_vectors(stage.mixture, join(stage.prepare(grids)))
    moments = plain.square().mean(dim=0)
    damping = (1e-3 + 4 / len(plain)) * moments.mean()
    torch.testing.assert_close(stage.gains, (moments + damping).rsqrt())
    expected = l2_normalize(signed_power(plain / (moments + damping).sqrt()))
    torch.testing.assert_close(stage.encode(stage.prepare(grids)), expected)


def test_higher_layers_take_their_weight(grey):
    images, labels = textures(5)
    network, _, prepared = fitted(replace(SETTINGS, layer_weight=0.25), images, labels, seed=3)
    batch = prepared.load(prepared.batches()[0])
    first = network.stages[0].num_outputs
    found, equal = network.encode(batch), grey[0].encode(batch)
    torch.testing.assert_close(found[:, :first], equal[:, :first] * (2 / 1.25) ** 0.5)
    torch.testing.assert_close(found[:, first:], equal[:, first:] * (0.25 * 2 / 1.25) ** 0.5)


def test_statistics_of_grey_images_take_their_weight():
    images, labels = textures(4)
    network, _, prepared = fitted(replace(SETTINGS, intensity_weight=0.5), images, labels)
    batch = prepared.load(prepared.batches()[0])
    encoding = network.encode(batch)
    tail = network.color.num_outputs
    torch.testing.assert_close(encoding[:, -tail:].norm(dim=1), torch.full((len(batch),), (0.5 / 2.5) ** 0.5))
    torch.testing.assert_close(encoding.norm(dim=1), torch.ones(len(batch)))
    assert not network.has_color
    statistics = LocalColorStatistics(bin_sizes=(3, 4), step=3)(batch.expand(-1, 3, -1, -1))
    expected = network.color.encode(network.color.prepare(statistics))
    torch.testing.assert_close(encoding[:, -tail:], expected * (0.5 / 2.5) ** 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_patches_are_a_stream_of_their_own(channels):
    images, labels = textures(4)
    if channels == 3:
        images = [np.stack([image, image.T, 1 - image], axis=-1) for image in images]
    settings = replace(SETTINGS.with_depth(1), color=False, patch_side=4, patch_step=2, patch_components=3, padding=2)
    network, _, prepared = fitted(settings, images, labels)
    batch = prepared.load(prepared.batches()[0])
    grid = RawPatches(side=4, step=2, color=channels == 3)(batch[..., 2:-2, 2:-2])[0]
    stage = network.patches
    rows = append_positions((grid.descriptors - stage.components.mean) @ stage.components.basis, grid.positions)
    expected = l2_normalize(signed_power(fisher_vectors(stage.mixture, rows.flatten(1, 2)))) / 2**0.5
    assert len(stage.components.mean) == channels * 16
    assert network.has_color == (channels == 3)
    torch.testing.assert_close(network.encode(batch)[:, network.stages[0].num_outputs :], expected)


def test_whitened_patches_have_unit_length_before_the_coordinates():
    images, labels = textures(4)
    settings = replace(SETTINGS.with_depth(1), color=False, patch_side=4, patch_components=3, patch_dimensions=9)
    settings = replace(settings, patch_whitening=True, training_descriptors=100_000, position_weight=0.5)
    network, _, prepared = fitted(settings, images, labels)
    pixels = torch.cat([prepared.load(batch) for batch in prepared.batches()])
    grid = RawPatches(side=4)(pixels)[0]
    # Every patch was in the sample.
    patches = grid.descriptors.reshape(-1, 16).double()
    variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
    white = (grid.descriptors.double() - patches.mean(dim=0)) @ vectors.flip(1)[:, :9]
    white = white / (variances.flip(0)[:9] + 0.1).sqrt()
    white = white / white.norm(dim=-1, keepdim=True)
    stage = network.patches
    found = stage.prepare(network.grids(pixels, stream="grey patches"))[0].descriptors
    torch.testing.assert_close(found[..., :9].norm(dim=-1), torch.ones(found.shape[:3]))
    signs = (found[..., :9] * white).flatten(0, 2).sum(dim=0).sign()
    expected = append_positions((white * signs).float(), grid.positions, weight=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    rows = l2_normalize(signed_power(fisher_vectors(stage.mixture, expected.flatten(1, 2)))) / 2**0.5
    encodings = network.encode(pixels)
    torch.testing.assert_close(encodings[:, -rows.shape[1] :], rows, rtol=0, atol=5e-3)
    plain, _, _ = fitted(replace(settings, patch_whitening=False), images, labels)
    assert not plain.patches.components.whiten
    assert torch.equal(plain.encode(pixels)[:, : -rows.shape[1]], encodings[:, : -rows.shape[1]])
    maps = evidence_maps(network, torch.ones_like(encodings), pixels)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), encodings.sum(dim=1), rtol=0, atol=1e-4)


def test_photographs_are_seen_by_sift_intensities_and_whitened_patches():
    images, labels = textures(4)
    photos = replace(PRESETS["photos"].with_depth(1), components=(4,), color_components=4, patch_components=4)
    network, _, prepared = fitted(replace(photos, bin_sizes=(4,), training_descriptors=2000), images, labels)
    assert network.streams == [0, "colour", "grey patches"]
    patches = network.stage("grey patches")
    assert patches.components.whiten
    assert len(patches.components.mean) == 36
    parts = torch.split(
        network.encode(prepared.load(prepared.batches()[0])),
        [network.stage(stream).num_outputs for stream in network.streams],
        dim=1,
    )
    for part, weight in zip(parts, (1.0, 0.15, 0.3), strict=True):
        torch.testing.assert_close(part.norm(dim=1), torch.full((len(part),), (weight / 1.45) ** 0.5))


@pytest.mark.parametrize("kind", ["lda", "softmax"])
def test_other_projections_make_a_second_layer(grey, kind):
    images, labels = textures(5)
    network, folds, prepared = fitted(replace(SETTINGS, projection=kind), images, labels, seed=3)
    assert network.projections[0].shape == grey[0].projections[0].shape
    rows, common = encode_images(network, prepared, folds=folds).rows, network.stages[0].num_outputs
    expected = encode_images(grey[0], prepared, folds=folds).rows
    np.testing.assert_array_equal(rows[:, :common], expected[:, :common])
    assert np.linalg.norm(rows - expected, axis=1).min() > 0.1
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_a_projection_for_one_label_is_refused_before_any_work():
    images, labels = textures(4)
    several = np.eye(4, dtype=int)[np.unique(labels, return_inverse=True)[1]]
    calls = []
    with pytest.raises(ValueError, match="for several labels an image, got 'lda'"):
        fit_network(
            ImageList(images).prepared(**SETTINGS.preparation),
            several,
            replace(SETTINGS, projection="lda"),
            execution=Execution(progress=lambda *call: calls.append(call)),
        )
    assert not calls


def test_three_layers():
    images, labels = textures(4)
    settings = replace(SETTINGS.with_depth(3), windows=(2,), step=2)
    network, folds, prepared = fitted(settings, images, labels)
    store, _ = encode_images(network, prepared, folds=folds)
    assert [len(network.stages), len(network.projections)] == [3, 2]
    np.testing.assert_allclose(np.linalg.norm(store, axis=1), 1, rtol=1e-5)


def test_images_too_small_for_a_layer_have_zeros_there(grey):
    network, _, _ = grey
    first = network.stages[0].num_outputs
    barely = network.encode(torch.rand(1, 1, 13, 13, generator=torch.Generator().manual_seed(0)))
    assert float(barely[:, :first].norm()) == pytest.approx(2**-0.5)
    assert float(barely[:, first:].norm()) == 0
    assert float(network.encode(torch.rand(1, 1, 1, 1)).norm()) == 0


def test_progress_names_every_stage():
    images, labels = textures(3)
    calls = []
    fitted(
        replace(SETTINGS, iterations=200),
        images,
        labels,
        execution=Execution(progress=lambda *call: calls.append(call)),
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == [
        "layer 1: descriptors",
        "layer 1: mixture",
        "layer 1: projection",
        "layer 2: descriptors",
        "layer 2: mixture",
    ]
    assert all(0 < done <= total for _, done, total in calls)
    last = {stage: (done, total) for stage, done, total in calls}
    assert all(done == total for done, total in last.values())


def test_too_few_descriptors():
    images, labels = textures(2, size=13)
    with pytest.raises(ValueError, match="layer 1 has 400 components but the images give only"):
        fitted(replace(SETTINGS, components=(400, 4)), images, labels)


def test_settings_survive_json_and_refuse_nonsense():
    for settings in PRESETS.values():
        assert NetworkSettings.from_config(settings.to_config()) == settings
    assert SETTINGS.with_depth(1).components == (4,)
    assert SETTINGS.with_depth(3).dimensions == (8, 6, 6)
    small, photos = PRESETS["small"], PRESETS["photos"]
    assert [resolve_settings("auto", 2, side, {}) for side in (24, 96, 97)] == [small, small, photos]
    assert resolve_settings("auto", 2, 8, {}) == replace(small, upsample=4)
    assert resolve_settings("photos", 2, 8, {"components": 7, "windows": [2, 4]}) == replace(
        photos, components=(7, 7), windows=(2, 4)
    )
    with pytest.raises(ValueError, match="components must hold one number a layer: expected 2"):
        replace(SETTINGS, components=(4,))
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        replace(SETTINGS, step=0)
    with pytest.raises(ValueError, match="bin_sizes must be at least 1, got \\(3, 0\\)"):
        replace(SETTINGS, bin_sizes=(3, 0))
    with pytest.raises(ValueError, match="projection_cost must be positive"):
        replace(SETTINGS, projection_cost=0.0)
    with pytest.raises(ValueError, match=r"projection must be one of .*'lda', 'softmax'.* got 'magic'"):
        replace(SETTINGS, projection="magic")
    with pytest.raises(ValueError, match="projection_size must be at least 1"):
        replace(SETTINGS, projection_size=0)
    with pytest.raises(ValueError, match="window_assignment must be 'hard' or 'soft'"):
        replace(SETTINGS, window_assignment="firm")
    older = {name: value for name, value in SETTINGS.to_config().items() if name != "patch_whitening"}
    assert NetworkSettings.from_config(older) == SETTINGS
    with pytest.raises(ValueError, match=r"unknown \['extra'\], missing \['step'\]"):
        NetworkSettings.from_config({k: v for k, v in SETTINGS.to_config().items() if k != "step"} | {"extra": 1})
