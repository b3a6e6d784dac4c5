"""Model folders: config.json and weights.safetensors, written all or nothing; loading runs no code.

`write_folder` and `read_folder` know files, `network_tensors` and `network_from_tensors` know the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.fisher_vectors.settings import NetworkSettings
from fisherlayers.fisher_vectors.stage import FisherStage

__all__ = [
    "ModelFolderError",
    "check_place",
    "network_from_tensors",
    "network_tensors",
    "read_folder",
    "take",
    "write_folder",
]

_CONFIG = "config.json"
_WEIGHTS = "weights.safetensors"
_FORMAT = "fisherlayers"
_VERSION = 1


class ModelFolderError(ValueError):
    """A folder that is no model of this library, or a damaged one; the message says what is wrong with it."""


def write_folder(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model folder, replacing a former one only once the new one is complete.

    Args:
        folder: Where; its parent must exist. A folder that exists must hold a model; other files beside it, such as a
            model card, stay.
        config: What JSON can hold.
        tensors: Name -> tensor.

    Raises:
        OSError: If it cannot be written, for example because the disk is full, or ``folder`` exists and is no model
            folder (FileExistsError); nothing is left behind, and a former model is untouched.
    """
    target = Path(folder).resolve()  # a link stays one
    check_place(target)
    weights = tensor_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
    seal = {"format": _FORMAT, "version": _VERSION, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    record = {**config, **seal}
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
        staging.chmod(0o755)
        _write(staging / _WEIGHTS, weights)
        _write(staging / _CONFIG, text.encode())
        _replace(staging, target)
    except OSError as error:
        raise OSError(error.errno, f"cannot save the model to {target}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def check_place(folder: str | os.PathLike[str]) -> None:
    """Refuse a place that holds anything but a model of this library.

    Args:
        folder: Where a model is to be written.

    Raises:
        FileExistsError: If it exists, and is neither an empty folder nor such a model.
    """
    target = Path(folder)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        ours = json.loads((target / _CONFIG).read_bytes()).get("format") == _FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{target} exists and is no model folder of fisherlayers: it will not be replaced")


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
    parts = {}
    for name in (_CONFIG, _WEIGHTS):
        try:
            parts[name] = (source / name).read_bytes()
        except OSError as error:
            raise ModelFolderError(f"{source} is no model folder: cannot read {name}: {error.strerror}") from error
    try:
        config = json.loads(parts[_CONFIG])
    except ValueError as error:
        raise ModelFolderError(f"{source} is damaged: {_CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ModelFolderError(f"{source} is no model folder: {_CONFIG} is not of format {_FORMAT!r}")
    if config.get("version") != _VERSION:
        raise ModelFolderError(
            f"{source} has version {config.get('version')!r}, this release reads {_VERSION}: use the one that wrote it"
        )
    if hashlib.sha256(parts[_WEIGHTS]).hexdigest() != config.get("weights_sha256"):
        raise ModelFolderError(f"{source} is damaged: {_WEIGHTS} does not match its checksum in {_CONFIG}")
    try:
        tensors = load_tensors(parts[_WEIGHTS])
    except SafetensorError as error:
        raise ModelFolderError(f"{source} is damaged: cannot read {_WEIGHTS}: {error}") from error
    return config, tensors


def take(tensors: dict[str, Tensor], name: str, *shape: int | None) -> Tensor:
    """Take one tensor out of a loaded model and check it.

    Args:
        tensors: What is left of the model's tensors; the one taken is removed.
        name: Its name.
        *shape: Expected sizes; None for any.

    Returns:
        The tensor.

    Raises:
        ModelFolderError: If it is missing, of another shape, or not finite.
    """
    if name not in tensors:
        raise ModelFolderError(f"the model is damaged: {_WEIGHTS} has no tensor {name!r}")
    tensor = tensors.pop(name)
    fits = tensor.ndim == len(shape) and all(
        size in {None, found} for size, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = tuple("any" if size is None else size for size in shape)
        raise ModelFolderError(
            f"the model is damaged: tensor {name!r} has shape {tuple(tensor.shape)}, expected {expected}"
        )
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

    def stage(name: str, *, unit_length: bool = False) -> FisherStage:
        basis = take(tensors, f"{name}.pca.basis", None, None)
        pca = PrincipalComponents(
            take(tensors, f"{name}.pca.mean", basis.shape[0]),
            basis,
            take(tensors, f"{name}.pca.variances", basis.shape[1]),
            bool(take(tensors, f"{name}.pca.whiten")),
        )
        weights = take(tensors, f"{name}.weights", None)
        size = (len(weights), basis.shape[1] + (2 if settings.position_weight > 0 else 0))
        means, variances = (take(tensors, f"{name}.{part}", *size) for part in ("means", "variances"))
        try:
            mixture = DiagonalMixture(weights, means, variances)
        except (TypeError, ValueError) as error:
            raise ModelFolderError(f"the model is damaged: the mixture of {name!r}: {error}") from error
        gains = take(tensors, f"{name}.gains", 2 * means.numel()) if f"{name}.gains" in tensors else None
        weight = float(take(tensors, f"{name}.weight"))
        return FisherStage(pca, settings.position_weight, mixture, gains, weight, unit_length, pooling_damping)

    def levels(name: str, number: int) -> range:
        return range(number if complete else sum(name.format(level) in tensors for level in range(number)))

    stages = tuple(stage(f"stage.{level}") for level in levels("stage.{}.weights", settings.depth))
    projections = tuple(
        take(tensors, f"projection.{level}", None, None, stages[level].num_outputs)
        for level in levels("projection.{}", settings.depth - 1)
    )
    color = stage("stage.color") if "stage.color.weights" in tensors else None
    has_patches = "stage.patches.weights" in tensors
    patches = stage("stage.patches", unit_length=settings.patch_whitening) if has_patches else None
    return FisherNetwork(settings, stages, projections, color, patches)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(staging: Path, target: Path) -> None:
    # An older folder comes back if the new one cannot take its place.
    if not target.exists():
        staging.rename(target)
        return
    former = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    try:
        target.replace(former)
    except OSError:
        former.rmdir()
        raise
    try:
        staging.rename(target)
    except OSError:
        former.replace(target)
        raise
    for entry in list(former.iterdir()):
        if entry.name not in {_CONFIG, _WEIGHTS}:
            entry.rename(target / entry.name)
    shutil.rmtree(former, ignore_errors=True)
