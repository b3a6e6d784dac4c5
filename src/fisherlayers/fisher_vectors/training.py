"""Greedy, layer by layer learning of a Deep Fisher Network; no back-propagation (Simonyan et al., NIPS 2013).

For each layer: PCA and mixture from a sample of the descriptors that reach it, then, if another layer follows, the
projection W from the globally pooled Fisher vectors of labelled images. Every pass streams the images; only samples
and encodings are held, and the latter on disk where they are too large. `execution` says where all of it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.execution import Encoded, Execution
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.images import Batch, ImageList
from fisherlayers.fisher_vectors.network import FisherNetwork, color_grids, patch_grids
from fisherlayers.fisher_vectors.pca import fit_pca
from fisherlayers.fisher_vectors.persistence import network_from_tensors, network_tensors
from fisherlayers.fisher_vectors.projection import check_projection, learn_projection
from fisherlayers.fisher_vectors.rows import as_rows
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.stage import FisherStage, reduce_descriptors

__all__ = ["encode_images", "fit_network"]

# More images than this add nothing to a sample of descriptors.
_SAMPLE_IMAGES = 4000
_GREY_DIMENSIONS = 28
# Added to the variances of patches that are whitened, as Coates, Lee and Ng do: their pixels have a variance of at most
# 1 after the normalisation for contrast, and directions of much less hold the noise of the camera.
_PATCH_FLOOR = 0.1


# A Fisher layer from 0, or one of the shallow streams.
Level = int | Literal["colour", "colour patches", "grey patches"]


@dataclass(frozen=True)
class _Task:
    """What every step of the fit needs."""

    images: ImageList
    labels: np.ndarray
    settings: NetworkSettings
    seed: int
    execution: Execution
    sample: np.ndarray
    learners: np.ndarray
    folds: np.ndarray

    def remember(self, name: str, compute: Callable[[], FisherNetwork]) -> FisherNetwork:
        """Return the network of a finished step, or take the step."""
        tensors = self.execution.remember(name, lambda: network_tensors(compute()))
        return network_from_tensors(self.settings, tensors, complete=False)


def fit_network(
    images: ImageList,
    labels: np.ndarray,
    settings: NetworkSettings,
    *,
    seed: int = 0,
    execution: Execution | None = None,
) -> tuple[FisherNetwork, np.ndarray]:
    """Learn the stages and projections of a network.

    Args:
        images: n images, already set to be prepared as ``settings`` say.
        labels: Class indices 0 .. C - 1, (n,); or for several labels an image 0 and 1, (n, C).
        settings: Depth, sizes and the rest. The colour stream is learned if ``settings.color`` and an image has colour.
        seed: Of every random choice.
        execution: How it is run; in this thread and in memory if None.

    Returns:
        The network, and for each image the fold of its W: -1 where no W was learned on it.
    """
    if settings.depth > 1:
        check_projection(settings.projection, several_labels=labels.ndim == 2)
    rng = np.random.default_rng(seed)
    folds = np.full(len(images), -1)
    strata = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=int)
    learners = np.arange(0)
    if settings.depth > 1:
        learners = _stratified(strata, settings.projection_images, rng)
        if settings.cross_fit > 1:
            for members in (learners[strata[learners] == label] for label in np.unique(strata)):
                # The only image of a class is learned from in every fold.
                folds[members] = np.arange(len(members)) % settings.cross_fit if len(members) > 1 else -1
    sample = _stratified(strata, _SAMPLE_IMAGES, rng)
    task = _Task(images, labels, settings, seed, execution or Execution(), sample, learners, folds)

    network = FisherNetwork(settings, stages=())
    for level in range(settings.depth):

        def add_stage(network: FisherNetwork = network, level: int = level) -> FisherNetwork:
            return replace(network, stages=(*network.stages, _fit_stage(task, network, level)))

        network = task.remember(f"layer-{level + 1}", add_stage)
        if level + 1 < settings.depth:

            def add_projection(network: FisherNetwork = network, level: int = level) -> FisherNetwork:
                return replace(network, projections=(*network.projections, _fit_projection(task, network, level)))

            network = task.remember(f"projection-{level + 1}", add_projection)
    if settings.color and (settings.color_weight if images.has_color else settings.intensity_weight) > 0:
        grey = network
        network = task.remember("colour", lambda: replace(grey, color=_fit_stage(task, grey, "colour")))
    if settings.patch_side and settings.patch_weight > 0:
        others = network
        kind: Level = "colour patches" if images.has_color else "grey patches"
        network = task.remember("patches", lambda: replace(others, patches=_fit_stage(task, others, kind)))
    return network, folds


def encode_images(
    network: FisherNetwork,
    images: ImageList,
    *,
    folds: np.ndarray | None = None,
    dtype: str = "float32",
    execution: Execution | None = None,
) -> Encoded:
    """Encode all images.

    Args:
        network: A fitted network.
        images: n images, set to be prepared as the network's settings say.
        folds: Fold of each image's W; -1 for all if None.
        dtype: In which the encodings are kept.
        execution: How it is run; in this thread and in memory if None.

    Returns:
        (n, `network.num_features`), and the number of images too small for a single descriptor; their rows are zero.
    """
    keys = np.full(len(images), -1) if folds is None else folds
    execution = execution or Execution()
    encode = _Encode(network, execution.device)
    return execution.rows(f"encodings-{_digest(network)}", encode, images, network.num_features, keys=keys, dtype=dtype)


@dataclass(frozen=True)
class _Encode:
    """The multi-layer descriptors of a batch."""

    network: FisherNetwork
    device: str

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        return self.network.to(self.device).encode(images.to(self.device), fold=batch.key).cpu().numpy()


@dataclass(frozen=True)
class _Pool:
    """Global Fisher vectors of one layer, made as the windows' are: what W is learned on."""

    network: FisherNetwork
    level: int
    device: str

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        network = self.network.to(self.device)
        # Windows are means, whatever whole images are.
        stage = replace(network.stages[self.level], pooling_damping=None)
        grids = stage.prepare(network.grids(images.to(self.device), level=self.level, fold=batch.key))
        settings = network.settings
        return stage.encode(grids, assignment=settings.window_assignment, power=settings.window_power).cpu().numpy()


@dataclass(frozen=True)
class _Draw:
    """Random descriptors, with their positions, of each image."""

    network: FisherNetwork
    level: Level
    device: str
    seed: tuple[int, ...]
    per_image: int

    def __call__(self, images: Tensor, batch: Batch) -> list[np.ndarray]:
        rows = torch.cat(
            [
                torch.cat([g.descriptors, g.positions.expand(*g.descriptors.shape[:-1], 2)], dim=-1).flatten(1, 2)
                for g in _grids(self.network.to(self.device), self.level, images.to(self.device), batch)
            ],
            dim=1,
        )
        chosen = []
        for image, index in zip(rows.cpu().numpy(), batch.indices, strict=True):
            # A generator an image: the sample depends neither on the batches nor on the order of the workers.
            rng = np.random.default_rng((*self.seed, index))
            chosen.append(image[rng.permutation(len(image))[: self.per_image]])
        return chosen


@dataclass(frozen=True)
class _Whole:
    """Fisher vectors of whole images before any normalisation, by a stage that the network does not have yet."""

    network: FisherNetwork
    level: Level
    device: str
    stage: FisherStage

    def __call__(self, images: Tensor, batch: Batch) -> np.ndarray:
        stage = self.stage.to(self.device)
        grids = _grids(self.network.to(self.device), self.level, images.to(self.device), batch)
        return stage.pool(stage.prepare(grids)).cpu().numpy()


def _grids(network: FisherNetwork, level: Level, images: Tensor, batch: Batch) -> list[DescriptorGrid]:
    """Return the descriptors that enter a layer or a stream."""
    if level == "colour":
        return color_grids(network.settings, images)
    if isinstance(level, str):
        return patch_grids(network.settings, images, color=level == "colour patches")
    return network.grids(images, level=level, fold=batch.key)


def _digest(network: FisherNetwork) -> str:
    # Encodings belong to a network to the last bit.
    digest = hashlib.sha256()
    for name, tensor in sorted(network_tensors(network).items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


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


def _fit_stage(task: _Task, network: FisherNetwork, level: Level) -> FisherStage:
    # PCA and mixture of a layer, or of the colour stream, from random descriptors of the sampled images.
    settings, execution = task.settings, task.execution
    if level == "colour":
        name, salt = "colour", settings.depth
        weight = settings.color_weight if task.images.has_color else settings.intensity_weight
        components, dimensions = settings.color_components, settings.color_dimensions
        if not task.images.has_color:
            # Three equal channels hold one channel's 16 means and 16 standard deviations.
            dimensions = min(dimensions, _GREY_DIMENSIONS)
    elif isinstance(level, str):
        name, salt, weight = "patches", settings.depth + 1, settings.patch_weight
        components, dimensions = settings.patch_components, settings.patch_dimensions
    else:
        name, salt, weight = f"layer {level + 1}", level, settings.layer_weight if level else 1.0
        components, dimensions = settings.components[level], settings.dimensions[level]
    per_image = -(-settings.training_descriptors // len(task.sample))
    draw = _Draw(network, level, execution.device, (task.seed, salt), per_image)
    batches = task.images.batches(indices=task.sample.tolist(), keys=task.folds.tolist())
    drawn: dict[int, np.ndarray] = {}
    for batch, found in execution.map(draw, task.images, batches, f"{name}: descriptors"):
        drawn |= zip(batch.indices, found, strict=True)
    everything = torch.from_numpy(np.concatenate([drawn.pop(index) for index in sorted(drawn)])).to(execution.device)
    descriptors, positions = everything[:, :-2], everything[:, -2:]
    if len(descriptors) <= components:
        raise ValueError(
            f"{name} has {components} components but the images give only {len(descriptors)} descriptors: ask for "
            "fewer components, give more or larger images, or use smaller bin_sizes, step and windows"
        )
    whiten = name == "patches" and settings.patch_whitening
    pca = fit_pca(
        descriptors, min(dimensions, descriptors.shape[1]), whiten=whiten, floor=_PATCH_FLOOR if whiten else 0.0
    )
    reduced = reduce_descriptors(pca, descriptors, positions, settings.position_weight, unit_length=whiten)
    start = fit_mixture(reduced, components, seed=task.seed + salt, max_iterations=0, total=execution.total)
    mixture = fit_mixture(
        reduced,
        components,
        max_iterations=settings.iterations,
        start=execution.processes.share(start),
        total=execution.total,
        progress=lambda done, total, _: execution.report(f"{name}: mixture", done, total),
    )
    # Expectation maximisation may have converged before the last iteration.
    execution.report(f"{name}: mixture", settings.iterations, settings.iterations)
    damping = settings.pooling_damping if settings.global_pooling == "generalised-max" else None
    stage = FisherStage(
        pca, settings.position_weight, mixture, weight=weight, unit_length=whiten, pooling_damping=damping
    ).to("cpu")
    return stage if settings.information == "closed-form" else _with_information(task, network, stage, level, name)


def _with_information(task: _Task, network: FisherNetwork, stage: FisherStage, level: Level, name: str) -> FisherStage:
    # The empirical information from Fisher vectors of some training images.
    execution = task.execution
    chosen = task.sample[:: -(-len(task.sample) // task.settings.information_images)]
    batches = task.images.batches(indices=chosen.tolist(), keys=task.folds.tolist())
    whole = _Whole(network, level, execution.device, stage)
    found = [rows for _, rows in execution.map(whole, task.images, batches, f"{name}: information")]
    return stage.with_empirical_information(torch.from_numpy(np.concatenate(found)))


def _fit_projection(task: _Task, network: FisherNetwork, level: int) -> Tensor:
    """Return W learned on global hard Fisher vectors, (F, h, 2 K D): see `learn_projection`."""
    settings, execution, learners = task.settings, task.execution, task.learners
    encoded = execution.rows(
        f"pooled-{level + 1}-{_digest(network)}",
        _Pool(network, level, execution.device),
        task.images,
        network.stages[level].num_outputs,
        indices=learners,
        keys=task.folds,
        stage=f"layer {level + 1}: projection",
    )
    projection = None
    if execution.processes.is_first:
        projection = learn_projection(
            as_rows(encoded.rows),
            torch.as_tensor(task.labels[learners]),
            torch.as_tensor(task.folds[learners]),
            kind=settings.projection,
            size=settings.projection_size,
            cost=settings.projection_cost,
            largest_gram=execution.largest_array,
            n_jobs=execution.n_jobs,
        )
    shared = execution.processes.share(projection)
    assert shared is not None
    return shared
