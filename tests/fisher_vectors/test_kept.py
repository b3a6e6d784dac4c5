"""Descriptors and Fisher vectors that a fit keeps from pass to pass: the same model, with less work."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from fisher_vectors.test_network import SETTINGS, fitted
from fisher_vectors.texture_images import textures
from fisherlayers.fisher_vectors import training
from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.image_encodings import encode_images
from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.sift import DenseSift

# All streams, cross-fitting and the empirical information.
FULL = replace(SETTINGS, information="images", intensity_weight=0.5, patch_side=5, patch_components=3)
ENOUGH, NONE = 2**30, 4


def grids(images, size=3):
    generator = torch.Generator().manual_seed(0)
    return [
        DescriptorGrid(torch.rand(images, size, 2, 4, generator=generator), torch.zeros(size, 2, 2), 1.0),
        DescriptorGrid(torch.rand(images, 1, 1, 4, generator=generator), torch.zeros(1, 1, 2), 2.0),
    ]


def refuse():
    raise AssertionError("was to be recalled")


def test_descriptors_come_back_in_other_batches():
    kept, whole = Kept(ENOUGH), grids(3)
    assert kept.recall(Batch((5, 2, 9)))(0, lambda: whole) is whole
    found = kept.recall(Batch((9, 5)))(0, refuse)
    for grid, old in zip(found, whole, strict=True):
        assert torch.equal(grid.descriptors, old.descriptors[[2, 0]])
        assert torch.equal(grid.positions, old.positions)
        assert grid.scale == old.scale
    assert torch.equal(kept.recall(Batch((2,)))(0, refuse)[0].descriptors, whole[0].descriptors[1:2])
    other = grids(1)
    assert kept.recall(Batch((5,)))("colour", lambda: other) is other, "another stream"
    assert kept.recall(Batch((5, 3)))(0, lambda: other) is other, "one image is not known"


def test_what_has_no_room_is_computed_again():
    batch, whole = Batch((0, 1)), grids(2)
    size = sum(grid.descriptors.nbytes for grid in whole)
    kept = Kept(size)
    kept.recall(batch)(0, lambda: whole)
    kept.recall(batch)(0, refuse)
    kept.recall(Batch((2, 3)))(0, lambda: whole)
    with pytest.raises(AssertionError, match="was to be recalled"):
        kept.recall(Batch((2, 3)))(0, refuse)
    kept.recall(batch)(1, lambda: whole)  # every stream has room of its own
    kept.recall(batch)(1, refuse)
    without = Kept(size)
    without.recall(batch, add=False)(0, lambda: whole)
    with pytest.raises(AssertionError, match="was to be recalled"):
        without.recall(batch)(0, refuse)


def test_fisher_vectors_are_known_where_all_streams_have_them():
    kept, rows = Kept(ENOUGH), torch.arange(6.0).reshape(3, 2)
    kept.keep_pooled(0, [4, 7, 8], rows)
    kept.keep_pooled("colour", [8, 4], rows[:2])
    found = kept.pooled([0, "colour"])
    assert {index: [row.tolist() for row in both] for index, both in found.items()} == {
        4: [[0, 1], [2, 3]],
        8: [[4, 5], [0, 1]],
    }
    assert kept.pooled([0, 1]) == {}
    assert [kept.has_pooled(stream) for stream in (0, 1)] == [True, False]


def test_other_processes_are_sent_nothing():
    kept = Kept(ENOUGH)
    kept.recall(Batch((0,)))(0, lambda: grids(1))
    kept.keep_pooled(0, [0], torch.zeros(1, 2))
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.pooled([0]) == {}
    copy.recall(Batch((1,)))(0, lambda: grids(1))
    with pytest.raises(AssertionError, match="was to be recalled"):
        copy.recall(Batch((1,)))(0, refuse)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_kept_changes_nothing_in_the_model(depth, monkeypatch):
    images, labels = textures(5)
    settings, found = replace(FULL.with_depth(depth), windows=(2,)), []
    for limit in (ENOUGH, 10_000, 0):  # all descriptors, those of a batch, none
        monkeypatch.setattr(training, "Kept", lambda size, folds, limit=limit: Kept(min(size, limit), folds))
        execution = Execution(memory=8 * ENOUGH)
        network, folds, prepared = fitted(settings, images, labels, execution=execution)
        rows = encode_images(network, prepared.mirrored(), folds=np.tile(folds, 2), execution=execution).rows
        found.append((rows, network))
    for rows, network in found[1:]:
        assert np.array_equal(rows, found[0][0])
        for stream in network.streams:
            assert torch.equal(network.stage(stream).mixture.means, found[0][1].stage(stream).mixture.means)
            assert torch.equal(network.stage(stream).gains, found[0][1].stage(stream).gains)


def test_the_last_bit_of_a_descriptor_does_not_depend_on_its_batch():
    images, labels = textures(5)
    network, _, prepared = fitted(replace(FULL, windows=(2, 3)), images, labels)
    batch = torch.cat([prepared.load(batch) for batch in prepared.batches()])
    for stream in (0, "colour", "grey patches", "colour patches"):
        together = network.grids(batch, stream=stream)
        for part in (slice(0, 1), slice(3, 8), slice(13, 20)):
            for alone, whole in zip(network.grids(batch[part], stream=stream), together, strict=True):
                assert torch.equal(alone.descriptors, whole.descriptors[part])


@pytest.mark.parametrize(
    ("memory", "flips", "times"),
    # Once for all passes, and the mirror images; or for the samples and the information of both layers and for W.
    [(ENOUGH, False, 1), (ENOUGH, True, 2), (NONE, False, 5), (NONE, True, 6)],
)
def test_sift_is_computed_once_where_there_is_room(memory, flips, times, monkeypatch):
    seen = []
    plain = DenseSift.__call__

    def counted(self, images):
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(DenseSift, "__call__", counted)
    images, labels = textures(5)
    with Execution(memory=memory) as execution:
        network, folds, prepared = fitted(FULL, images, labels, execution=execution)
        if flips:
            prepared, folds = prepared.mirrored(), np.tile(folds, 2)
        encode_images(network, prepared, folds=folds, execution=execution)
    assert sum(seen) == times * len(images)


def test_what_was_kept_of_training_images_serves_no_others():
    images, labels = textures(5)
    unseen, _ = textures(5, seed=1)
    execution = Execution(memory=ENOUGH)
    network, folds, prepared = fitted(FULL, images, labels, execution=execution)
    others = ImageList(unseen).prepared(**FULL.preparation)
    expected = encode_images(network, others).rows
    assert np.array_equal(encode_images(network, others, execution=execution).rows, expected)
    assert np.array_equal(encode_images(network, others, folds=np.full(20, -1), execution=execution).rows, expected)
    # The same images as new ones: their own W is not to be used.
    new = encode_images(network, prepared, execution=execution).rows
    assert np.array_equal(new, encode_images(network, prepared).rows)
    assert not np.array_equal(new, encode_images(network, prepared, folds=folds).rows)


def test_progress_is_complete_where_nothing_is_left_to_encode():
    images, labels = textures(5)
    calls = []
    execution = Execution(memory=ENOUGH, progress=lambda *call: calls.append(call))
    network, folds, prepared = fitted(FULL, images, labels, execution=execution)
    calls.clear()
    rows = encode_images(network, prepared, folds=folds, execution=execution).rows
    assert calls == [("encode", 20, 20)]
    np.testing.assert_allclose(rows, encode_images(network, prepared, folds=folds).rows, atol=1e-3)
