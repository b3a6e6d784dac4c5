"""Model folders on the Hugging Face hub: `save_pretrained`, `from_pretrained` and `push_to_hub`, with a model card.

The folder is the one of `DeepFisherNetwork.save` (config.json and weights.safetensors, checked, no code, no pickle) and
a card. huggingface_hub's own mixin does the work, on a carrier beside the estimator, whose class stays scikit-learn's.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from fisherlayers.files import write_file
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.persistence import write_folder
from fisherlayers.fisher_vectors.settings import NetworkSettings

__all__ = ["HubMethods", "model_card"]

_FILES = ["config.json", "weights.safetensors"]
_CARD = "README.md"
_MOST_CLASSES = 50


class HubMethods:
    """Methods of `DeepFisherNetwork` that speak to the hub; they need the extra ``hub``."""

    classes_: np.ndarray
    settings_: NetworkSettings
    network_: FisherNetwork
    _contents: Any

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_options: Any,
    ) -> str | None:
        """Write the fitted classifier and a model card to a folder, and perhaps to the hub.

        Args:
            save_directory: Made if need be. A card that is there is kept; the files of another model are not
                overwritten (FileExistsError).
            repo_id: Of the hub, such as ``"name/model"``; the folder's name if None.
            push_to_hub: Whether the model is uploaded.
            model_card_kwargs: Of `model_card`.
            **push_to_hub_options: As for `push_to_hub`.

        Returns:
            The address of the upload, or None without one.
        """
        carrier, folder = _carrier_class()(self), Path(save_directory)
        folder.parent.mkdir(parents=True, exist_ok=True)  # the folder itself comes with the model in it, or not at all
        # Not by the mixin, which begins by removing the config of the model that is there.
        write_folder(folder, *self._contents(), beside_others=True)
        if not (folder / _CARD).exists():
            write_file(folder / _CARD, str(carrier.generate_model_card(**(model_card_kwargs or {}))))
        if not push_to_hub:
            return None
        return self.push_to_hub(
            folder.name if repo_id is None else repo_id, model_card_kwargs=model_card_kwargs, **push_to_hub_options
        )

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the fitted classifier and a model card.

        Args:
            repo_id: Such as ``"name/model"``; made if need be.
            **options: Of huggingface_hub's ``ModelHubMixin.push_to_hub``: ``commit_message``, ``private``, ``token``,
                ``branch``, ``create_pr`` and others.

        Returns:
            The address of the upload.
        """
        return _carrier_class()(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Read a classifier from the hub or from a folder. No code of it is run.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository of the hub.
            **options: Of huggingface_hub's ``ModelHubMixin.from_pretrained``: ``revision``, ``token``, ``cache_dir``,
                ``local_files_only``, ``force_download``.

        Returns:
            The fitted classifier, with the same scores bit for bit.
        """
        carrier = _carrier_class().from_pretrained(os.fspath(pretrained_model_name_or_path), model_class=cls, **options)
        return carrier.model


def model_card(model: Any, *, name: str = "model") -> str:
    """Describe a fitted classifier for the people who find it.

    Args:
        model: A fitted `DeepFisherNetwork`.
        name: Of the repository, for the example.

    Returns:
        Markdown with the hub's metadata.
    """
    settings, classes = model.settings_, [str(label) for label in model.classes_.tolist()]
    shown = ", ".join(classes[:_MOST_CLASSES]) + (", ..." if len(classes) > _MOST_CLASSES else "")
    streams = ["dense SIFT"]
    streams += ["local colour statistics"] if model.network_.color is not None else []
    streams += ["raw patches"] if model.network_.patches is not None else []
    return f"""---
library_name: fisherlayers
pipeline_tag: image-classification
tags:
- image-classification
- fisher-vector
- deep-fisher-network
---

# Deep Fisher Network, {len(classes)} classes

An image classifier without back-propagation or pretrained weights (Simonyan, Vedaldi and Zisserman, NIPS 2013), made by
`fisherlayers`.

```python
from fisherlayers import DeepFisherNetwork

model = DeepFisherNetwork.from_pretrained("{name}")
model.predict(["photo.jpg"])
```

- Classes: {shown}
- Fisher layers: {settings.depth}, mixtures of {", ".join(map(str, settings.components))} components
- Descriptors: {", ".join(streams)}
- Encoding: {model.network_.num_features:,} numbers an image; linear SVM with C = {model.C_:g}

Training data, accuracy on held-out images, intended use and limits: to be filled in by who trained it.
"""


@cache
def _carrier_class() -> Any:
    try:
        from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
    except ImportError as error:
        raise ImportError(f"the hub needs huggingface_hub ({error}): pip install 'fisherlayers[hub]'") from error

    class Carrier(ModelHubMixin, library_name="fisherlayers"):
        """Brings a model to the hub's functions and back."""

        def __init__(self, model: Any) -> None:
            self.model = model

        def _save_pretrained(self, save_directory: Path) -> None:
            self.model.save(save_directory)

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **model_kwargs: Any,
        ) -> Carrier:
            folder = model_id
            if not Path(model_id).is_dir():
                folder = snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=_FILES,
                )
            return cls(model_kwargs["model_class"].load(folder))

        def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
            return ModelCard(model_card(self.model, **kwargs))

        def push_to_hub(self, repo_id: str, **options: Any) -> str:
            # The card's example names the repository.
            card = {"name": repo_id, **(options.pop("model_card_kwargs", None) or {})}
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    return Carrier
