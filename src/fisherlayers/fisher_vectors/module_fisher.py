"""Fisher vectors of another network's feature maps (FV-CNN: Cimpoi, Maji and Vedaldi, CVPR 2015).

The positions of a map are descriptors like any others: a `FisherStage` reduces them, appends their coordinates and
pools them over all positions, sizes and the mirror image. A network that was trained elsewhere gives the maps; PCA,
mixture and empirical information are learned here, and see no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid, grid_positions
from fisherlayers.fisher_vectors.encoding import entry_names
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.fisher_vectors.module_pixels import check_pixels, check_size, resampled, standardised, with_channels
from fisherlayers.fisher_vectors.pca import fit_pca
from fisherlayers.fisher_vectors.stage import FisherStage, reduce_descriptors

__all__ = ["ModuleFisherVectors"]


class ModuleFisherVectors(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Fisher vectors of images by the feature maps of a network that is trained already: a transformer for pipelines.

    With `fisherlayers.fisher_vectors.linear_svm.LinearSVM` behind it, it is a classifier, and a member of a
    `LateFusion`. Where `ModuleFeatures` keeps the mean of a map over its positions, a Fisher vector keeps how they are
    distributed, for scenes and textures the better part of what a network sees.

    Args:
        module: Images (B, channels, H, W) to maps (B, F, h, w), such as a network without its pooling and classifier.
        sizes: (H, W) to which images are resampled, one or a sequence; the positions of all sizes are pooled together.
        components: K of the mixture.
        dimensions: Of the positions' features after PCA, at most F.
        position_weight: Factor of the coordinates (x, y) in [-0.5, 0.5] that are appended; 0 leaves them out.
        mirror: Whether the positions of the image mirrored left to right are pooled with the image's own.
        information: ``"images"`` equalises the second moments of whole images' Fisher vectors, as in
            `DeepFisherNetwork`; ``"closed-form"`` leaves it out.
        mean: Subtracted from pixels in [0, 1], one number or one a channel.
        std: By which they are divided then. The defaults map to [-1, 1].
        channels: 1 or 3; grey images are given three equal channels, colour ones are averaged for one.
        batch_size: Images at a time, at least 1.
        device: Where the module is and the work is done.
        training_images: Largest number of images that PCA, mixture and information are learned from.
        training_descriptors: Size of the sample for PCA and mixture.
        iterations: EM iterations.
        random_state: Seed of the sample and the mixture.

    Attributes:
        stage_: PCA, mixture and information.
        scale_: Mean length of the sample's positions, by which all are divided.
        n_features_out_: 2 K D, D with the coordinates: the length of an image's encoding.
    """

    def __init__(
        self,
        module: nn.Module,
        sizes: tuple[int, int] | Sequence[tuple[int, int]],
        *,
        components: int = 64,
        dimensions: int = 64,
        position_weight: float = 1.0,
        mirror: bool = True,
        information: str = "images",
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        channels: int = 3,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        training_images: int = 1000,
        training_descriptors: int = 200_000,
        iterations: int = 20,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.module = module
        self.sizes = sizes
        self.components = components
        self.dimensions = dimensions
        self.position_weight = position_weight
        self.mirror = mirror
        self.information = information
        self.mean = mean
        self.std = std
        self.channels = channels
        self.batch_size = batch_size
        self.device = device
        self.training_images = training_images
        self.training_descriptors = training_descriptors
        self.iterations = iterations
        self.random_state = random_state

    def fit(self, images: Any, y: Any = None) -> Self:
        """Learn PCA, mixture and information.

        Args:
            images: As for `DeepFisherNetwork.fit`; of any sizes.
            y: Ignored.

        Returns:
            Itself.

        Raises:
            ValueError: If an argument lies outside its range, the module gives no maps, or there are fewer positions
                than components.
        """
        self._check()
        listed = ImageList(images)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(len(listed))[: self.training_images]).tolist()
        per_image = -(-self.training_descriptors // len(chosen))
        rows, positions = [], []
        for _, grids in self._maps(listed, chosen):
            together = torch.cat([grid.descriptors.flatten(1, 2) for grid in grids], dim=1)
            places = torch.cat([grid.positions.flatten(0, 1) for grid in grids])
            for image in together:
                drawn = torch.as_tensor(rng.permutation(len(image))[:per_image], device=image.device)
                rows.append(image[drawn])
                positions.append(places[drawn])
        sample, places = torch.cat(rows), torch.cat(positions)
        if len(sample) <= self.components:
            raise ValueError(
                f"components is {self.components} but the maps of the images have only {len(sample)} positions: ask "
                "for fewer components, or give more images or larger sizes"
            )
        # Coordinates and features at one scale, whatever the network's outputs are.
        self.scale_ = float(sample.norm(dim=1).mean().clamp_min(1e-12))
        sample = sample / self.scale_
        pca = fit_pca(sample, min(self.dimensions, sample.shape[1]))
        reduced = reduce_descriptors(pca, sample, places, self.position_weight)
        mixture = fit_mixture(reduced, self.components, seed=seed % 2**31, max_iterations=self.iterations)
        stage = FisherStage(pca, self.position_weight, mixture)
        if self.information == "images":
            pooled = torch.cat([
                stage.pool(stage.prepare(self._scaled(grids))) for _, grids in self._maps(listed, chosen)
            ])
            stage = stage.with_empirical_information(pooled)
        self.stage_ = stage.to("cpu")
        self.n_features_out_ = self.stage_.num_outputs
        return self

    def transform(self, images: Any) -> np.ndarray:
        """Encode images.

        Args:
            images: As for `fit`.

        Returns:
            (n, `n_features_out_`), float32, each of unit length.
        """
        check_is_fitted(self)
        listed, stage = ImageList(images), self.stage_.to(self.device)
        rows = np.empty((len(listed), self.n_features_out_), dtype=np.float32)
        for indices, grids in self._maps(listed, range(len(listed))):
            rows[list(indices)] = stage.encode(stage.prepare(self._scaled(grids))).cpu().numpy()
        return rows

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the encodings' entries, such as ``mean_k3_d7`` and ``deviation_k0_d2``.

        Args:
            input_features: Not used; images have no feature names.

        Returns:
            (`n_features_out_`,), strings.
        """
        check_is_fitted(self)
        return np.array(entry_names(self.stage_.mixture), dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.no_validation = True
        return tags

    def _check(self) -> None:
        for size in self._all_sizes():
            check_size("sizes", size)
        for name in ("components", "dimensions", "batch_size", "training_images", "training_descriptors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_pixels(self.channels, self.mean, self.std)
        if self.position_weight < 0:
            raise ValueError(f"position_weight must be at least 0, got {self.position_weight}")
        if self.information not in {"images", "closed-form"}:
            raise ValueError(f"information must be 'images' or 'closed-form', got {self.information!r}")

    def _all_sizes(self) -> list[Any]:
        sizes = list(self.sizes) if isinstance(self.sizes, Iterable) else []
        if not sizes:
            raise ValueError(f"sizes must hold at least one (H, W), got {self.sizes!r}")
        return sizes if isinstance(sizes[0], Iterable) else [tuple(sizes)]

    def _scaled(self, grids: list[DescriptorGrid]) -> list[DescriptorGrid]:
        return [grid._replace(descriptors=grid.descriptors / self.scale_) for grid in grids]

    def _maps(self, listed: ImageList, chosen: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[DescriptorGrid]]]:
        # The positions of all sizes, and of the mirror images, of a batch of images.
        whole = listed.prepared(max_pixels=max(h * w for _, h, w in listed.shapes), upsample=1, padding=0)
        was_training = self.module.training
        self.module.eval()
        try:
            for batch in whole.batches(indices=chosen):
                for start in range(0, len(batch.indices), self.batch_size):
                    part = Batch(batch.indices[start : start + self.batch_size])
                    pixels = with_channels(whole.load(part), self.channels)
                    yield part.indices, self._grids(standardised(pixels, self.mean, self.std).to(self.device))
        finally:
            self.module.train(was_training)

    @torch.inference_mode()
    def _grids(self, pixels: Tensor) -> list[DescriptorGrid]:
        grids = []
        for size in self._all_sizes():
            image = resampled(pixels, size)
            views = (image, image.flip(3)) if self.mirror else (image,)
            grids += [_grid(self.module(view), len(view)) for view in views]
        return grids


def _grid(maps: Tensor, count: int) -> DescriptorGrid:
    if maps.ndim != 4 or len(maps) != count or 0 in maps.shape:
        raise ValueError(f"module must return maps (B, F, h, w) of B = {count} images, got shape {tuple(maps.shape)}")
    height, width = maps.shape[2:]
    maps = maps.float()
    return DescriptorGrid(maps.movedim(1, -1), grid_positions(height, width, 0, 1, maps.dtype, maps.device), 1.0)
