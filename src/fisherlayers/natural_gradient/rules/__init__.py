"""The kinds of layers, one file each: which weights they have, and which inputs these weights meet."""

from fisherlayers.natural_gradient.rules.attention import AttentionRule
from fisherlayers.natural_gradient.rules.convolution import ConvolutionRule
from fisherlayers.natural_gradient.rules.embedding import EmbeddingRule
from fisherlayers.natural_gradient.rules.linear import LinearRule
from fisherlayers.natural_gradient.rules.recurrent import CellRule, RecurrentRule
from fisherlayers.natural_gradient.rules.rule import Call, Rule, Weight, register_rule, rule_of
from fisherlayers.natural_gradient.rules.transposed_convolution import TransposedConvolutionRule

__all__ = [
    "AttentionRule",
    "Call",
    "CellRule",
    "ConvolutionRule",
    "EmbeddingRule",
    "LinearRule",
    "RecurrentRule",
    "Rule",
    "TransposedConvolutionRule",
    "Weight",
    "register_rule",
    "rule_of",
]
