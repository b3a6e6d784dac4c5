"""Natural gradient by reconstruction: W = W' F^(-1/2), so that plain descent on W' is natural-gradient descent on W."""

from fisherlayers.natural_gradient.averaging import AveragedPlainModel
from fisherlayers.natural_gradient.checkpoints import plain_state_dict
from fisherlayers.natural_gradient.exact import ExactNaturalGradient
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.modes import COMPAT
from fisherlayers.natural_gradient.reconstruction import fold, reconstruct, refresh
from fisherlayers.natural_gradient.rules import Call, Rule, Weight, register_rule

__all__ = [
    "COMPAT",
    "AveragedPlainModel",
    "Call",
    "ExactNaturalGradient",
    "Layout",
    "Rule",
    "Weight",
    "fold",
    "plain_state_dict",
    "reconstruct",
    "refresh",
    "register_rule",
]
