"""Late fusion against its definition, and networks as its members."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork, LateFusion, ModuleClassifier, ModuleFeatures
from fisherlayers.fisher_vectors.calibration import fit_temperature
from fisherlayers.fisher_vectors.fusion import _scores, fusion_weights
from fisherlayers.fisher_vectors.linear_svm import LinearSVM
from fisherlayers.fisher_vectors.module_members import module_outputs


def network():
    return DeepFisherNetwork(depth=1, components=3, dimensions=6, bin_sizes=(3,), step=3, random_state=0, C=1.0, cv=0)


def convolution():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 12, 5), torch.nn.ReLU())


def probe():
    return make_pipeline(ModuleFeatures(convolution(), channels=1), LinearSVM())


class Guess(ClassifierMixin, BaseEstimator):
    """Scores that say nothing."""

    def fit(self, images, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, images):
        return np.random.default_rng(len(images)).normal(size=(len(images), len(self.classes_)))


def problem(images=2000, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    truth = np.eye(classes)[labels]
    return [truth + noise * rng.normal(size=truth.shape) for noise in (0.7, 0.9, 30.0)], labels


def test_weights_are_the_minimum_of_the_logistic_loss():
    scores, labels = problem()
    scores[2] /= 30

    def loss(weights):
        fused = sum(w * s for w, s in zip(weights, scores, strict=True))
        return -log_softmax(fused, axis=1)[np.arange(2000), labels].mean() + 1e-3 * np.square(weights).sum()

    best = fusion_weights(scores, labels)
    assert (best >= 0).all()
    assert best[0] > best[1] > 5 * best[2]
    for index in range(3):
        for step in (-0.05, 0.05):
            other = best.copy()
            other[index] = max(0.0, other[index] + step)
            assert loss(other) >= loss(best) - 1e-9
    for place in np.eye(3)[best > 0]:
        assert abs(loss(best + 1e-4 * place) - loss(best - 1e-4 * place)) / 2e-4 < 2e-4


def test_a_member_that_contradicts_gets_no_weight():
    scores, labels = problem()
    np.testing.assert_allclose(fusion_weights([scores[0], -scores[1]], labels)[1], 0, atol=1e-9)


def test_fused_scores_are_the_weighted_sum_of_calibrated_scores():
    images, labels = textures(9, noise=0.6)
    fusion = LateFusion([("fisher", network()), ("probe", probe()), ("guess", Guess())], random_state=0)
    fusion.fit(images[:28], labels[:28])
    rest = images[28:]
    expected = sum(
        fusion.weights_[name] * fusion.temperatures_[name] * member.decision_function(rest)
        for name, member in fusion.members_.items()
    )
    np.testing.assert_allclose(fusion.decision_function(rest), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fusion.predict(rest), fusion.classes_[expected.argmax(axis=1)])
    np.testing.assert_allclose(np.log(fusion.predict_proba(rest)), log_softmax(expected, axis=1), rtol=1e-5)
    assert fusion.weights_["guess"] < 0.5 * max(fusion.weights_.values())
    alone = clone(network()).fit(images[:28], labels[:28])
    np.testing.assert_array_equal(fusion.members_["fisher"].decision_function(rest), alone.decision_function(rest))


def test_held_out_scores_do_not_come_from_members_that_saw_the_image():
    class Memory(Guess):
        """Knows what it has seen, and nothing else."""

        def fit(self, images, y):
            self.seen_ = {image.tobytes(): label for image, label in zip(images, y, strict=True)}
            return super().fit(images, y)

        def decision_function(self, images):
            known = [self.seen_.get(image.tobytes()) for image in images]
            return 50.0 * (np.array(known)[:, None] == self.classes_)

    images, labels = textures(8)
    fusion = LateFusion([("memory", Memory()), ("fisher", network())], random_state=0).fit(images, labels)
    assert fusion.members_["memory"].decision_function(images).any(axis=1).all()
    assert fusion.weights_["memory"] == pytest.approx(0, abs=1e-3)
    assert fusion.weights_["fisher"] > 0.5


def test_fitted_members_of_two_classes():
    images, labels = textures(10)
    labels = np.where(np.isin(labels, ("lying", "checks")), "b", "a")
    fisher = network().fit(images[:20], labels[:20])
    module = torch.nn.Sequential(
        convolution(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    convnet = ModuleClassifier(module, ["b", "a"], channels=1)
    fusion = LateFusion([("fisher", fisher), ("convnet", convnet)], cv="prefit").fit(images[20:], labels[20:])
    assert fusion.members_["fisher"] is fisher
    truth = (labels[20:] == "b").astype(int)
    held_out = [_scores(member, images[20:], np.array(["a", "b"]), "") for member in (fisher, convnet)]
    temperatures = [fit_temperature(scores, truth) for scores in held_out]
    calibrated = [factor * scores for factor, scores in zip(temperatures, held_out, strict=True)]
    assert list(fusion.temperatures_.values()) == pytest.approx(temperatures)
    assert list(fusion.weights_.values()) == pytest.approx(fusion_weights(calibrated, truth))
    scores = fusion.decision_function(images[:5])
    assert scores.shape == (5,)
    # The ConvNet's columns stand in another order.
    expected = fusion.weights_["fisher"] * fusion.temperatures_["fisher"] * fisher.decision_function(images[:5])
    expected -= fusion.weights_["convnet"] * fusion.temperatures_["convnet"] * convnet.decision_function(images[:5])
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fusion.predict_proba(images[:5])[:, 1], 1 / (1 + np.exp(-scores)), rtol=1e-6)


def test_outputs_of_a_module_are_those_of_its_call():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.5))
    images = [np.random.default_rng(seed).random((9, 9, 3)) for seed in range(5)]
    batch = torch.tensor(np.stack(images)).float().movedim(-1, 1)
    with torch.no_grad():
        expected = module.eval()((batch - 0.4) / 0.2).mean(dim=(2, 3))
    module.train()
    found = module_outputs(module, images, mean=0.4, std=(0.2, 0.2, 0.2), batch_size=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert module.training
    rows = ModuleFeatures(module, mean=0.4, std=0.2).fit(images).transform(images)
    np.testing.assert_allclose(rows, expected / expected.norm(dim=1, keepdim=True), atol=1e-5)
    mixed = [images[0], np.uint8(255 * images[1][:7, :, 0])]
    assert module_outputs(module, mixed, size=(6, 6)).shape == (2, 4)


def test_bad_arguments():
    images, labels = textures(3)
    for members, options, message in (
        ([("one", network())], {}, "at least two"),
        ([("one", network()), ("one", probe())], {}, "distinct names"),
        ([("one", network()), ("two", probe())], {"cv": 1}, "cv must be at least 2 folds, or 'prefit'"),
        ([("one", network()), ("two", probe())], {"cv": 5}, "needs cv = 5 images"),
    ):
        with pytest.raises(ValueError, match=message):
            LateFusion(members, **options).fit(images, labels)
    with pytest.raises(ValueError, match="one label an image"):
        LateFusion([("one", network()), ("two", probe())]).fit(images, labels[:3])
    other = ModuleClassifier(torch.nn.Flatten(), ["x", "y"], channels=1)
    with pytest.raises(ValueError, match="labels that are not among classes: checks"):
        other.fit(images, labels)
    with pytest.raises(ValueError, match="gives 784 logits, expected 2"):
        other.decision_function(images)
    fisher = network().fit(images, labels)
    with pytest.raises(ValueError, match="member 'two' knows the classes"):
        LateFusion([("one", fisher), ("two", other)], cv="prefit").fit(images, labels)
    with pytest.raises(ValueError, match="labels that the members do not know: z"):
        LateFusion([("one", fisher), ("two", fisher)], cv="prefit").fit(images[:1], ["z"])
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        module_outputs(torch.nn.Flatten(), images, channels=2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        module_outputs(torch.nn.Flatten(), images, batch_size=0)
    with pytest.raises(ValueError, match="std must be positive"):
        module_outputs(torch.nn.Flatten(), images, std=0.0)
    with pytest.raises(ValueError, match="images are of several sizes"):
        module_outputs(torch.nn.Flatten(), [images[0], images[1][:9]])
    with pytest.raises(ValueError, match=r"module must return \(B, F\)"):
        module_outputs(torch.nn.Flatten(0), images, channels=1)


class Paired(Guess):
    """Checks that every path comes with the label that it names."""

    def fit(self, images, y):
        assert [path.split("_")[1] for path in images] == list(y)
        return super().fit(images, y)


@pytest.mark.parametrize("first", [0, 3])
def test_columns_of_a_data_frame_count_by_position(first):
    pandas = pytest.importorskip("pandas")
    names = [f"{i}_{'abc'[i % 3]}" for i in range(12)]
    frame = pandas.DataFrame({"path": names, "label": [name[-1] for name in names]}).sample(frac=1, random_state=0)
    frame = frame[first:]
    LateFusion([("one", Paired()), ("other", Paired())], cv=np.int64(2), random_state=0).fit(frame.path, frame.label)


def test_what_fusion_cannot_take_is_said():
    images, labels = textures(4)
    pair = [("one", Guess()), ("other", Guess())]
    with pytest.raises(ValueError, match="fusion knows no several labels"):
        LateFusion(pair, cv=2).fit(images, np.eye(len(images), 3))
    with pytest.raises(ValueError, match=r"y must hold one label an image, \(n,\)"):
        LateFusion(pair, cv=2).fit(images, None)
    with pytest.raises(ValueError, match="members must be"):
        LateFusion([Guess(), Guess()], cv=2).fit(images, labels)
    with pytest.raises(NotFittedError):
        LateFusion(pair, cv="prefit").fit(images, labels)
    with pytest.warns(DataConversionWarning):
        column = LateFusion(pair, cv=2, random_state=0).fit(images, np.array(labels)[:, None])
    assert column.classes_.tolist() == sorted(set(labels))


def test_members_parameters_are_set_by_their_names():
    fusion = LateFusion([("fisher", network()), ("probe", probe())], cv=2, random_state=0)
    fusion.set_params(fisher__C=3.0, probe__linearsvm__C=0.5, cv=3)
    found = fusion.get_params()
    assert (found["fisher__C"], found["probe__linearsvm__C"], found["cv"]) == (3.0, 0.5, 3)
    assert found["fisher"] is dict(fusion.members)["fisher"]
    assert set(fusion.get_params(deep=False)) == {"members", "cv", "random_state"}
    guess = Guess()
    assert dict(fusion.set_params(fisher=guess).members)["fisher"] is guess
    assert clone(fusion).get_params()["probe__linearsvm__C"] == 0.5
    for name in ("cv", "a__b"):
        with pytest.raises(ValueError, match="names"):
            LateFusion([(name, Guess()), ("other", Guess())]).fit(*textures(4))


def test_a_grid_search_reaches_the_members():
    images, labels = textures(8)
    fusion = LateFusion([("probe", probe()), ("guess", Guess())], cv=2, random_state=0)
    grid = {"probe__linearsvm__C": [1e-9, 1.0]}
    search = GridSearchCV(fusion, grid, cv=2, error_score="raise").fit(np.stack(images), labels)
    best = dict(search.best_estimator_.members)["probe"][-1]
    assert search.best_params_ == {"probe__linearsvm__C": best.C}


def test_probabilities_sum_to_one_in_double_precision():
    images, labels = textures(6)
    fusion = LateFusion([("fisher", network()), ("probe", probe())], cv=2, random_state=0).fit(images, labels)
    rows = fusion.predict_proba(images)
    assert rows.dtype == fusion.decision_function(images).dtype == np.float64
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-14)


def test_features_have_names():
    pandas = pytest.importorskip("pandas")
    images, _ = textures(2)
    features = ModuleFeatures(convolution(), channels=1)
    with pytest.raises(NotFittedError):
        features.get_feature_names_out()
    frame = features.set_output(transform="pandas").fit_transform(pandas.Series(images, index=range(5, 13)))
    assert frame.columns.tolist() == features.get_feature_names_out().tolist() == [f"feature{i}" for i in range(12)]
    np.testing.assert_array_equal(frame, ModuleFeatures(convolution(), channels=1).transform(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, r"size must be \(H, W\) in pixels, each 1 or more, got 32"),
        ({"size": (32, 0)}, r"size must be \(H, W\)"),
        ({"size": (32.5, 30)}, r"size must be \(H, W\)"),
        ({"mean": (0.4, 0.5)}, r"mean must be one number, or one for each of 3 channels, got \(0.4, 0.5\)"),
        ({"mean": "imagenet"}, "mean must be one number"),
        ({"std": (0.4, 0.5)}, "std must be one number"),
        ({"std": float("nan")}, "std must be one number"),
    ],
)
def test_pixels_that_no_network_takes(options, message):
    with pytest.raises(ValueError, match=message):
        module_outputs(torch.nn.Flatten(), textures(2)[0], **options)
