"""A fitted Deep Fisher Network as a PyTorch module: images in, scores out, every part of it trainable.

The functions are those of `fisherlayers.fisher_vectors.network`; only the tensors that they read are parameters here.
PCA and the classifier are `torch.nn.Linear` layers, so that optimizers which look for linear layers find them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from fisherlayers.fisher_vectors.descriptors import rescale_to_max_pixels
from fisherlayers.fisher_vectors.differentiable.mixture import TrainableMixture
from fisherlayers.fisher_vectors.encoding import append_positions
from fisherlayers.fisher_vectors.network import FisherNetwork
from fisherlayers.fisher_vectors.normalization import l2_normalize
from fisherlayers.fisher_vectors.pca import PrincipalComponents
from fisherlayers.fisher_vectors.stage import FisherStage
from fisherlayers.precision import full_precision

__all__ = ["FisherNetworkModule"]

_PRECISIONS = {torch.float32, torch.float64}


@dataclass(frozen=True, kw_only=True)
class _LiveStage(FisherStage):
    """A stage whose PCA is a linear layer."""

    reduction: nn.Linear

    def reduce(self, descriptors: Tensor, positions: Tensor) -> Tensor:
        reduced = self.reduction(descriptors)
        if self.unit_length:
            reduced = l2_normalize(reduced)
        return append_positions(reduced, positions, weight=self.position_weight) if self.position_weight else reduced


class _StageModule(nn.Module):
    """PCA as a linear layer, and a trainable mixture."""

    def __init__(self, stage: FisherStage, dtype: torch.dtype) -> None:
        super().__init__()
        pca = stage.components
        basis = pca.basis.double() * pca.gains().double()
        self.reduction = _linear(basis.mT, -(pca.mean.double() @ basis), dtype)
        self.mixture = TrainableMixture.of(stage.mixture.to(dtype))
        self.constants = [field.name for field in fields(stage) if isinstance(getattr(stage, field.name), Tensor)]
        for name in self.constants:
            self.register_buffer(name, getattr(stage, name).to(dtype, copy=True))

    def live(self, fitted: FisherStage) -> FisherStage:
        """Return the stage as functions of the parameters; all else is as it was fitted."""
        entries = {field.name: getattr(fitted, field.name) for field in fields(fitted)}
        entries |= {name: getattr(self, name) for name in self.constants}
        return _LiveStage(**(entries | {"mixture": self.mixture(), "reduction": self.reduction}))

    def frozen(self, fitted: FisherStage) -> FisherStage:
        """Return the stage as plain tensors, in the dtype in which it was fitted."""
        dtype = fitted.mixture.means.dtype
        # The affine map x -> W x + b, with the mean of smallest norm for which W (x - mean) is the same.
        weight, bias = self.reduction.weight.detach().double(), self.reduction.bias.detach().double()
        mean = -torch.linalg.lstsq(weight, bias.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        pca = PrincipalComponents(mean.to(dtype), weight.mT.to(dtype).contiguous(), fitted.components.variances)
        return replace(fitted, components=pca, mixture=self.mixture.frozen().to(dtype))


class FisherNetworkModule(nn.Module):
    """The whole classifier as a module; `DeepFisherNetwork.to_module` makes it.

    PCA, mixtures, projections and classifier are parameters. SIFT, colour statistics, pooling, stacking and
    normalisations have none; gradients flow through them to the images. The semi-local layer assigns each descriptor to
    its most probable component: the choice itself has no gradient. Images of other sizes than the training images' may
    be given, as to the estimator.

    Args:
        network: Fitted, with ``global_pooling="mean"``; is copied.
        coef: w of the classifier, (C, features), or (1, features) for two classes.
        intercept: b, (C,) or (1,).
        temperature: Factor of the scores whose softmax are the class probabilities; the loss to fine-tune is the
            cross-entropy of ``temperature * scores``.
        dtype: Of parameters and arithmetic, also under autocast: torch.float32 or torch.float64.

    Raises:
        ValueError: If ``dtype`` is another.

    Attributes:
        stages: PCA (``reduction``) and mixture of each layer.
        projections: W of each semi-local layer, (h, 2 K D).
        color: The colour stage, or None.
        patches: The stage of raw patches, or None.
        classifier: The linear SVM.
    """

    temperature: Tensor

    def __init__(
        self,
        network: FisherNetwork,
        coef: Tensor,
        intercept: Tensor,
        *,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        network.check_mean_pooling("a module")
        if dtype not in _PRECISIONS:
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        super().__init__()
        self._fitted = network
        self.stages = nn.ModuleList(_StageModule(stage, dtype) for stage in network.stages)
        self.projections = nn.ParameterList(projection[-1].to(dtype, copy=True) for projection in network.projections)
        self.color = None if network.color is None else _StageModule(network.color, dtype)
        self.patches = None if network.patches is None else _StageModule(network.patches, dtype)
        self.classifier = _linear(coef, intercept, dtype)
        self.register_buffer("temperature", torch.tensor(temperature, dtype=dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: (B, C, H, W) or (B, H, W), grey or RGB: bytes, or floats in [0, 1].

        Returns:
            (B, C) as `DeepFisherNetwork.decision_function`, or (B,) for two classes.
        """
        encodings = self.encode(images)
        with full_precision(encodings):
            scores: Tensor = self.classifier(encodings)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def encode(self, images: Tensor) -> Tensor:
        """Compute the descriptor that the classifier sees.

        Args:
            images: As for `forward`.

        Returns:
            (B, features).
        """
        with full_precision(images):
            return self.live().encode(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Resample images as the estimator does.

        Args:
            images: As for `forward`.

        Returns:
            (B, C, H', W') in [0, 1], enlarged, reduced and padded as the settings say.

        Raises:
            ValueError: If the module was converted to another dtype than it can work in.
        """
        settings, dtype = self._fitted.settings, self.temperature.dtype
        if dtype not in _PRECISIONS:
            raise ValueError(f"the module works in torch.float32 or torch.float64 and was converted to {dtype}")
        if images.ndim == 3:
            images = images.unsqueeze(1)
        if settings.upsample > 1:
            images = interpolate(images, scale_factor=settings.upsample, mode="bilinear", align_corners=False)
        images = rescale_to_max_pixels(images, settings.max_pixels)
        images = images.to(dtype) / (255 if images.dtype == torch.uint8 else 1)
        return pad(images, (settings.padding,) * 4, mode="replicate") if settings.padding else images

    def network(self) -> FisherNetwork:
        """Return what the module has learned as a network of plain tensors.

        Returns:
            Of the estimator's kind, in the dtype in which it was fitted, with the same encodings up to rounding.
        """
        fitted = self._fitted
        return replace(
            fitted,
            stages=tuple(module.frozen(stage) for module, stage in self._pairs()),
            projections=tuple(
                projection.detach().to(old.dtype).unsqueeze(0).clone()
                for projection, old in zip(self.projections, fitted.projections, strict=True)
            ),
            color=None if fitted.color is None or self.color is None else self.color.frozen(fitted.color),
            patches=None if fitted.patches is None or self.patches is None else self.patches.frozen(fitted.patches),
        )

    def live(self) -> FisherNetwork:
        """Return the network as functions of the parameters, to which gradients flow.

        Returns:
            Of the estimator's kind.
        """
        fitted = self._fitted
        return replace(
            fitted,
            stages=tuple(module.live(stage) for module, stage in self._pairs()),
            projections=tuple(projection.unsqueeze(0) for projection in self.projections),
            color=None if fitted.color is None or self.color is None else self.color.live(fitted.color),
            patches=None if fitted.patches is None or self.patches is None else self.patches.live(fitted.patches),
        )

    def _pairs(self) -> list[tuple[_StageModule, FisherStage]]:
        modules = [module for module in self.stages if isinstance(module, _StageModule)]
        return list(zip(modules, self._fitted.stages, strict=True))


def _linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
