"""`DeepFisherNetwork` as users meet it."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks

from fisher_vectors.texture_images import CLASSES, QUICK, textures
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.fisher_vectors.settings import PRESETS


@pytest.fixture(scope="module")
def model():
    return DeepFisherNetwork(**QUICK).fit(*textures(8))


def test_textures_are_told_apart(model):
    images, labels = textures(10, seed=1)
    assert model.score(images, labels) >= 0.9
    assert model.classes_.tolist() == list(CLASSES)


def test_digits():
    """Two layers on scikit-learn's digits: 8 x 8 pixels, 400 to learn from; a linear classifier on pixels has 87 %."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    model = DeepFisherNetwork(components=12, dimensions=24, step=4, training_descriptors=10_000, random_state=0)
    model.fit(images[:400], digits.target[:400])
    assert model.settings_.upsample == 4
    assert model.score(images[400:700], digits.target[400:700]) >= 0.9


def test_scores_classes_and_probabilities_agree(model):
    images, labels = textures(10, seed=2)
    scores, probabilities = model.decision_function(images), model.predict_proba(images)
    predicted = model.predict(images)
    assert (model.classes_[scores.argmax(axis=1)] == predicted).all()
    assert (model.classes_[probabilities.argmax(axis=1)] == predicted).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    confidence, accuracy = probabilities.max(axis=1).mean(), (predicted == labels).mean()
    assert abs(confidence - accuracy) < 0.2


def test_two_classes():
    images, labels = textures(8)
    chosen = [index for index, label in enumerate(labels) if label in {"lying", "upright"}]
    images, labels = [images[index] for index in chosen], labels[chosen] == "upright"
    model = DeepFisherNetwork(**QUICK, depth=1).fit(images, labels)
    scores = model.decision_function(images)
    assert scores.shape == (len(images),)
    assert model.classes_.tolist() == [False, True]
    assert ((scores > 0) == model.predict(images)).all()
    np.testing.assert_allclose(
        model.predict_proba(images)[:, 1], 1 / (1 + np.exp(-model.temperature_ * scores)), rtol=1e-4
    )


def test_same_result_for_any_number_of_jobs_and_for_a_seed(model):
    images, _ = textures(3, seed=3)
    again = DeepFisherNetwork(**QUICK, n_jobs=2).fit(*textures(8))
    assert np.array_equal(again.decision_function(images), model.decision_function(images))
    other = DeepFisherNetwork(**(QUICK | {"random_state": 1})).fit(*textures(8))
    assert not np.array_equal(other.decision_function(images), model.decision_function(images))


def test_score_of_an_image_does_not_depend_on_the_others(model):
    images, _ = textures(3, seed=4)
    together = model.decision_function(images)
    alone = np.concatenate([model.decision_function([image]) for image in images])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_parameters_follow_scikit_learn(model):
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "classes_")
    assert copy.set_params(depth=1).depth == 1
    with pytest.raises(NotFittedError):
        copy.predict([np.zeros((28, 28))])
    assert clone(DeepFisherNetwork.paper(n_jobs=2)).preset == "paper"
    assert DeepFisherNetwork.small_images().preset == "small"


@pytest.mark.parametrize(
    "check",
    [
        "check_parameters_default_constructible",
        "check_no_attributes_set_in_init",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_repr",
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
    ],
)
def test_estimator_checks_that_need_no_table(check):
    getattr(estimator_checks, check)("DeepFisherNetwork", DeepFisherNetwork(**QUICK))


def test_grid_search_over_lists_of_images():
    images, labels = textures(6)
    search = GridSearchCV(DeepFisherNetwork(**QUICK), {"depth": [1, 2]}, cv=2).fit(images, labels)
    assert search.best_params_["depth"] in {1, 2}
    assert search.best_score_ > 0.5


def test_pickle(model):
    images, _ = textures(2, seed=5)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.decision_function(images), model.decision_function(images))


def test_arrays_lists_and_paths_are_the_same(model, tmp_path):
    images, _ = textures(2, seed=6)
    images = [(255 * image).astype(np.uint8) for image in images]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    scores = model.decision_function(images)
    assert np.array_equal(model.decision_function(np.array(images)), scores)
    assert np.array_equal(model.decision_function(paths), scores)


def test_presets_and_overrides():
    images, labels = textures(4, size=40)
    settings = DeepFisherNetwork(**QUICK, depth=1).fit(images, labels).settings_
    assert settings.components == (4,)
    assert settings.padding == PRESETS["small"].padding
    large = [np.kron(image, np.ones((3, 3))) for image in images]
    assert DeepFisherNetwork(**QUICK, depth=1).fit(large, labels).settings_.windows == PRESETS["photos"].windows
    three = DeepFisherNetwork(**QUICK, preset="small", depth=3).fit(images, labels)
    assert (three.settings_.depth, len(three.network_.stages)) == (3, 3)


def test_mixed_sizes_grey_and_colour():
    images, labels = textures(8)
    colour = [np.repeat(image[:, :, None], 3, axis=2) * [1, 0.8, 0.6] for image in images[::2]]
    images[::2] = [image[: 20 + index, :] for index, image in enumerate(colour[:8])] + colour[8:]
    quick = QUICK | {"depth": 1}
    model = DeepFisherNetwork(**quick).fit(images, labels)
    assert model.network_.color is not None
    assert model.score(images, labels) > 0.9
    grey = textures(2, seed=7)[0]
    repeated = [np.repeat(image[:, :, None], 3, axis=2) for image in grey]
    np.testing.assert_allclose(model.decision_function(grey), model.decision_function(repeated), atol=1e-4)
    plain = DeepFisherNetwork(**quick, color=False).fit(images, labels)
    assert plain.network_.color is None


def test_flips_are_used_in_training_only():
    images, labels = textures(6)
    mirrored = [image[:, ::-1] for image in images]
    flipped = DeepFisherNetwork(**QUICK, depth=1, flips=True).fit(images, labels)
    both = DeepFisherNetwork(**QUICK, depth=1).fit(images, labels)
    gap = np.abs(flipped.decision_function(images) - flipped.decision_function(mirrored)).mean()
    assert gap < np.abs(both.decision_function(images) - both.decision_function(mirrored)).mean()


def test_half_precision_of_encodings_and_nothing_held_out(model):
    images, _ = textures(8, seed=8)
    half = DeepFisherNetwork(**QUICK, encoding_dtype="float16").fit(*textures(8))
    assert half.C_ == model.C_
    np.testing.assert_allclose(half.decision_function(images), model.decision_function(images), atol=5e-3)
    single = DeepFisherNetwork(**QUICK, C=model.C_, cv=0).fit(*textures(8))
    assert np.array_equal(single.predict(images), model.predict(images))


def test_classes_of_one_image():
    images, labels = textures(4)
    with pytest.warns(UserWarning, match="a class has a single image, so that nothing can be held out"):
        few = DeepFisherNetwork(**QUICK).fit([*images[:8], images[9]], [*labels[:8], "rare"])
    assert len(few.classes_) == 5
    assert np.isfinite(few.decision_function(images)).all()
    with pytest.warns(UserWarning, match="a class has a single image"):
        pair = DeepFisherNetwork(**QUICK).fit(images[:2], labels[:2])
    assert (pair.predict(images[:2]) == labels[:2]).all()


def test_tiny_images_are_counted(model):
    images, labels = textures(6)
    with pytest.warns(UserWarning, match="1 of 3 images are too small for a single descriptor"):
        scores = model.decision_function([images[0], np.zeros((1, 1)), images[1]])
    np.testing.assert_allclose(scores[1], model.intercept_, atol=1e-6)
    images[3] = np.array([[0.5]])
    with pytest.warns(UserWarning, match="1 of 24 images are too small"):
        DeepFisherNetwork(**QUICK, padding=0).fit(images, labels)


def test_a_very_large_image(model):
    image = np.kron(textures(1)[0][0], np.ones((40, 100)))
    assert image.shape == (1120, 2800)
    assert np.isfinite(model.decision_function([(255 * image).astype(np.uint8)])).all()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("where", ["layer 1: projection", "layer 2: mixture"])
def test_interrupted_fit_leaves_the_model_as_it_was(where, n_jobs):
    images, labels = textures(20)

    def interrupt(stage, done, total):
        if stage == where:
            raise KeyboardInterrupt

    fresh = DeepFisherNetwork(**QUICK, n_jobs=n_jobs)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(images, labels, progress=interrupt)
    assert torch.get_num_threads() == threads
    assert not hasattr(fresh, "classes_")
    assert not hasattr(fresh, "settings_")


def test_verbose_reports_on_the_error_stream(capsys):
    DeepFisherNetwork(**QUICK, depth=1, verbose=1).fit(*textures(3))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[DeepFisherNetwork] encode: 12 of 12" in captured.err


def test_several_labels_an_image(tmp_path):
    images, names = textures(12)
    unseen, unseen_names = textures(8, seed=1)

    def indicators(names):
        return np.stack([names == "lying", np.isin(names, ["lying", "upright"]), names == "checks"], axis=1).astype(int)

    model = DeepFisherNetwork(**QUICK).fit(images, indicators(names))
    assert (model.multilabel_, model.classes_.tolist()) == (True, [0, 1, 2])
    predicted, truth = model.predict(unseen), indicators(unseen_names)
    assert predicted.shape == truth.shape
    assert (predicted == truth).mean() >= 0.9
    scores, probabilities = model.decision_function(unseen), model.predict_proba(unseen)
    assert ((scores > 0) == predicted).all()
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-model.temperature_ * scores)), rtol=1e-4)
    assert abs(np.maximum(probabilities, 1 - probabilities).mean() - (predicted == truth).mean()) < 0.2
    model.save(tmp_path / "model")
    again = DeepFisherNetwork.load(tmp_path / "model")
    assert np.array_equal(again.predict(unseen), predicted)
    sparse = DeepFisherNetwork(**QUICK).fit(images, csr_matrix(indicators(names)))
    assert np.array_equal(sparse.decision_function(unseen), scores)
    two = DeepFisherNetwork(**QUICK, depth=1).fit(images, indicators(names)[:, :2])
    assert two.decision_function(unseen).shape == (32, 2)


def test_class_weights_act_on_the_class_that_they_name():
    images, names = textures(8, noise=0.4)
    quick = QUICK | {"depth": 1, "C": 1.0, "cv": 0}
    unseen = textures(10, seed=1, noise=0.4)[0]
    plain, weighted = (
        DeepFisherNetwork(**quick, class_weight=weight).fit(images, names).decision_function(unseen)
        for weight in (None, {"slanted": 20.0})
    )
    assert weighted[:, 2].mean() > plain[:, 2].mean() + 0.02
    np.testing.assert_allclose(weighted[:, [0, 1, 3]], plain[:, [0, 1, 3]], atol=5e-3)


IMAGES, LABELS = textures(2)


@pytest.mark.parametrize(
    ("parameters", "images", "labels", "message"),
    [
        ({}, [], [], "images is empty"),
        ({}, IMAGES, ["a"] * 8, "y must hold at least two classes, got one class, a"),
        ({}, IMAGES, None, "requires y to be passed, but the target y is None"),
        ({}, IMAGES, LABELS[:7], "y must hold one label an image, got 7 labels for 8 images"),
        ({}, IMAGES, np.full((8, 2), 2), "y with several columns must hold 0 and 1"),
        ({}, IMAGES, np.zeros((8, 2, 2)), "y must be a list of labels"),
        ({}, IMAGES, np.linspace(0, 1, 8), "Unknown label type: continuous"),
        ({}, [*IMAGES[:7], IMAGES[7] * np.nan], LABELS, r"images\[7\] has NaN"),
        ({}, [*IMAGES[:7], "missing.png"], LABELS, r"images\[7\]: cannot read"),
        ({}, [*IMAGES[:7], np.zeros((4, 4, 5))], LABELS, r"images\[7\] must have shape"),
        ({"class_weight": "even"}, IMAGES, LABELS, "class_weight must be 'balanced', a dictionary or None"),
        ({"class_weight": {"cat": 2.0}}, IMAGES, LABELS, "class_weight names labels that y does not have: cat"),
        ({"C": ()}, IMAGES, LABELS, "C must be one positive number or several"),
        ({"C": (1.0, -1.0)}, IMAGES, LABELS, "C must be one positive number or several"),
        ({"cv": 1}, IMAGES, LABELS, "cv must be at least 2 folds"),
        ({"cv": 0}, IMAGES, LABELS, "cv must be at least 2 folds, or 0 with a single C, got 0 with C"),
        ({"encoding_dtype": "int8"}, IMAGES, LABELS, "encoding_dtype must be 'float32' or 'float16', got 'int8'"),
        ({"preset": "large"}, IMAGES, LABELS, "preset must be 'auto' or one of"),
        ({"depth": 0}, IMAGES, LABELS, "depth must be at least 1 layer"),
        ({"components": (4, 4, 4)}, IMAGES, LABELS, "components must hold one number a layer: expected 2"),
        ({"step": 0}, IMAGES, LABELS, "step must be at least 1"),
        ({"projection": "magic"}, IMAGES, LABELS, "projection must be one of"),
    ],
)
def test_refused(parameters, images, labels, message):
    with pytest.raises(ValueError, match=message):
        DeepFisherNetwork(**(QUICK | parameters)).fit(images, labels)


def test_autocast_of_the_caller_changes_nothing(model):
    images, labels = textures(8)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.decision_function(images)
        again = DeepFisherNetwork(**QUICK).fit(images, labels)
    assert np.array_equal(scores, model.decision_function(images))
    assert np.array_equal(again.coef_, model.coef_)
