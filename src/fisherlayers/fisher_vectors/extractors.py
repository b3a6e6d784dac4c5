"""The extractors by name: from a configuration of plain JSON types back to the object."""

from __future__ import annotations

from typing import Any

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.descriptors import DescriptorExtractor
from fisherlayers.fisher_vectors.patches import RawPatches
from fisherlayers.fisher_vectors.sift import DenseSift

__all__ = ["extractor_from_config"]

_EXTRACTORS: dict[str, type[DescriptorExtractor]] = {
    DenseSift.type_name: DenseSift,
    LocalColorStatistics.type_name: LocalColorStatistics,
    RawPatches.type_name: RawPatches,
}


def extractor_from_config(config: dict[str, Any]) -> DescriptorExtractor:
    """Make the extractor whose `to_config` returned `config`.

    Args:
        config: the settings, with the extractor's name under "type".

    Returns:
        The extractor.

    Raises:
        ValueError: If no extractor has that name.
    """
    name = config.get("type")
    if name not in _EXTRACTORS:
        raise ValueError(f"config has type {name!r}, expected one of {sorted(_EXTRACTORS)}")
    return _EXTRACTORS[name].from_config(config)
