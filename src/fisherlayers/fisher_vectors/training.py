"""Greedy, layer by layer learning of a Deep Fisher Network; no back-propagation (Simonyan et al., NIPS 2013).

For each layer: PCA and mixture from a sample of the descriptors that reach it, then, if another layer follows, the
projection W from the globally pooled Fisher vectors of labelled images. Every pass streams the images; only samples
and encodings are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.fisher_vectors.mixture import fit_mixture
from fisherlayers.fisher_vectors.network import FisherNetwork, FisherStage, color_extractor, reduce_descriptors
from fisherlayers.fisher_vectors.parallel import Progress, map_batches
from fisherlayers.fisher_vectors.pca import fit_pca
from fisherlayers.fisher_vectors.projection import learn_projection
from fisherlayers.fisher_vectors.settings import NetworkSettings

__all__ = ["encode_images", "fit_network"]

# More images than this add nothing to a sample of descriptors.
_SAMPLE_IMAGES = 4000


Grids = list[DescriptorGrid]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Task:
    """What every pass over the images needs."""

    images: ImageList
    settings: NetworkSettings
    folds: np.ndarray
    seed: int
    n_jobs: int | None
    progress: Progress | None

    def each(
        self, function: Callable[[Tensor, Batch], Result], indices: Sequence[int], stage: str
    ) -> Iterator[tuple[Batch, Result]]:
        """Return the results of a function on the chosen images, batch by batch."""
        batches = self.images.batches(indices=indices, keys=self.folds.tolist())
        return map_batches(
            lambda batch: function(self.images.load(batch), batch),
            batches,
            n_jobs=self.n_jobs,
            progress=self.progress,
            stage=stage,
        )


def fit_network(
    images: ImageList,
    labels: np.ndarray,
    settings: NetworkSettings,
    *,
    seed: int = 0,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> tuple[FisherNetwork, np.ndarray]:
    """Learn the stages and projections of a network.

    Args:
        images: n images, already set to be prepared as ``settings`` say.
        labels: Class indices 0 .. C - 1, (n,).
        settings: Depth, sizes and the rest. The colour stream is learned if ``settings.color`` and an image has colour.
        seed: Of every random choice.
        n_jobs: Worker threads over batches of images.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The network, and for each image the fold of its W: -1 where no W was learned on it.
    """
    rng = np.random.default_rng(seed)
    folds = np.full(len(images), -1)
    if settings.depth > 1:
        learners = _stratified(labels, settings.projection_images, rng)
        if settings.cross_fit > 1:
            for members in (learners[labels[learners] == label] for label in np.unique(labels)):
                # The only image of a class is learned from in every fold.
                folds[members] = np.arange(len(members)) % settings.cross_fit if len(members) > 1 else -1
    sample = _stratified(labels, _SAMPLE_IMAGES, rng)
    task = _Task(images, settings, folds, seed, n_jobs, progress)

    network = FisherNetwork(settings, stages=())
    for level in range(settings.depth):
        name = f"layer {level + 1}"

        def grids(batch_images: Tensor, batch: Batch, level: int = level, network: FisherNetwork = network) -> Grids:
            return network.grids(batch_images, level=level, fold=batch.key)

        stage = _fit_stage(
            task, grids, sample, settings.components[level], settings.dimensions[level], name=name, salt=level
        )
        network = replace(network, stages=(*network.stages, stage))
        if level + 1 < settings.depth:
            projection = _fit_projection(task, network, labels, learners, level)
            network = replace(network, projections=(*network.projections, projection))
    if settings.color and images.has_color:
        extract = color_extractor(settings)
        stage = _fit_stage(
            task,
            lambda batch_images, _: extract(batch_images.expand(-1, 3, -1, -1)),
            sample,
            settings.color_components,
            settings.color_dimensions,
            name="colour",
            salt=settings.depth,
        )
        network = replace(network, color=stage)
    return network, folds


def encode_images(
    network: FisherNetwork,
    images: ImageList,
    store: np.ndarray,
    *,
    folds: np.ndarray | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Encode all images into the rows of a store.

    Args:
        network: A fitted network.
        images: n images, set to be prepared as the network's settings say.
        store: (n, `network.num_features`), any floating type; may be memory-mapped.
        folds: Fold of each image's W; -1 for all if None.
        n_jobs: Worker threads over batches of images.
        progress: Called as ``progress("encode", done, total)``.

    Returns:
        The number of images too small for a single descriptor; their rows are zero.
    """
    keys = None if folds is None else folds.tolist()
    batches = images.batches(keys=keys) if keys is not None else images.batches(keys=[-1] * len(images))
    results = map_batches(
        lambda batch: network.encode(images.load(batch), fold=batch.key),
        batches,
        n_jobs=n_jobs,
        progress=progress,
        stage="encode",
    )
    empty = 0
    for batch, encodings in results:
        store[list(batch.indices)] = encodings.numpy()
        empty += int((encodings == 0).all(dim=1).sum())
    return empty


def _stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most about `size` images, each class in proportion and at least twice where it can be."""
    if len(labels) <= size:
        return np.arange(len(labels))
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(len(members), max(2, round(size * len(members) / len(labels))))
        chosen.append(rng.choice(members, count, replace=False))
    return np.sort(np.concatenate(chosen))


def _fit_stage(
    task: _Task,
    grids: Callable[[Tensor, Batch], Grids],
    sample: np.ndarray,
    components: int,
    dimensions: int,
    *,
    name: str,
    salt: int,
) -> FisherStage:
    # PCA and mixture from random descriptors of the sampled images.
    settings = task.settings
    per_image = -(-settings.training_descriptors // len(sample))

    def draw(images: Tensor, batch: Batch) -> list[Tensor]:
        levels = grids(images, batch)
        rows = torch.cat(
            [
                torch.cat([g.descriptors, g.positions.expand(*g.descriptors.shape[:-1], 2)], dim=-1).flatten(1, 2)
                for g in levels
            ],
            dim=1,
        )
        chosen = []
        for image, index in zip(rows, batch.indices, strict=True):
            # A generator an image: the sample depends neither on the batches nor on the order of the threads.
            rng = np.random.default_rng((task.seed, salt, index))
            chosen.append(image[rng.permutation(len(image))[:per_image]])
        return chosen

    drawn: dict[int, Tensor] = {}
    for batch, rows in task.each(draw, sample.tolist(), f"{name}: descriptors"):
        drawn |= zip(batch.indices, rows, strict=True)
    everything = torch.cat([drawn[index] for index in sorted(drawn)])
    descriptors, positions = everything[:, :-2], everything[:, -2:]
    if len(descriptors) <= components:
        raise ValueError(
            f"{name} has {components} components but the images give only {len(descriptors)} descriptors: ask for "
            "fewer components, give more or larger images, or use smaller bin_sizes, step and windows"
        )
    pca = fit_pca(descriptors, min(dimensions, descriptors.shape[1]))
    reduced = reduce_descriptors(pca, descriptors, positions, settings.position_weight)
    progress = task.progress
    mixture = fit_mixture(
        reduced,
        components,
        seed=task.seed + salt,
        max_iterations=settings.iterations,
        progress=None if progress is None else lambda done, total, _: progress(f"{name}: mixture", done, total),
    )
    if progress is not None:
        # Expectation maximisation may have converged before the last iteration.
        progress(f"{name}: mixture", settings.iterations, settings.iterations)
    return FisherStage(pca, settings.position_weight, mixture)


def _fit_projection(
    task: _Task, network: FisherNetwork, labels: np.ndarray, learners: np.ndarray, level: int
) -> Tensor:
    """Return W learned on global hard Fisher vectors, (F, h, 2 K D): see `learn_projection`."""
    settings = task.settings
    stage = network.stages[level]

    def pool(images: Tensor, batch: Batch) -> Tensor:
        grids = stage.prepare(network.grids(images, level=level, fold=batch.key))
        return stage.encode(grids, assignment="hard", power=False)

    encodings = torch.empty(len(learners), stage.num_outputs)
    place = {index: row for row, index in enumerate(learners.tolist())}
    for batch, rows in task.each(pool, learners.tolist(), f"layer {level + 1}: projection"):
        encodings[[place[index] for index in batch.indices]] = rows
    return learn_projection(
        encodings,
        torch.as_tensor(labels[learners]),
        torch.as_tensor(task.folds[learners]),
        kind=settings.projection,
        size=settings.projection_size,
        cost=settings.projection_cost,
    )
