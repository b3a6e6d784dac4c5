"""Model folders: config.json and weights.safetensors, written all or nothing; loading runs no code.

`write_folder` and `read_folder` know files, `network_tensors` and `network_from_tensors` know the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from fisherlayers.fisher_vectors.color import LocalColorStatistics
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.sift import DenseSift
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.model_files import CONFIG, FORMAT, WEIGHTS, check_place, staged_weights, write_model_files

__all__ = [
    "ModelFolderError",
    "network_from_tensors",
    "network_tensors",
    "read_folder",
    "take",
    "write_folder",
]

_VERSION = 1
_SEAL = "config_sha256"
_FLOATS = (torch.float32, torch.float64)
_SIFT, _COLOR = DenseSift().num_features, LocalColorStatistics().num_features


class ModelFolderError(ValueError):
    """A folder that is no model of this library, or a damaged one; the message says what is wrong with it."""


def write_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    beside_others: bool = False,
) -> None:
    """Write a model folder, replacing a former one only once the new one is complete.

    Args:
        folder: Where; its parent must exist. A folder that exists must be empty or hold a model; other files beside it,
            such as a model card, stay.
        config: What JSON can hold.
        tensors: Name -> tensor.
        beside_others: As for `check_place`.

    Raises:
        OSError: If it cannot be written, for example because the disk is full, or ``folder`` exists and is no model
            folder (FileExistsError); nothing is left behind, and a former model is untouched.
    """
    target = Path(folder).resolve()  # a link stays one
    check_place(target, beside_others=beside_others)
    weights = tensor_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
    seal = {"format": FORMAT, "version": _VERSION, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    record = json.loads(json.dumps({**config, **seal}, allow_nan=False))
    text = json.dumps({**record, _SEAL: _checksum(record)}, indent=1) + "\n"
    staging: Path | None = None
    try:
        if target.exists():
            write_model_files(target, weights, text.encode())
        else:
            staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            staging.mkdir()
            write_model_files(staging, weights, text.encode())
            try:
                staging.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                check_place(target, beside_others=beside_others)  # made by another process in the meantime
                write_model_files(target, weights, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"cannot save to {target}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder and check that it is whole.

    Args:
        folder: Written by `write_folder`.

    Returns:
        The config and the tensors.

    Raises:
        ModelFolderError: If it is missing, of another format or version, or damaged.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ModelFolderError(f"{source} is no model folder: there is no such folder")
    text = _read(source / CONFIG)
    while True:
        config = _parsed(source, text)
        weights = _weights(source, config.get("weights_sha256"))
        if weights is not None:
            break
        before, text = text, _read(source / CONFIG)
        if text == before:
            raise ModelFolderError(f"{source} is damaged: {WEIGHTS} does not match its checksum in {CONFIG}")
        # A save has replaced the model in between.
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise ModelFolderError(f"{source} is damaged: cannot read {WEIGHTS}: {error}") from error
    return config, tensors


def _parsed(source: Path, text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{source} is damaged: {CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelFolderError(f"{source} is no model folder: {CONFIG} is not of format {FORMAT!r}")
    if config.get("version") != _VERSION:
        raise ModelFolderError(
            f"{source} has version {config.get('version')!r}, this release reads {_VERSION}: use the one that wrote it"
        )
    seal = config.pop(_SEAL, None)  # the first models had none
    if seal is not None and seal != _checksum(config):
        raise ModelFolderError(
            f"{source} is damaged: {CONFIG} does not match its checksum {_SEAL}: fetch it again, or remove that entry "
            "if the file was changed on purpose"
        )
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _weights(source: Path, checksum: object) -> bytes | None:
    for weights in staged_weights(source):
        if hashlib.sha256(weights).hexdigest() == checksum:
            return weights
    weights = _read(source / WEIGHTS)
    return weights if hashlib.sha256(weights).hexdigest() == checksum else None


def take(tensors: dict[str, Tensor], name: str, *shape: int | None, kind: Collection[torch.dtype] = _FLOATS) -> Tensor:
    """Take one tensor out of a loaded model and check it.

    Args:
        tensors: What is left of the model's tensors; the one taken is removed.
        name: Its name.
        *shape: Expected sizes; None for any but zero.
        kind: Of its numbers.

    Returns:
        The tensor.

    Raises:
        ModelFolderError: If it is missing, of another shape or kind, or not finite.
    """
    if name not in tensors:
        raise ModelFolderError(f"the model is damaged: {WEIGHTS} has no tensor {name!r}")
    tensor = tensors.pop(name)
    fits = tensor.ndim == len(shape) and all(
        found == size or (size is None and found > 0) for size, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = tuple("any" if size is None else size for size in shape)
        raise ModelFolderError(
            f"the model is damaged: tensor {name!r} has shape {tuple(tensor.shape)}, expected {expected}"
        )
    if tensor.dtype not in kind:
        expected_kind = " or ".join(str(dtype) for dtype in kind)
        raise ModelFolderError(f"the model is damaged: tensor {name!r} is {tensor.dtype}, expected {expected_kind}")
    if not bool(torch.isfinite(tensor).all()):
        raise ModelFolderError(f"the model is damaged: tensor {name!r} holds NaN or infinity")
    return tensor


def network_tensors(network: FisherNetwork) -> dict[str, Tensor]:
    """Name the tensors of a network.

    Args:
        network: Fitted.

    Returns:
        Name -> tensor; `network_from_tensors` is the inverse.
    """
    stages = {f"stage.{level}": stage for level, stage in enumerate(network.stages)}
    if network.color is not None:
        stages["stage.color"] = network.color
    if network.patches is not None:
        stages["stage.patches"] = network.patches
    tensors = {f"projection.{level}": projection for level, projection in enumerate(network.projections)}
    for name, stage in stages.items():
        mixture = stage.mixture
        tensors |= {f"{name}.pca.{part}": tensor for part, tensor in stage.components.to_tensors().items()}
        tensors |= {f"{name}.weights": mixture.weights, f"{name}.means": mixture.means}
        tensors |= {f"{name}.variances": mixture.variances, f"{name}.weight": torch.tensor(stage.weight)}
        if stage.gains is not None:
            tensors[f"{name}.gains"] = stage.gains
    return tensors


def network_from_tensors(
    settings: NetworkSettings, tensors: dict[str, Tensor], *, complete: bool = True
) -> FisherNetwork:
    """Rebuild a network, taking its tensors out of those of a model.

    Args:
        settings: Of the network.
        tensors: From `read_folder`; what remains is not the network's.
        complete: Whether all layers must be there; if not, those whose tensors are.

    Returns:
        The network; `ModelFolderError` is raised if a tensor is missing, misshapen, or has no meaning.
    """
    pooling_damping = settings.pooling_damping if settings.global_pooling == "generalised-max" else None

    def stage(name: str, *sizes: int, unit_length: bool = False) -> FisherStage:
        # sizes: of its descriptors, one of them
        basis = take(tensors, f"{name}.pca.basis", None, None)
        if len(basis) not in sizes:
            expected = " or ".join(map(str, sizes))
            raise ModelFolderError(
                f"the model is damaged: the PCA of {name!r} has {len(basis)} inputs, expected {expected}"
            )
        like = (basis.dtype,)
        pca = PrincipalComponents(
            take(tensors, f"{name}.pca.mean", basis.shape[0], kind=like),
            basis,
            take(tensors, f"{name}.pca.variances", basis.shape[1]),
            bool(take(tensors, f"{name}.pca.whiten", kind=(torch.bool,))),
        )
        weights = take(tensors, f"{name}.weights", None, kind=like)
        size = (len(weights), basis.shape[1] + (2 if settings.position_weight > 0 else 0))
        means, variances = (take(tensors, f"{name}.{part}", *size) for part in ("means", "variances"))
        try:
            mixture = DiagonalMixture(weights, means, variances)
        except (TypeError, ValueError) as error:
            raise ModelFolderError(f"the model is damaged: the mixture of {name!r}: {error}") from error
        has_gains = f"{name}.gains" in tensors
        gains = take(tensors, f"{name}.gains", 2 * means.numel(), kind=like) if has_gains else None
        weight = float(take(tensors, f"{name}.weight"))
        return FisherStage(pca, settings.position_weight, mixture, gains, weight, unit_length, pooling_damping)

    depth = settings.depth if complete else sum(f"stage.{level}.weights" in tensors for level in range(settings.depth))
    stages: list[FisherStage] = []
    projections: list[Tensor] = []
    for level in range(depth):
        windows = (4 if settings.stacking else 1) * projections[-1].shape[1] if projections else _SIFT
        stages.append(stage(f"stage.{level}", windows))
        if level < settings.depth - 1 and (complete or f"projection.{level}" in tensors):
            like = (stages[-1].mixture.means.dtype,)
            projections.append(take(tensors, f"projection.{level}", None, None, stages[-1].num_outputs, kind=like))
    color = stage("stage.color", _COLOR) if "stage.color.weights" in tensors else None
    area = settings.patch_side**2
    has_patches = "stage.patches.weights" in tensors
    patches = stage("stage.patches", area, 3 * area, unit_length=settings.patch_whitening) if has_patches else None
    return FisherNetwork(settings, tuple(stages), tuple(projections), color, patches)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise ModelFolderError(f"{path.parent} is no model folder: {path.name} is no regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path.parent} is no model folder: cannot read {path.name}: {error.strerror}"
        raise ModelFolderError(message) from error
