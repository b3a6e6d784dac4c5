"""The public names are a promise: a change to this list is a change to the changelog."""

import ast
import inspect
from pathlib import Path

import pytest

import fisherlayers

PUBLIC = [
    "DenseInformation",
    "DiagonalInformation",
    "FisherInformation",
    "KroneckerInformation",
    "RootError",
    "inverse_square_root",
    "low_rank_inverse_square_root",
    "FisherLayer",
    "AveragedPlainModel",
    "ExactNaturalGradient",
    "fold",
    "plain_state_dict",
    "reconstruct",
    "refresh",
    "register_rule",
    "DeepFisherNetwork",
    "FisherVectorLayer",
    "FisherVectorTransformer",
    "LateFusion",
    "ModuleClassifier",
    "ModuleFeatures",
    "ModuleFisherVectors",
]


def test_public_names_are_the_recorded_ones():
    assert fisherlayers.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(fisherlayers))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_importable_and_documented(name):
    value = getattr(fisherlayers, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fisherlayers.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(fisherlayers.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.asname: node.module for node in block.body for alias in node.names}
    assert homes == {name: f"fisherlayers.{home}" for name, home in fisherlayers._HOME.items()}
