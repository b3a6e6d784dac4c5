"""From a configuration back to the extractor, through JSON."""

import json

import pytest
import torch

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.descriptors import DescriptorExtractor
from fisherlayers.fisher_vectors.extractors import extractor_from_config
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.sift import DenseSift


@pytest.mark.parametrize(
    "extractor", [DenseSift((2, 3), step=1, root=False), LocalColorStatistics((3, 5)), RawPatches(step=3)], ids=repr
)
def test_round_trip_through_json(extractor):
    again = extractor_from_config(json.loads(json.dumps(extractor.to_config())))
    assert again == extractor
    assert isinstance(again, DescriptorExtractor)
    images = torch.rand(1, 3, 24, 25)
    for grid, expected in zip(again(images), extractor(images), strict=True):
        torch.testing.assert_close(grid, expected)
        assert grid.descriptors.shape[-1] == extractor.num_features


@pytest.mark.parametrize("config", [{}, {"type": "hog"}])
def test_unknown_extractors_are_refused(config):
    with pytest.raises(ValueError, match=r"expected one of .*dense_sift.*local_color_statistics.*raw_patches"):
        extractor_from_config(config)
