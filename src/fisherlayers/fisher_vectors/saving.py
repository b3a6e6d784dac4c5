"""Fitted classifiers in model folders: what of an estimator is written, and how it comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.parallel import on_cpu
from fisherlayers.fisher_vectors.persistence import (
    ModelFolderError,
    network_from_tensors,
    network_tensors,
    read_folder,
    take,
    write_folder,
)
from fisherlayers.fisher_vectors.setting_values import as_number, as_switch
from fisherlayers.fisher_vectors.settings import NetworkSettings

__all__ = ["Saving"]

# Folders and devices are a machine's own, and no model names those of another.
_THIS_MACHINE = {"workspace": None, "device": "cpu"}
_ENTRIES = {"format", "version", "weights_sha256", "model", "parameters", "settings"}
_ENTRIES |= {"classes", "class_type", "multilabel", "C", "temperature"}
# Bytes: a dtype of text says how many every entry takes.
_MOST_CLASSES = 2**30


class Saving:
    """Methods of `DeepFisherNetwork` that write and read model folders."""

    classes_: np.ndarray
    multilabel_: bool
    settings_: NetworkSettings
    network_: FisherNetwork
    coef_: np.ndarray
    intercept_: np.ndarray
    C_: float
    temperature_: float
    class_weight: Any
    get_params: Any

    @property
    def _has_two_classes(self) -> bool:
        # Then a single row of coefficients serves both.
        return len(self.classes_) == 2 and not self.multilabel_

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to a folder: config.json and weights.safetensors, all or nothing.

        Args:
            folder: Created; a model that is there is replaced once the new one is complete, the folder itself and other
                files in it stay. A folder with anything but a model is left alone (FileExistsError).
        """
        write_folder(folder, *self._contents())

    @on_cpu
    def _contents(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        # What `write_folder` writes.
        check_is_fitted(self)
        parameters = {name: _plain(value) for name, value in self.get_params().items()}
        parameters |= _THIS_MACHINE
        config = {
            "model": type(self).__name__,
            "parameters": parameters,
            "settings": self.settings_.to_config(),
            "classes": _as_json(self.classes_),
            "class_type": self.classes_.dtype.str,
            "multilabel": self.multilabel_,
            "C": self.C_,
            "temperature": self.temperature_,
        }
        tensors = network_tensors(self.network_)
        tensors |= {"svm.coef": torch.as_tensor(self.coef_), "svm.intercept": torch.as_tensor(self.intercept_)}
        return config, tensors

    @classmethod
    @on_cpu
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a classifier that `save` wrote. No code of the folder is run.

        Args:
            folder: Of the model.

        Returns:
            The fitted classifier, with the same scores bit for bit.

        Raises:
            ModelFolderError: If the folder is no model of this class and version, or damaged.
        """
        config, tensors = read_folder(folder)
        if config.get("model") != cls.__name__:
            raise ModelFolderError(f"{folder} holds a {config.get('model')!r}, expected a {cls.__name__!r}")
        if unknown := set(config) - _ENTRIES:
            raise ModelFolderError(f"{folder} is damaged: config.json: unknown entries {sorted(unknown)}")
        try:
            model = cls(**{**config["parameters"], **_THIS_MACHINE})
            model.settings_ = NetworkSettings.from_config(config["settings"])
            model.classes_ = _classes(config["classes"], config["class_type"])
            model.multilabel_ = as_switch("multilabel", config.get("multilabel", False))
            model.C_, model.temperature_ = (_positive(name, config[name]) for name in ("C", "temperature"))
            if isinstance(model.class_weight, Mapping):
                # The keys of a JSON object are text.
                labels = {str(label): label for label in model.classes_.tolist()}
                model.class_weight = {labels.get(name, name): weight for name, weight in model.class_weight.items()}
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ModelFolderError(f"{folder} is damaged: config.json: {error!r}") from error
        model.network_ = network_from_tensors(model.settings_, tensors)
        rows = 1 if model._has_two_classes else len(model.classes_)
        model.coef_ = take(tensors, "svm.coef", rows, model.network_.num_features).numpy()
        model.intercept_ = take(tensors, "svm.intercept", rows).numpy()
        if tensors:
            raise ModelFolderError(f"{folder} is damaged: unknown tensors {sorted(tensors)}")
        return model


def _as_json(classes: np.ndarray) -> Any:
    # JSON has no dates.
    return (classes.astype(str) if classes.dtype.kind == "M" else classes).tolist()


def _classes(entries: Any, kind: Any) -> np.ndarray:
    if not isinstance(entries, list) or not all(isinstance(entry, str | int | float) for entry in entries):
        raise ValueError("classes must be a list of texts or numbers")
    if not isinstance(kind, str):
        raise ValueError(f"class_type must be the name of a dtype, got {kind!r}")
    dtype = np.dtype(kind)
    if dtype.itemsize * len(entries) > _MOST_CLASSES:
        raise ValueError(f"class_type {kind!r} needs {dtype.itemsize} bytes for each of {len(entries)} classes")
    classes = np.array(entries, dtype=dtype)
    # Not so where a text is longer than its type, or a number of another.
    if _as_json(classes) != entries or len(set(entries)) != len(entries):
        raise ValueError(f"classes must be different, and of class_type {kind!r}")
    return classes


def _positive(name: str, value: Any) -> float:
    number = float(as_number(name, value))
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number


def _plain(value: Any) -> Any:
    """Return a parameter as JSON can hold it; a live random generator is not kept."""
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, np.random.RandomState) else value
