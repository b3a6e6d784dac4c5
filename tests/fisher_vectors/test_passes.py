"""What a pass computes of a batch, against the obvious."""

import numpy as np
import torch

from fisher_vectors.test_network import SETTINGS
from fisher_vectors.texture_images import textures
from fisherlayers.fisher_vectors.images import Batch
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.passes import Draw
from fisherlayers.fisher_vectors.streams import Streams


def some_images(number):
    """Grey images, (number, 1, H, W)."""
    return torch.from_numpy(np.stack(textures(1)[0][:number])).unsqueeze(1)


def test_rows_are_drawn_as_from_all_rows_side_by_side():
    images, network = some_images(2), FisherNetwork(SETTINGS, stages=())
    grids = Streams(network, images).descriptors(0)
    assert len(grids) > 1
    drawn = Draw(network, Kept(), "cpu", 0, (3, 1), 11)(images, Batch((5, 2)))
    for position, (index, rows) in enumerate(zip((5, 2), drawn, strict=True)):
        everything = np.concatenate([
            np.concatenate([g.descriptors[position].numpy(), g.positions.numpy()], axis=-1).reshape(-1, 130)
            for g in grids
        ])
        order = np.random.default_rng((3, 1, index)).permutation(len(everything))
        assert np.array_equal(rows, everything[order[:11]])


def test_an_image_with_few_rows_gives_them_all_and_a_small_one_none():
    network = FisherNetwork(SETTINGS, stages=())
    images = some_images(1)
    total = sum(grid.positions[..., 0].numel() for grid in Streams(network, images).descriptors(0))
    for given, count in ((images, total), (images[..., :4, :4], 0)):
        (rows,) = Draw(network, Kept(), "cpu", 0, (0,), 10**6)(given, Batch((0,)))
        assert rows.shape == (count, 130)
