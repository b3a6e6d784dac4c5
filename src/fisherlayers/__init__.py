"""Fisher layers: natural gradient by reconstruction, and Deep Fisher Networks, on one core.

The public names, grouped by stage. They are imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fisherlayers.fisher_vectors import DeepFisherNetwork as DeepFisherNetwork
    from fisherlayers.fisher_vectors import FisherVectorLayer as FisherVectorLayer
    from fisherlayers.fisher_vectors import FisherVectorTransformer as FisherVectorTransformer
    from fisherlayers.fisher_vectors import LateFusion as LateFusion
    from fisherlayers.fisher_vectors import ModuleClassifier as ModuleClassifier
    from fisherlayers.fisher_vectors import ModuleFeatures as ModuleFeatures
    from fisherlayers.fisher_vectors import ModuleFisherVectors as ModuleFisherVectors
    from fisherlayers.information import DenseInformation as DenseInformation
    from fisherlayers.information import DiagonalInformation as DiagonalInformation
    from fisherlayers.information import FisherInformation as FisherInformation
    from fisherlayers.information import KroneckerInformation as KroneckerInformation
    from fisherlayers.inverse_root import RootError as RootError
    from fisherlayers.inverse_root import inverse_square_root as inverse_square_root
    from fisherlayers.inverse_root import low_rank_inverse_square_root as low_rank_inverse_square_root
    from fisherlayers.layer import FisherLayer as FisherLayer
    from fisherlayers.natural_gradient import AveragedPlainModel as AveragedPlainModel
    from fisherlayers.natural_gradient import ExactNaturalGradient as ExactNaturalGradient
    from fisherlayers.natural_gradient import fold as fold
    from fisherlayers.natural_gradient import plain_state_dict as plain_state_dict
    from fisherlayers.natural_gradient import reconstruct as reconstruct
    from fisherlayers.natural_gradient import refresh as refresh
    from fisherlayers.natural_gradient import register_rule as register_rule

__version__ = _version("fisherlayers")

_HOME = {
    # accumulate
    "DenseInformation": "information",
    "DiagonalInformation": "information",
    "FisherInformation": "information",
    "KroneckerInformation": "information",
    # invert
    "RootError": "inverse_root",
    "inverse_square_root": "inverse_root",
    "low_rank_inverse_square_root": "inverse_root",
    # apply
    "FisherLayer": "layer",
    # natural gradient by reconstruction
    "AveragedPlainModel": "natural_gradient",
    "ExactNaturalGradient": "natural_gradient",
    "fold": "natural_gradient",
    "plain_state_dict": "natural_gradient",
    "reconstruct": "natural_gradient",
    "refresh": "natural_gradient",
    "register_rule": "natural_gradient",
    # Fisher vectors
    "DeepFisherNetwork": "fisher_vectors",
    "FisherVectorLayer": "fisher_vectors",
    "FisherVectorTransformer": "fisher_vectors",
    "LateFusion": "fisher_vectors",
    "ModuleClassifier": "fisher_vectors",
    "ModuleFeatures": "fisher_vectors",
    "ModuleFisherVectors": "fisher_vectors",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fisherlayers' has no attribute {name!r}")
    return getattr(import_module(f"fisherlayers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
