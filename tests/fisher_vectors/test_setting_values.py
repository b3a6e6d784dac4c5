"""Settings at the estimator's door: NumPy's numbers are numbers, and what has no meaning is refused by its name."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork, FisherVectorTransformer
from fisherlayers.fisher_vectors.settings import OVERRIDES, NetworkSettings, resolve_settings
from fisherlayers.fisher_vectors.sift import DenseSift

SMALL = {"depth": 1, "components": 3, "dimensions": 6, "bin_sizes": (3,), "step": 4, "iterations": 2, "random_state": 0}
SMALL |= {"patch_side": 0, "cv": 0, "C": 1.0}
DEFAULTS = NetworkSettings()


def resolved(**overrides):
    return resolve_settings("photos", 2, 100.0, overrides)


def test_numpy_values_are_those_of_python():
    kinds = {int: np.int64, float: np.float64, bool: np.bool_}
    values = {name: getattr(DEFAULTS, name) for name in OVERRIDES}
    given = {name: kinds[type(value)](value) for name, value in values.items() if type(value) in kinds}
    given |= {name: np.array(value) for name, value in values.items() if isinstance(value, tuple)}
    assert len(given) > 20
    for name, value in given.items():
        found = getattr(resolved(**{name: value}), name)
        assert found == values[name]
        assert type(found) is type(values[name])


def test_whole_numbers_may_be_written_as_floats_and_a_single_one_stands_for_several():
    settings = resolved(training_descriptors=1e5, bin_sizes=4, windows=np.int64(3), components=7, dimensions=[5, 6])
    assert settings.training_descriptors == 100_000
    assert isinstance(settings.training_descriptors, int)
    assert settings.bin_sizes == (4,)
    assert settings.windows == (3,)
    assert settings.components == (7, 7)
    assert settings.dimensions == (5, 6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 2.5) for name in ("step", "padding", "stride", "upsample", "cross_fit", "max_pixels", "iterations")),
        *((name, "2") for name in ("step", "components", "projection_images")),
        *((name, (2.5,)) for name in ("bin_sizes", "windows")),
        *((name, "no") for name in ("mirror", "flips", "color", "patch_whitening")),
        *((name, 1) for name in ("mirror", "color")),
        *((name, float("nan")) for name in ("position_weight", "color_weight", "layer_weight", "patch_weight")),
        *((name, 2**31) for name in ("bin_sizes", "step", "upsample", "padding", "stride", "patch_side", "patch_step")),
        ("pooling_damping", float("inf")),
        ("projection_size", 2.5),
        ("step", True),
    ],
)
def test_other_kinds_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        resolved(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 1.5),
        ("depth", "2"),
        ("cv", "3"),
        ("n_jobs", "a"),
        ("memory", [1]),
        ("C", "a"),
        ("class_weight", {"checks": "x"}),
        ("device", "nowhere"),
        ("device", 1.5),
    ],
)
def test_parameters_are_refused_by_name_before_the_fit(name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        DeepFisherNetwork(**SMALL | {name: value}).fit(*textures(2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said():
    model = DeepFisherNetwork(**SMALL).fit(*textures(2))
    model.set_params(device="cuda")
    with pytest.raises(ValueError, match="device is 'cuda', and torch finds none on this machine"):
        model.predict(textures(2)[0])


@pytest.mark.parametrize("kind", [DeepFisherNetwork, FisherVectorTransformer])
def test_a_device_without_float64_is_refused(kind):
    with pytest.raises(ValueError, match="device is 'mps', which has no float64"):
        kind(device="mps").fit(*textures(2))


def test_a_grid_of_numpy_numbers_is_searched():
    grid = {"iterations": np.arange(1, 3), "position_weight": np.linspace(0, 1, 2)}
    search = GridSearchCV(DeepFisherNetwork(**SMALL), grid, cv=2, error_score="raise").fit(*textures(4))
    assert search.best_score_ > 0.5


def test_numpy_values_are_saved(tmp_path):
    model = DeepFisherNetwork(**SMALL | {"flips": np.True_, "step": np.int64(4)}).fit(*textures(2))
    model.save(tmp_path / "model")
    again = DeepFisherNetwork.load(tmp_path / "model")
    assert again.settings_ == model.settings_


def test_extractors_take_numpy_integers():
    images = torch.rand(1, 20, 20)
    for found, expected in zip(DenseSift(step=np.int64(3))(images), DenseSift(step=3)(images), strict=True):
        assert torch.equal(found.descriptors, expected.descriptors)
