"""A Gaussian mixture whose parameters can be trained without constraints."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from fisherlayers.fisher_vectors.mixture import DiagonalMixture

__all__ = ["TrainableMixture"]


class TrainableMixture(nn.Module):
    """Logits of weights, means, and logarithms of standard deviations; called, the mixture that they stand for.

    Args:
        logits: Log weights up to a constant, (K,).
        means: (K, D).
        log_deviations: (K, D).
    """

    logits: nn.Parameter
    means: nn.Parameter
    log_deviations: nn.Parameter

    def __init__(self, logits: Tensor, means: Tensor, log_deviations: Tensor) -> None:
        super().__init__()
        self.logits, self.means = nn.Parameter(logits), nn.Parameter(means)
        self.log_deviations = nn.Parameter(log_deviations)

    @classmethod
    def of(cls, mixture: DiagonalMixture) -> Self:
        """Make a fitted mixture trainable.

        Args:
            mixture: Is copied.

        Returns:
            The module.
        """
        tensors = (mixture.weights.log(), mixture.means.clone(), 0.5 * mixture.variances.log())
        return cls(*(tensor.detach() for tensor in tensors))

    def forward(self) -> DiagonalMixture:
        """Return the mixture; gradients flow through its tensors to the parameters."""
        return DiagonalMixture(self.logits.softmax(dim=0), self.means, (2 * self.log_deviations).exp())

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"num_components={self.means.shape[0]}, num_features={self.means.shape[1]}"

    def frozen(self) -> DiagonalMixture:
        """Return a copy of the mixture that is no longer trained.

        Returns:
            K components over D features.
        """
        with torch.no_grad():
            mixture = self()
            return DiagonalMixture(mixture.weights, mixture.means.detach().clone(), mixture.variances)
