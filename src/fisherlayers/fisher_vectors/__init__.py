"""Fisher vectors: from images to descriptors, encodings, layers and classifiers."""

from fisherlayers.fisher_vectors.classifier import DeepFisherNetwork as DeepFisherNetwork

__all__ = ["DeepFisherNetwork"]
