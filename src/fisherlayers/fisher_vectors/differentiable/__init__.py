"""Fisher-vector layers and whole fitted networks as PyTorch modules."""

from fisherlayers.fisher_vectors.differentiable.layer import FisherVectorLayer as FisherVectorLayer

__all__ = ["FisherVectorLayer"]
