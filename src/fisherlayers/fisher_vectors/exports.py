"""What a fitted classifier can be turned into: a PyTorch module, an exported program, an ONNX file, evidence maps."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from fisherlayers.fisher_vectors.differentiable.network import FisherNetworkModule
from fisherlayers.fisher_vectors.evidence import evidence_maps
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import on_cpu
from fisherlayers.fisher_vectors.persistence import network_tensors
from fisherlayers.fisher_vectors.setting_values import as_whole_number

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Exports"]

_OPSET = 20


class Exports:
    """Methods of `DeepFisherNetwork` that make something else of it."""

    classes_: np.ndarray
    network_: FisherNetwork
    coef_: np.ndarray
    intercept_: np.ndarray
    temperature_: float

    @on_cpu
    def to_module(self, *, dtype: torch.dtype = torch.float32) -> FisherNetworkModule:
        """Return the fitted classifier as a PyTorch module, images in, scores out, to be trained further.

        Like the exports and evidence maps, it needs ``global_pooling="mean"`` and says so in a ValueError.

        Args:
            dtype: Of its parameters and arithmetic.

        Returns:
            A module with the scores of `decision_function`, independent of this classifier.
        """
        check_is_fitted(self)
        coef, intercept = torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_)
        return FisherNetworkModule(self.network_, coef, intercept, temperature=self.temperature_, dtype=dtype)

    def update_from(self, module: FisherNetworkModule) -> None:
        """Take over what a module has learned; the classifier then scores, saves and explains as the module.

        Args:
            module: From `to_module` of this classifier; reconstructed or not.

        Raises:
            TypeError: If it is no such module.
            ValueError: If the module is not of this classifier's sizes.
        """
        check_is_fitted(self)
        if not isinstance(module, FisherNetworkModule):
            raise TypeError(f"module must come from to_module of this classifier, got a {type(module).__name__}")
        coef, network = module.classifier.weight.detach().cpu().float().numpy(), module.network()
        if coef.shape != self.coef_.shape:
            raise ValueError(
                f"module has a classifier of shape {coef.shape}, expected {self.coef_.shape}: take it from to_module"
            )
        found, own = _shapes(network), _shapes(self.network_)
        if found != own:
            other = sorted(name for name in found.keys() | own.keys() if found.get(name) != own.get(name))
            raise ValueError(f"module is of another network ({', '.join(other[:3])}): take it from to_module")
        self.network_ = network
        self.coef_ = coef.copy()
        self.intercept_ = module.classifier.bias.detach().cpu().float().numpy().copy()
        self.temperature_ = float(module.temperature)

    @on_cpu
    def evidence(self, images: Any, label: Any = None, *, stabilizer: float = 1.0) -> list[np.ndarray]:
        """Map where in each image the score of a class comes from.

        The sum of a map, plus the class's entry of ``intercept_``, is the score of `decision_function` (of two classes,
        a map for ``classes_[0]`` adds up to the negative). `fisherlayers.fisher_vectors.evidence` says how.

        Args:
            images: As for `fit`.
            label: A class, for all images; or one an image, as an array or a list; None for the class of the highest
                score.
            stabilizer: Pooled entries below so many of their standard errors are shared out by posteriors, which
                keeps noise from being blown up; 0 shares everything out by contributions.

        Returns:
            For each image (H, W) in float64, of its own size: positive where the image speaks for the class.

        Raises:
            ValueError: If a label is unknown, there is not one an image, or ``stabilizer`` is negative.
        """
        check_is_fitted(self)
        self.network_.check_mean_pooling("an evidence map")
        if not stabilizer >= 0:
            raise ValueError(f"stabilizer must be at least 0 standard errors, got {stabilizer}")
        with torch.inference_mode(mode=False), torch.enable_grad():
            return self._evidence(images, label, stabilizer)

    def _evidence(self, images: Any, label: Any, stabilizer: float) -> list[np.ndarray]:
        originals = ImageList(images)
        module = self.to_module(dtype=torch.float64).requires_grad_(False)
        network, settings = module.live(), self.network_.settings
        prepared = originals.prepared(
            max_pixels=settings.max_pixels, upsample=settings.upsample, padding=settings.padding
        )
        wanted = None if label is None else self._positions(label, len(originals))
        maps: list[np.ndarray] = [np.empty(0)] * len(originals)
        for batch in prepared.batches():
            pixels = prepared.load(batch).double()
            if wanted is None:
                scores = module.classifier(network.encode(pixels))
                scores = torch.cat([-scores, scores], dim=1) if scores.shape[1] == 1 else scores
                positions = scores.argmax(dim=1)
            else:
                positions = torch.as_tensor(wanted[list(batch.indices)])
            rows = module.classifier.weight
            rows = torch.cat([-rows, rows]) if len(rows) == 1 else rows
            found = evidence_maps(network, rows[positions], pixels, stabilizer=stabilizer)
            height, width = originals.shapes[batch.indices[0]][1:]
            # The adjoint of resampling and padding, which are averages of pixels.
            blank = torch.zeros(len(found), 1, height, width, dtype=torch.float64, requires_grad=True)
            (spread,) = torch.autograd.grad(module.prepare(blank), blank, found.unsqueeze(1))
            for index, evidence in zip(batch.indices, spread[:, 0].numpy(), strict=True):
                maps[index] = evidence
        return maps

    def _positions(self, label: Any, count: int) -> np.ndarray:
        labels = np.asarray(label)
        if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != count):
            raise ValueError(f"label must be one class, or one for each of {count} images, got shape {labels.shape}")
        labels = np.broadcast_to(labels, count)
        known = {value: position for position, value in enumerate(self.classes_.tolist())}
        if unknown := sorted({str(value) for value in labels.tolist() if value not in known}):
            raise ValueError(f"label must be one of the classes {list(known)}, got {', '.join(unknown)}")
        return np.array([known[value] for value in labels.tolist()])

    @on_cpu
    def export_program(self, image_size: tuple[int, int], *, channels: int | None = None) -> ExportedProgram:
        """Export the whole classifier by `torch.export`, for batches of any size of images of one size.

        Args:
            image_size: (H, W) in pixels.
            channels: 1 or 3; as many as the network uses if None.

        Returns:
            A program of floats in [0, 1], (B, channels, H, W), to the scores of `decision_function`.

        Raises:
            ValueError: If the images have too many pixels, or ``channels`` is neither 1 nor 3.
        """
        check_is_fitted(self)
        self.network_.check_mean_pooling("an export")
        settings = self.network_.settings
        channels = channels if channels is not None else 3 if self.network_.has_color else 1
        if channels not in {1, 3}:
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if not isinstance(image_size, Sequence) or len(image_size) != 2:
            raise ValueError(f"image_size must be (height, width) in pixels, got {image_size!r}")
        height, width = (as_whole_number("image_size", side) for side in image_size)
        if not (height >= 1 and width >= 1 and height * width * settings.upsample**2 <= settings.max_pixels):
            raise ValueError(
                f"image_size must have 1 to {settings.max_pixels // settings.upsample**2} pixels (max_pixels), got "
                f"{height} x {width}: reduce images before the exported program, which resamples no large ones"
            )
        module = self.to_module().eval().requires_grad_(False)
        example = torch.zeros(2, channels, height, width)
        batch = torch.export.Dim("batch")
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))

    def export_onnx(
        self, path: str | os.PathLike[str], image_size: tuple[int, int], *, channels: int | None = None
    ) -> None:
        """Write the whole classifier as an ONNX model, image in, scores out, with a batch of any size.

        Its input ``images`` are floats in [0, 1], (batch, channels, H, W); its output ``scores`` are those of
        `decision_function`. The metadata hold ``classes`` (a JSON list, in the order of the scores) and ``temperature``
        (the factor of the scores whose softmax are the probabilities). Images that the network resamples give the
        scores of images given to it as floats; from bytes it rounds in between.

        Args:
            path: Of the file.
            image_size: (H, W) in pixels.
            channels: 1 or 3; as many as the network uses if None.

        Raises:
            FileNotFoundError: If the folder of the file does not exist.
            OSError: If it cannot be written, for example because the disk is full; a former file is untouched.
            ImportError: If the extra ``onnx`` is not installed.
        """
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"cannot write {os.fspath(path)}: its folder does not exist")
        try:
            import onnx  # noqa: F401  (only whether it is installed)
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(f"the export needs ONNX ({error}): python -m pip install 'fisherlayers[onnx]'") from error
        program = self.export_program(image_size, channels=channels)
        with warnings.catch_warnings():
            # The exporter's own use of what torch deprecates.
            warnings.simplefilter("ignore")
            model: Any = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=["scores"],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        model.model.metadata_props["classes"] = json.dumps(self.classes_.tolist())
        model.model.metadata_props["temperature"] = repr(self.temperature_)
        try:
            _save_whole(model, Path(path).resolve())
        except OSError as error:
            raise OSError(error.errno, f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def _save_whole(model: Any, target: Path) -> None:
    # The tensors of a large model go to a file of their own beside it.
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        staged = Path(folder) / target.name
        model.save(os.fspath(staged))
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == staged):
            place = target.with_name(file.name)
            if place.exists():
                file.chmod(stat.S_IMODE(place.stat().st_mode))
            file.replace(place)


def _shapes(network: FisherNetwork) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network_tensors(network).items()}
