"""Fisher vectors: from images to descriptors, encodings, layers and classifiers."""

from fisherlayers.fisher_vectors.classifier import DeepFisherNetwork as DeepFisherNetwork
from fisherlayers.fisher_vectors.differentiable import FisherVectorLayer as FisherVectorLayer
from fisherlayers.fisher_vectors.fusion import LateFusion as LateFusion
from fisherlayers.fisher_vectors.module_fisher import ModuleFisherVectors as ModuleFisherVectors
from fisherlayers.fisher_vectors.module_members import ModuleClassifier as ModuleClassifier
from fisherlayers.fisher_vectors.module_members import ModuleFeatures as ModuleFeatures
from fisherlayers.fisher_vectors.transformer import FisherVectorTransformer as FisherVectorTransformer

__all__ = [
    "DeepFisherNetwork",
    "FisherVectorLayer",
    "FisherVectorTransformer",
    "LateFusion",
    "ModuleClassifier",
    "ModuleFeatures",
    "ModuleFisherVectors",
]
