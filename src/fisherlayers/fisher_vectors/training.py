"""Greedy, layer by layer learning of a Deep Fisher Network; no back-propagation (Simonyan et al., NIPS 2013).

For each layer: PCA and mixture from a sample of the descriptors that reach it, then, if another layer follows, the
projection W from the globally pooled Fisher vectors of labelled images. Every pass streams the images; what is held are
samples, encodings, on disk where they are too large, and descriptors for the next pass, as far as memory allows.
`execution` says where all of it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.image_encodings import kept_name, network_digest
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.kept import Kept
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.passes import Draw, Pool, Whole
from fisherlayers.fisher_vectors.pca import fit_pca
from fisherlayers.fisher_vectors.persistence import network_from_tensors, network_tensors
from fisherlayers.fisher_vectors.projection import check_projection, learn_projection
from fisherlayers.fisher_vectors.rows import as_rows
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.stage import FisherStage, reduce_descriptors
from fisherlayers.fisher_vectors.streams import Stream

__all__ = ["fit_network"]

# More images than this add nothing to a sample of descriptors.
_SAMPLE_IMAGES = 4000
_GREY_DIMENSIONS = 28
# Descriptors that are reduced at a time: as many as stay in the cache.
_REDUCED_ROWS = 4096
# Added to the variances of patches that are whitened, as Coates, Lee and Ng do: their pixels have a variance of at most
# 1 after the normalisation for contrast, and directions of much less hold the noise of the camera.
_PATCH_FLOOR = 0.1


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
    kept: Kept

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
    execution = execution or Execution()
    # SIFT, colour and patches may take a third each. Descriptors on an accelerator are soon computed again.
    kept = Kept(execution.largest_array // 3 if execution.device == "cpu" else 0, folds)
    task = _Task(images, labels, settings, seed, execution, sample, learners, folds, kept)

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
        kind: Stream = "colour patches" if images.has_color else "grey patches"
        network = task.remember("patches", lambda: replace(others, patches=_fit_stage(task, others, kind)))
    if settings.information == "images":
        for stream in network.streams:
            if not kept.has_pooled(stream):  # its stage comes from the workspace
                _pooled(task, network, network.stage(stream), stream, _title(stream))
    execution.leave(kept_name(network, images), kept)
    return network, folds


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


def _title(stream: Stream) -> str:
    if isinstance(stream, str):
        return "colour" if stream == "colour" else "patches"
    return f"layer {stream + 1}"


def _fit_stage(task: _Task, network: FisherNetwork, stream: Stream) -> FisherStage:
    # PCA and mixture of a layer, or of the colour stream, from random descriptors of the sampled images.
    settings, execution, name = task.settings, task.execution, _title(stream)
    if stream == "colour":
        salt = settings.depth
        weight = settings.color_weight if task.images.has_color else settings.intensity_weight
        components, dimensions = settings.color_components, settings.color_dimensions
        if not task.images.has_color:
            # Three equal channels hold one channel's 16 means and 16 standard deviations.
            dimensions = min(dimensions, _GREY_DIMENSIONS)
    elif isinstance(stream, str):
        salt, weight = settings.depth + 1, settings.patch_weight
        components, dimensions = settings.patch_components, settings.patch_dimensions
    else:
        salt, weight = stream, settings.layer_weight if stream else 1.0
        components, dimensions = settings.components[stream], settings.dimensions[stream]
    per_image = -(-settings.training_descriptors // len(task.sample))
    draw = Draw(network, task.kept, execution.device, stream, (task.seed, salt), per_image)
    batches = task.images.batches(indices=task.sample.tolist(), keys=task.folds.tolist())
    drawn: dict[int, np.ndarray] = {}
    for batch, found in execution.map(draw, task.images, batches, f"{name}: descriptors"):
        drawn |= zip(batch.indices, found, strict=True)
    everything = torch.from_numpy(np.concatenate([drawn.pop(index) for index in sorted(drawn)])).to(execution.device)
    descriptors = everything[:, :-2]
    if len(descriptors) <= components:
        without = {
            "colour": "color=False" if task.images.has_color else "intensity_weight=0",
            "patches": "patch_side=0",
        }
        instead = f"leave the stream out ({without[name]})" if name in without else "ask for fewer components"
        raise ValueError(
            f"{name} has {components} components but the images give only {len(descriptors)} descriptors: {instead}, "
            "give more or larger images, or use smaller bin_sizes, step and windows"
        )
    whiten = name == "patches" and settings.patch_whitening
    pca = fit_pca(
        descriptors,
        min(dimensions, descriptors.shape[1]),
        whiten=whiten,
        floor=_PATCH_FLOOR if whiten else 0.0,
        total=execution.total,
    )

    def reduce(rows: Tensor) -> Tensor:
        return reduce_descriptors(pca, rows[:, :-2], rows[:, -2:], settings.position_weight, unit_length=whiten)

    reduced = execution.joined(reduce, torch.split(everything, _REDUCED_ROWS))
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
    return stage if settings.information == "closed-form" else _with_information(task, network, stage, stream, name)


def _with_information(
    task: _Task, network: FisherNetwork, stage: FisherStage, stream: Stream, name: str
) -> FisherStage:
    # The empirical information from Fisher vectors of some training images.
    return stage.with_empirical_information(_pooled(task, network, stage, stream, name))


def _pooled(task: _Task, network: FisherNetwork, stage: FisherStage, stream: Stream, name: str) -> Tensor:
    """Return Fisher vectors of the images that the information is taken from, and keep them for the encodings."""
    execution = task.execution
    chosen = task.sample[:: -(-len(task.sample) // task.settings.information_images)]

    def compute() -> dict[str, Tensor]:
        batches = task.images.batches(indices=chosen.tolist(), keys=task.folds.tolist())
        whole = Whole(network, task.kept, execution.device, stream, replace(stage, gains=None))
        found = list(execution.map(whole, task.images, batches, f"{name}: information"))
        indices = [index for batch, _ in found for index in batch.indices]
        return {"images": torch.tensor(indices), "rows": torch.from_numpy(np.concatenate([rows for _, rows in found]))}

    pooled = execution.remember(f"{name}: Fisher vectors", compute)
    task.kept.keep_pooled(stream, pooled["images"].tolist(), pooled["rows"])
    return pooled["rows"]


def _fit_projection(task: _Task, network: FisherNetwork, level: int) -> Tensor:
    """Return W learned on global hard Fisher vectors, (F, h, 2 K D): see `learn_projection`."""
    settings, execution, learners = task.settings, task.execution, task.learners
    encoded = execution.rows(
        f"pooled-{level + 1}-{network_digest(network)}",
        Pool(network, task.kept, execution.device, level),
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
