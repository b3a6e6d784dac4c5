"""The settings of a Deep Fisher Network: one frozen record that JSON can hold, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, inf
from typing import Any, get_args

from fisherlayers.fisher_vectors.encoding import Assignment
from fisherlayers.fisher_vectors.projection import check_projection
from fisherlayers.fisher_vectors.semi_local import SemiLocalPooling
from fisherlayers.fisher_vectors.setting_values import as_setting, as_whole_number

__all__ = ["OVERRIDES", "PRESETS", "NetworkSettings", "resolve_settings"]

INFORMATION = ("closed-form", "images")
GLOBAL_POOLING = ("mean", "generalised-max")


@dataclass(frozen=True)
class NetworkSettings:
    """What a network is made of; the defaults are those of preset ``"photos"``, but for `flips` and patches.

    Attributes:
        depth: Number of Fisher layers that are globally pooled: 1 is the shallow Fisher vector, 2 the paper's network.
        bin_sizes: SIFT's scales: side of one of the 4 x 4 bins, in pixels after resampling.
        step: Distance of neighbouring descriptors, in pixels after resampling.
        upsample: Factor by which every image is enlarged first.
        max_pixels: Images that are larger (after `upsample`) are reduced to this number of pixels.
        padding: Pixels by which the border is continued outwards, so that descriptors reach the edge.
        components: K, the components of each layer's mixture; `depth` entries.
        dimensions: Descriptor dimensions of each layer after PCA; `depth` entries.
        position_weight: Factor of the coordinates (x, y) in [-0.5, 0.5] appended at every layer; 0 leaves them out.
        layer_weight: Share of every layer above the first in the inner product of two images, relative to the first's.
        windows: Sides q of the semi-local windows, in grid positions.
        stride: Step delta of the windows, in grid positions.
        stack_offset: Distance of the 2 x 2 stack's corners as a fraction of the window; 0 is adjacent (the paper's).
        stacking: Whether windows are stacked; this and the next three are for ablations.
        unit_length: Whether stacks are L2-normalised.
        window_assignment: ``"hard"`` or ``"soft"`` assignment in the windows.
        window_power: Whether windows' Fisher vectors are normalised before W, which no longer commutes.
        projection: How the rows of W are learned: see `fisherlayers.fisher_vectors.projection`.
        projection_size: Rows of W, missing ones filled up and too many reduced; None takes what `projection` gives.
        projection_cost: C of the classifiers whose weights are the rows of W.
        projection_images: Largest number of training images that W is learned on.
        cross_fit: Folds in which W is learned, so that no training image is seen by its own W; 1 turns it off.
        information: ``"images"`` equalises the second moments of whole images' Fisher vectors (the empirical
            information), after the closed form; ``"closed-form"`` leaves it at that, as the paper does.
        global_pooling: How descriptors' Fisher vectors become that of a whole image, in every layer and stream:
            ``"mean"``, or ``"generalised-max"``, to which all descriptors are about equally similar
            (`fisherlayers.fisher_vectors.generalised_pooling`) and which has no modules, exports and evidence maps.
            Windows are means always.
        pooling_damping: lambda of generalised max pooling, relative to the expected |phi|^2 of a descriptor's Fisher
            vector, which stands for the unit length of the vectors in the paper: towards 0 it is the maximum, towards
            infinity the mean.
        information_images: Training images that the empirical information is taken from.
        color: Whether a shallow Fisher vector of colour statistics is added for RGB images.
        color_weight: Share of the colour statistics in the inner product of two images, relative to a layer's.
        intensity_weight: The same for statistics of grey images; 0 leaves them out.
        color_components: K of the colour mixture.
        color_dimensions: Dimensions of the colour statistics after PCA.
        patch_side: Pixels of the side of raw patches, of which a shallow Fisher vector is added; 0 leaves them out.
        patch_step: Distance of neighbouring patches, in pixels after resampling.
        patch_components: K of their mixture.
        patch_dimensions: Dimensions of the patches after PCA.
        patch_whitening: Whether patches are whitened by their PCA, with 0.1 added to every variance (Coates, Lee and Ng
            2011), and brought to unit length.
        patch_weight: Share of the patches in the inner product of two images, relative to a layer's.
        training_descriptors: Sample size for each PCA and mixture.
        iterations: EM iterations of each mixture.
        mirror: Whether the descriptors of every image and of its mirror image, left to right, are pooled together, in
            training and later: encodings then do not tell the two apart.
        flips: Whether every training image is also used mirrored left to right.
    """

    depth: int = 2
    bin_sizes: tuple[int, ...] = (4, 6, 8, 10)
    step: int = 4
    upsample: int = 1
    max_pixels: int = 100_000
    padding: int = 0
    components: tuple[int, ...] = (256, 256)
    dimensions: tuple[int, ...] = (80, 80)
    position_weight: float = 1.0
    layer_weight: float = 0.3
    windows: tuple[int, ...] = (5,)
    stride: int = 1
    stack_offset: float = 1.0
    stacking: bool = True
    unit_length: bool = True
    window_assignment: Assignment = "hard"
    window_power: bool = False
    projection: str = "auto"
    projection_size: int | None = 64
    projection_cost: float = 1.0
    projection_images: int = 10_000
    cross_fit: int = 3
    information: str = "images"
    information_images: int = 500
    global_pooling: str = "mean"
    pooling_damping: float = 1.0
    color: bool = True
    color_weight: float = 1.0
    intensity_weight: float = 0.15
    color_components: int = 128
    color_dimensions: int = 48
    patch_side: int = 0
    patch_step: int = 1
    patch_components: int = 128
    patch_dimensions: int = 64
    patch_whitening: bool = False
    patch_weight: float = 1.0
    training_descriptors: int = 200_000
    iterations: int = 20
    mirror: bool = False
    flips: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning.

        Raises:
            ValueError: Names the setting.
        """
        for name in ("components", "dimensions"):
            if len(getattr(self, name)) != self.depth:
                raise ValueError(
                    f"{name} must hold one number a layer: expected {self.depth} (depth), got {getattr(self, name)}"
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if any(entry < least for entry in (value if isinstance(value, tuple) else (value,))) or value == ():
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in _LENGTHS:
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,)) > _LONGEST:
                raise ValueError(f"{name} must be at most {_LONGEST}, the longest side of an image, got {value}")
        if self.projection_cost <= 0:
            raise ValueError(f"projection_cost must be positive, got {self.projection_cost}")
        check_projection(self.projection)
        if self.information not in INFORMATION:
            raise ValueError(f"information must be one of {INFORMATION}, got {self.information!r}")
        if self.global_pooling not in GLOBAL_POOLING:
            raise ValueError(f"global_pooling must be one of {GLOBAL_POOLING}, got {self.global_pooling!r}")
        if not 0 < self.pooling_damping < inf:
            raise ValueError(f"pooling_damping must be positive and finite, got {self.pooling_damping}")
        if self.window_assignment not in get_args(Assignment):
            raise ValueError(f"window_assignment must be 'hard' or 'soft', got {self.window_assignment!r}")
        if self.projection_size is not None and self.projection_size < 1:
            raise ValueError(f"projection_size must be at least 1 row, or None for all, got {self.projection_size}")

    @property
    def preparation(self) -> dict[str, int]:
        """How images are resampled when they are loaded: the arguments of `ImageList.prepared`."""
        return {"max_pixels": self.max_pixels, "upsample": self.upsample, "padding": self.padding}

    @property
    def pooling(self) -> SemiLocalPooling:
        """The semi-local layers."""
        return SemiLocalPooling(
            self.windows,
            self.stride,
            self.stack_offset,
            self.stacking,
            self.unit_length,
            self.window_assignment,
            self.window_power,
        )

    def with_depth(self, depth: int) -> NetworkSettings:
        """Return the settings of a network of another depth; new layers repeat the last one.

        Args:
            depth: At least 1.

        Returns:
            Settings whose per-layer entries number `depth`.
        """

        def fit(entries: tuple[int, ...]) -> tuple[int, ...]:
            return (entries + entries[-1:] * depth)[:depth]

        return replace(self, depth=depth, components=fit(self.components), dimensions=fit(self.dimensions))

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them.

        Returns:
            Name -> value, tuples as lists.
        """
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NetworkSettings:
        """Rebuild settings from what `to_config` returned.

        Args:
            config: Name -> value. Settings that came after the first models of this format may be missing: those models
                have their defaults.

        Returns:
            The settings.

        Raises:
            ValueError: If a setting is unknown, missing, or of another kind.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}
        unknown, missing = set(config) - set(kinds), set(kinds) - set(config) - _LATER
        if unknown or missing:
            raise ValueError(f"settings do not fit this version: unknown {sorted(unknown)}, missing {sorted(missing)}")
        for name, value in config.items():
            if isinstance(value, list) != kinds[name].startswith("tuple"):
                raise ValueError(
                    f"{name} must be {'a list' if kinds[name].startswith('tuple') else 'one value'}, got {value!r}"
                )
        return cls(**{name: as_setting(name, value, kinds[name]) for name, value in config.items()})


# Models were saved before there were these; each has a default that leaves all as it was.
_LATER = {"global_pooling", "patch_whitening", "pooling_damping"}

_LEAST: dict[str, float] = {
    "depth": 1,
    "bin_sizes": 1,
    "step": 1,
    "upsample": 1,
    "max_pixels": 1,
    "padding": 0,
    "components": 1,
    "dimensions": 1,
    "position_weight": 0,
    "layer_weight": 0,
    "windows": 1,
    "stride": 1,
    "stack_offset": 0,
    "projection_images": 1,
    "cross_fit": 1,
    "information_images": 1,
    "color_weight": 0,
    "intensity_weight": 0,
    "color_components": 1,
    "color_dimensions": 1,
    "patch_side": 0,
    "patch_step": 1,
    "patch_components": 1,
    "patch_dimensions": 1,
    "patch_weight": 0,
    "training_descriptors": 1,
    "iterations": 1,
}

# Beyond the longest side of a JPEG file these have no use, and sizes of images would overflow.
_LENGTHS = ("bin_sizes", "step", "upsample", "padding", "stride", "patch_side", "patch_step")
_LONGEST = 65_535

PRESETS: dict[str, NetworkSettings] = {
    # Mirrored photographs belong to the same class, and small whitened patches see the texture that SIFT's bins blur:
    # the two largest gains beside SIFT (benchmarks/README.md).
    "photos": NetworkSettings(
        flips=True, patch_side=6, patch_step=4, patch_whitening=True, patch_components=256, patch_weight=0.3
    ),
    # Small images leave few positions: fine bins on a dense grid that reaches over the edge, and small mixtures.
    "small": NetworkSettings(
        bin_sizes=(2, 3, 4, 6),
        step=2,
        padding=4,
        components=(64, 64),
        dimensions=(64, 64),
        windows=(3,),
        color_components=64,
        color_weight=0.3,
        patch_side=6,
        patch_weight=0.5,
    ),
    # Simonyan, Vedaldi and Zisserman 2013: 24 x 24 patches at 5 scales of ratio sqrt(2), stride 3.
    "paper": NetworkSettings(
        bin_sizes=(4, 6, 8, 12, 17),
        step=3,
        components=(256, 256),
        dimensions=(128, 200),
        windows=(5, 7, 9, 11),
        stride=2,
        stack_offset=0.0,
        projection="one-vs-rest",
        projection_size=None,
        cross_fit=1,
        information="closed-form",
        intensity_weight=0.0,
        layer_weight=1.0,
        color_components=256,
        color_dimensions=64,
    ),
}


# What an estimator may override, one by one.
OVERRIDES = (
    "components",
    "dimensions",
    "bin_sizes",
    "step",
    "upsample",
    "max_pixels",
    "padding",
    "position_weight",
    "layer_weight",
    "windows",
    "stride",
    "stack_offset",
    "projection",
    "projection_size",
    "projection_images",
    "cross_fit",
    "information",
    "global_pooling",
    "pooling_damping",
    "color",
    "color_weight",
    "intensity_weight",
    "patch_side",
    "patch_step",
    "patch_whitening",
    "patch_weight",
    "training_descriptors",
    "iterations",
    "mirror",
    "flips",
)
_PER_LAYER = ("components", "dimensions")

_LARGEST_SMALL = 96
# Sides below the first are enlarged to at least the second: SIFT needs room for 4 x 4 bins.
_TOO_SMALL = 24
_ENOUGH = 28


def resolve_settings(preset: str, depth: int, side: float, overrides: Mapping[str, Any]) -> NetworkSettings:
    """Return a preset's settings at some depth, with some of them replaced.

    Args:
        preset: Name, or ``"auto"`` to choose by size: ``"small"`` up to 96 pixels a side, ``"photos"`` above; images
            below 24 pixels are enlarged to 28 or more.
        depth: Number of layers, at least 1.
        side: Typical side of the images in pixels: the square root of the median area.
        overrides: Setting -> value; a single number for `components` and `dimensions` counts for every layer, and
            stands for itself in `bin_sizes` and `windows`.

    Returns:
        The settings.

    Raises:
        ValueError: If the preset is unknown or a setting has no meaning.
    """
    if preset not in {"auto", *PRESETS}:
        raise ValueError(f"preset must be 'auto' or one of {sorted(PRESETS)}, got {preset!r}")
    depth = as_whole_number("depth", depth)
    if depth < 1:
        raise ValueError(f"depth must be at least 1 layer, got {depth}")
    if preset == "auto":
        settings = PRESETS["small" if side <= _LARGEST_SMALL else "photos"].with_depth(depth)
        if side < _TOO_SMALL:
            settings = replace(settings, upsample=ceil(_ENOUGH / side))
    else:
        settings = PRESETS[preset].with_depth(depth)
    kinds = {field.name: str(field.type) for field in fields(NetworkSettings)}
    chosen = {name: as_setting(name, value, kinds[name]) for name, value in overrides.items()}
    for name in chosen.keys() & {"components", "dimensions", "bin_sizes", "windows"}:
        if isinstance(chosen[name], int):
            chosen[name] = (chosen[name],) * (depth if name in _PER_LAYER else 1)
    return replace(settings, **chosen)
