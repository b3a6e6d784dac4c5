"""Natural gradient by reconstruction: W = W' F^(-1/2), so that plain descent on W' is natural-gradient descent on W."""

from fisherlayers.natural_gradient.checkpoints import plain_state_dict
from fisherlayers.natural_gradient.exact import ExactNaturalGradient
from fisherlayers.natural_gradient.reconstruction import fold, reconstruct, refresh

__all__ = ["ExactNaturalGradient", "fold", "plain_state_dict", "reconstruct", "refresh"]
