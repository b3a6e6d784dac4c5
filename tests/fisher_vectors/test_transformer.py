"""Images to encodings, in scikit-learn's pipelines."""

import pickle

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork, FisherVectorTransformer
from fisherlayers.fisher_vectors.linear_svm import LinearSVM

SETTINGS = {
    "components": 4,
    "dimensions": 8,
    "bin_sizes": (3, 4),
    "step": 3,
    "training_descriptors": 2000,
    "iterations": 5,
    "patch_side": 0,
}
IMAGES, LABELS = textures(8)
UNSEEN, TRUTH = textures(5, seed=1)


@pytest.mark.parametrize("depth", [1, 2])
def test_encodings_are_those_that_the_classifier_takes(depth):
    model = DeepFisherNetwork(depth=depth, **SETTINGS, random_state=0).fit(IMAGES, LABELS)
    encode = FisherVectorTransformer(depth=depth, settings=SETTINGS, random_state=0).fit(IMAGES, LABELS)
    scores = encode.transform(UNSEEN) @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(scores, model.decision_function(UNSEEN), atol=1e-5)
    # The classifier's SVM is that of the encodings of fit_transform.
    again = FisherVectorTransformer(depth=depth, settings=SETTINGS, random_state=0)
    svm = LinearSVM(C=model.C_).fit(again.fit_transform(IMAGES, LABELS), LABELS)
    np.testing.assert_allclose(svm.coef_, model.coef_, atol=1e-2)
    np.testing.assert_array_equal(again.transform(UNSEEN), encode.transform(UNSEEN))


def test_training_images_are_encoded_by_projections_that_they_were_not_learned_with():
    encode = FisherVectorTransformer(depth=2, settings=SETTINGS, random_state=0)
    folded = encode.fit_transform(IMAGES, LABELS)
    first = encode.network_.stages[0].num_outputs
    as_new = encode.transform(IMAGES)
    np.testing.assert_allclose(folded[:, :first], as_new[:, :first], atol=1e-6)
    assert np.abs(folded[:, first:] - as_new[:, first:]).max() > 1e-3
    shallow = FisherVectorTransformer(settings=SETTINGS, random_state=0)
    np.testing.assert_allclose(shallow.fit_transform(IMAGES), shallow.transform(IMAGES), atol=1e-6)


def test_names_of_the_entries():
    colour = [np.stack([image, image[::-1], 1 - image], axis=-1) for image in IMAGES]
    encode = FisherVectorTransformer(settings=SETTINGS | {"patch_side": 4}, random_state=0).fit(colour)
    names = encode.get_feature_names_out()
    assert len(set(names)) == len(names) == encode.transform(colour[:1]).shape[1]
    stage = encode.network_.stages[0]
    components, dimensions = stage.mixture.means.shape
    assert names[0] == "layer1_mean_k0_d0"
    assert names[components * dimensions + dimensions + 2] == "layer1_deviation_k1_d2"
    assert {name.split("_")[0] for name in names} == {"layer1", "colour", "patches"}
    # An entry of one component moves with that component's mean only.
    assert names[stage.num_outputs] == "colour_mean_k0_d0"


def test_set_output_gives_data_frames():
    encode = FisherVectorTransformer(settings=SETTINGS, random_state=0).set_output(transform="pandas")
    frame = encode.fit_transform(IMAGES)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == encode.get_feature_names_out().tolist()
    np.testing.assert_array_equal(encode.transform(UNSEEN).columns, frame.columns)


def test_a_pipeline_and_its_grid_search():
    encode = FisherVectorTransformer(settings=SETTINGS, random_state=0)
    pipeline = make_pipeline(encode, LogisticRegression(C=100.0))
    assert pipeline.fit(IMAGES, LABELS).score(UNSEEN, TRUTH) >= 0.9
    grid = {"fishervectortransformer__settings": [SETTINGS | {"components": number} for number in (1, 4)]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(IMAGES, LABELS)
    assert search.score(UNSEEN, TRUTH) >= 0.8


def test_clone_pickle_and_workspace(tmp_path):
    encode = FisherVectorTransformer(settings=SETTINGS, random_state=0, workspace=tmp_path).fit(IMAGES)
    expected = encode.transform(UNSEEN)
    assert clone(encode).get_params() == encode.get_params()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encode)).transform(UNSEEN), expected)
    np.testing.assert_array_equal(clone(encode).fit(IMAGES).transform(UNSEEN), expected)
    assert len(list(tmp_path.iterdir())) == 1


def test_refused():
    with pytest.raises(ValueError, match="requires y to be passed"):
        FisherVectorTransformer(depth=2, settings=SETTINGS).fit(IMAGES)
    with pytest.raises(ValueError, match=r"settings must be among components, .*; got colour, size"):
        FisherVectorTransformer(settings={"size": 3, "colour": 1}).fit(IMAGES)


def test_images_that_are_too_small_are_counted_and_zero():
    encode = FisherVectorTransformer(settings=SETTINGS | {"padding": 0}, random_state=0).fit(IMAGES)
    with pytest.warns(UserWarning, match="1 of 2 images are too small"):
        encodings = encode.transform([np.zeros((1, 1)), IMAGES[0]])
    assert not encodings[0].any()
    assert encodings[1].any()
