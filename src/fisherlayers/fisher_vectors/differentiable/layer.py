"""The Fisher vector as a PyTorch layer: differentiable in the descriptors and in the mixture."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from fisherlayers.fisher_vectors.differentiable.mixture import TrainableMixture
from fisherlayers.fisher_vectors.encoding import append_positions, fisher_vectors
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power
from fisherlayers.precision import full_precision

__all__ = ["FisherVectorLayer"]


class FisherVectorLayer(nn.Module):
    """Encode sets of descriptors, or feature maps, by the improved Fisher vector of a trainable mixture.

    The encoding is the one of `fisherlayers.fisher_vectors.encoding` (Perronnin, Sanchez and Mensink, ECCV 2010), the
    normalisations those of `normalization`: signed power, whose derivative near zero is bounded, then L2. On the maps
    of a convolutional network this is FV-CNN (Cimpoi, Maji and Vedaldi, CVPR 2015), trained end to end as in Deep
    FisherNet (Tang et al. 2016). Gradients flow to the descriptors, to all parameters of the mixture, and through its
    information.

    A mixture of random means is of no use: start from one fitted to descriptors, by `from_mixture` or
    `from_descriptors`.

    Args:
        num_components: K.
        num_features: D, the features of the mixture; with positions, their two coordinates count.
        power: Exponent of the signed power, in [0, 1]; 1 leaves it out.
        normalize: Whether encodings are divided by their L2 norm.
        position_weight: Factor of the coordinates (x, y) that are appended to descriptors; 0 appends nothing.
        threshold: Posteriors below it count as zero, in [0, 1).
        device: Of the parameters.
        dtype: Of the parameters; descriptors are converted to it, also under autocast.

    Attributes:
        mixture: The `TrainableMixture`: its parameters are ``logits`` (log weights up to a constant, (K,)), ``means``
            (K, D) and ``log_deviations`` (logarithms of the standard deviations, (K, D)).

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> import torch
        >>> from fisherlayers import FisherVectorLayer
        >>> maps = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))
        >>> layer = FisherVectorLayer.from_descriptors(maps.permute(0, 2, 3, 1).reshape(-1, 6), 4)
        >>> layer(maps).shape
        torch.Size([2, 48])
    """

    def __init__(
        self,
        num_components: int,
        num_features: int,
        *,
        power: float = 0.5,
        normalize: bool = True,
        position_weight: float = 0.0,
        threshold: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        least = 1 + (2 if position_weight else 0)
        if num_components < 1 or num_features < least:
            raise ValueError(
                f"num_components must be at least 1 and num_features at least {least}, "
                f"got {num_components} and {num_features}"
            )
        if not 0.0 <= power <= 1.0:
            raise ValueError(f"power must lie in [0, 1] (0.5 = signed square root), got {power}")
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
        if not position_weight >= 0:
            raise ValueError(f"position_weight must be at least 0, got {position_weight}")
        # A compiler may take floats of a module for variables. Whether there are positions is none, and inductor has no
        # gradient for an exponent that is one: two whole numbers are constants.
        self._power = float(power).as_integer_ratio()
        self._has_positions = bool(position_weight)
        self.normalize, self.position_weight, self.threshold = normalize, position_weight, threshold
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = (num_components, num_features)
        self.mixture = TrainableMixture(
            torch.zeros(num_components, **factory), torch.randn(*sizes, **factory), torch.zeros(*sizes, **factory)
        )

    @classmethod
    def from_mixture(cls, mixture: DiagonalMixture, **options: Any) -> Self:
        """Make a layer whose outputs are those of a fitted mixture.

        Args:
            mixture: Gives the sizes, the dtype and the device.
            **options: As for the constructor.

        Returns:
            The layer.
        """
        options = {"dtype": mixture.means.dtype, "device": mixture.means.device, **options}
        layer = cls(mixture.num_components, mixture.num_features, **options)
        layer.mixture.load_state_dict(TrainableMixture.of(mixture).state_dict())
        return layer

    @classmethod
    def from_descriptors(
        cls,
        descriptors: Tensor,
        num_components: int,
        *,
        positions: Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Fit a mixture by expectation maximisation, and make its layer.

        Args:
            descriptors: A sample of what the layer will see, (N, C).
            num_components: K, at most N.
            positions: (x, y) of the sample, (N, 2), needed with a ``position_weight``.
            seed: Of the fit.
            **options: As for the constructor.

        Returns:
            The layer.

        Raises:
            ValueError: If positions and ``position_weight`` do not go together.
        """
        weight = options.get("position_weight", 0.0)
        if bool(weight) != (positions is not None):
            raise ValueError("positions and a position_weight above 0 go together: give both or none")
        rows = descriptors.detach()
        if positions is not None:
            rows = append_positions(rows, positions, weight=weight)
        return cls.from_mixture(fit_mixture(rows, num_components, seed=seed), **options)

    @property
    def power(self) -> float:
        """Exponent of the signed power."""
        numerator, denominator = self._power
        return numerator / denominator

    @property
    def num_outputs(self) -> int:
        """2 K D, the length of an encoding."""
        return 2 * self.mixture.means.numel()

    def forward(self, descriptors: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Encode every set of descriptors.

        Args:
            descriptors: Sets (B, N, C), or feature maps (B, C, H, W), whose N = H W positions are the descriptors.
            positions: (x, y), (N, 2) or (B, N, 2), where the layer has a ``position_weight`` and descriptors are sets;
                maps have those of their grid, in [-0.5, 0.5].
            mask: (B, N), or (B, H, W) for maps: True for the descriptors that count. Sets of different sizes are
                padded with anything and masked. All count if None.

        Returns:
            (B, 2 K D), [means; standard deviations]; zero for a set without descriptors.

        Raises:
            ValueError: If shapes do not fit.
        """
        if descriptors.ndim == 4:
            height, width = descriptors.shape[2:]
            if mask is not None and mask.shape[1:] != (height, width):
                raise ValueError(f"mask must have shape (B, {height}, {width}), as the maps; got {tuple(mask.shape)}")
            descriptors = descriptors.flatten(2).mT
            mask = None if mask is None else mask.flatten(1)
            if self._has_positions and positions is None:
                positions = _cell_centres(height, width, descriptors)
        elif descriptors.ndim != 3:
            raise ValueError(
                f"descriptors must be sets (B, N, C) or maps (B, C, H, W), got shape {tuple(descriptors.shape)}"
            )
        if (positions is not None) != self._has_positions:
            raise ValueError(
                f"the layer has position_weight {self.position_weight}: "
                + ("give positions (N, 2) or (B, N, 2)" if self._has_positions else "it takes no positions")
            )
        with full_precision(descriptors):
            return self._encode(descriptors, positions, mask)

    def extra_repr(self) -> str:
        """Return the sizes and options, for `repr`."""
        return (
            f"power={self.power}, normalize={self.normalize}, "
            f"position_weight={self.position_weight}, threshold={self.threshold}"
        )

    def _encode(self, descriptors: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        descriptors = descriptors.to(self.mixture.means.dtype)
        if positions is not None:
            descriptors = append_positions(descriptors, positions, weight=self.position_weight)
        if descriptors.shape[1] == 0:
            return descriptors.new_zeros(len(descriptors), self.num_outputs)
        encodings = fisher_vectors(self.mixture(), descriptors, threshold=self.threshold, mask=mask)
        if self.power != 1:
            encodings = signed_power(encodings, self.power)
        return l2_normalize(encodings) if self.normalize else encodings


def _cell_centres(height: int, width: int, like: Tensor) -> Tensor:
    # (H W, 2), rows of the map one after the other.
    y, x = ((torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n - 0.5 for n in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
