"""The image benchmarks' arithmetic, and their peers on textures that anything can tell apart."""

import json

import numpy as np
import pytest
from benchmarks import image_contest
from benchmarks.common import Figure
from benchmarks.image_hybrid import Rows, late_fusion, together
from benchmarks.image_outcomes import Outcome, class_mean_accuracy, fisher_outcomes, fused
from benchmarks.image_peers import BagOfWords, linear_scores, resized
from benchmarks.image_sets import LabelledSet, Split, held_out, per_class


def stripes(each, seed=0):
    rng = np.random.default_rng(seed)
    phases = rng.integers(8, size=2 * each)
    lying = [np.uint8(np.tile(((np.arange(40) + phase) // 4 % 2 * 200)[:, None], (1, 40))) for phase in phases]
    images = [image if index < each else np.ascontiguousarray(image.T) for index, image in enumerate(lying)]
    noisy = np.stack([np.uint8(np.clip(image + rng.normal(0, 20, image.shape), 0, 255)) for image in images])
    return Split(noisy, np.repeat([0, 1], each))


def test_accuracy_is_a_mean_over_classes():
    labels = np.array([0, 0, 0, 0, 1])
    assert class_mean_accuracy(np.array([0, 0, 0, 1, 1]), labels) == pytest.approx(100 * (0.75 + 1) / 2)


def test_fusion_adds_log_probabilities():
    first = Outcome(0.0, 1.0, 2.0, np.log([[0.6, 0.4], [0.9, 0.1]]))
    second = Outcome(0.0, 3.0, 4.0, np.log([[0.3, 0.7], [0.4, 0.6]]))
    both = fused(first, second, np.array([1, 0]))
    assert both.accuracy == 100
    assert (both.fit_seconds, both.predict_seconds) == (4.0, 6.0)
    with pytest.raises(ValueError, match="log_probabilities"):
        fused(first, Outcome(0.0, 0.0, 0.0), np.array([1, 0]))


def rows_of(noise, seed, views=1):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], 20)
    noisy = [np.eye(3)[labels] + noise * rng.normal(size=(60, 3)) for _ in range(views + 1)]
    return Rows(np.float16(np.concatenate(noisy[1:])), np.float16(noisy[0]), 1.0), labels


def test_sources_side_by_side_and_fused():
    (good, labels), (poor, _) = rows_of(0.4, 0, views=2), rows_of(0.8, 1)
    both, svm = together([good, poor], labels, (1.0, 10.0))
    assert both.train.shape == (120, 6)
    # The mirror images of the one are beside the same rows of the other.
    np.testing.assert_array_equal(both.train[:60, 3:], both.train[60:, 3:])
    np.testing.assert_allclose(both.test[:, :3], good.test / np.sqrt(2), atol=1e-3)
    right = (linear_scores(both.test, svm).argmax(1) == labels).mean()
    fusion, scores = late_fusion({"good": good, "poor": poor}, labels)
    assert scores.shape == (60, 3)
    assert fusion.weights_["good"] > fusion.weights_["poor"] > 0
    assert min(right, (scores.argmax(1) == labels).mean()) > 0.85


def test_members_of_the_fusion_do_not_score_what_they_learned_from():
    # Noise that fills its space: a classifier knows its training images by heart, and nothing else.
    rng = np.random.default_rng(0)
    good, labels = rows_of(0.4, 0)
    noise = Rows(rng.normal(size=(60, 200)), rng.normal(size=(60, 200)), 100.0)
    fusion, _ = late_fusion({"good": good, "noise": noise}, labels)
    assert fusion.weights_["noise"] * fusion.temperatures_["noise"] < 0.1 * fusion.temperatures_["good"]


def test_splits_are_by_class_and_disjoint():
    split = Split(np.arange(30)[:, None, None], np.repeat([0, 1, 2], 10))
    learn, scored = held_out(split, 0.3, np.random.default_rng(0))
    assert np.bincount(learn.labels).tolist() == [7, 7, 7]
    assert sorted([*learn.images[:, 0, 0], *scored.images[:, 0, 0]]) == list(range(30))
    chosen = per_class(split.labels, 4, np.random.default_rng(0))
    assert np.bincount(split.labels[chosen]).tolist() == [4, 4, 4]


def test_bag_of_words_tells_stripes_apart():
    model = BagOfWords(12, bin_sizes=(3,), step=4).fit(*stripes(10))
    test = stripes(8, seed=1)
    assert (model.predict(test.images) == test.labels).all()


def test_resizing_leaves_the_right_size_alone():
    images = stripes(2).images
    assert resized(images, 40) is images
    assert resized(list(images), 20).shape == (4, 20, 20)


def test_all_parts_of_a_network_are_scored_from_one_fit():
    data = LabelledSet("stripes", stripes(10), stripes(6, seed=1), ("lying", "upright"))
    data = data._replace(train=three(data.train), test=three(data.test))
    settings = {"preset": "photos", "components": (4, 3), "dimensions": (8, 6), "bin_sizes": (3,), "C": (1.0,)}
    settings |= {"windows": (2,), "training_descriptors": 500, "step": 6, "iterations": 3, "cross_fit": 2}
    settings |= {"flips": False}
    shallow, deep = (fisher_outcomes(data, settings, 1, depth) for depth in (1, 2))
    assert list(shallow) == ["shallow", "layer 1 alone"]
    assert list(deep) == ["deep", "layer 2 alone", "layers 1 and 2 alone"]
    assert shallow["shallow"].accuracy == deep["deep"].accuracy == 100
    np.testing.assert_allclose(np.exp(deep["deep"].log_probabilities).sum(axis=1), 1)
    flipped = fisher_outcomes(data, settings | {"flips": True}, 1, 2)["deep"]
    assert flipped.accuracy == 100
    assert (len(flipped.rows.train), len(deep["deep"].rows.train), len(flipped.rows.test)) == (60, 30, 18)
    both = fisher_outcomes(data, settings, 1, 2, one_fit=True)
    assert list(both) == ["deep", "shallow"]
    assert both["deep"].fit_seconds > both["shallow"].fit_seconds == 0
    np.testing.assert_array_equal(both["deep"].log_probabilities, deep["deep"].log_probabilities)
    # The colour stream's mixture has another seed in a network of another depth.
    np.testing.assert_allclose(both["shallow"].log_probabilities, shallow["shallow"].log_probabilities, atol=0.2)


def three(split):
    """Add a third class, of the mean of a lying and an upright image."""
    half = len(split.labels) // 2
    mixed = np.uint8((np.float32(split.images[:half]) + split.images[half:]) / 2)
    labels = np.concatenate([split.labels, np.full(half, 2)])
    return Split(np.concatenate([split.images, mixed]), labels)


def test_the_command_line_has_a_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["contest", "--help"])
    with pytest.raises(SystemExit, match="0"):
        image_contest.main("A contest.", None, None)
    assert "score 30 % of the training images" in " ".join(capsys.readouterr().out.split())


def test_the_fit_alone_is_timed_and_nothing_is_scored(monkeypatch):
    written = {}
    monkeypatch.setattr(image_contest, "write_results", lambda name, figures, **_: written.update({name: figures}))
    settings = {"preset": "small", "components": (2, 2), "dimensions": (4, 4), "C": (1.0,), "patch_side": 0}
    unscored = LabelledSet("stripes", stripes(6), Split(None, None), ("lying", "upright"))
    image_contest.Contest("stripes", unscored, settings, side=40, threads=1).time_fit()
    (figure,) = written["stripes_fit"]
    assert figure.name == "fit time, deep"
    assert 0 < figure.value < 10


def test_contenders_that_are_left_out_keep_their_figures_while_all_else_is_the_same(monkeypatch):
    written = []

    def write(name, figures, **record):
        found = {"figures": [vars(figure) for figure in figures], "details": record["details"]}
        written.append(json.loads(json.dumps(found)))

    settings = {"preset": "small", "C": (1.0, 3.0)}
    data = LabelledSet("stripes", stripes(6), stripes(2), ("lying", "upright"))
    monkeypatch.setattr(image_contest, "write_results", write)
    monkeypatch.setattr(image_contest, "read_results", lambda name: written[-1] if written else None)

    def contest(train, changed=(), **outcomes):
        made = image_contest.Contest("stripes", data._replace(train=train), settings | dict(changed), side=40)
        made._former = image_contest.read_results("stripes")
        made._write({name: Outcome(value, 0.0, 0.0) for name, value in outcomes.items()})
        return {figure["name"]: figure["value"] for figure in written[-1]["figures"]}

    contest(data.train, deep=70.0, ConvNet=60.0)
    again = contest(data.train, deep=71.0)
    assert again == {
        "test accuracy, deep": 71.0,
        "test accuracy, ConvNet": 60.0,
        "test accuracy, best ConvNet": 60.0,
    }
    assert written[-1]["details"]["kept from an earlier run"] == ["test accuracy, ConvNet"]
    contest(data.train, **{"deep": 71.0, "HOG + SVM": 40.0})
    # HOG does not depend on the network's settings; the ConvNet has the seconds of its fit.
    assert contest(data.train, {"C": (3.0,)}, deep=72.0) == {
        "test accuracy, deep": 72.0,
        "test accuracy, HOG + SVM": 40,
    }
    assert contest(stripes(5), deep=50.0) == {"test accuracy, deep": 50.0}


def test_peers_alone_have_the_seconds_of_the_network_that_stands_in_the_file(monkeypatch):
    written = []
    settings = {"preset": "small"}
    former = {
        "command": "python -m benchmarks.stripes --peers 'HOG + SVM' --threads 1",
        "commit": "a" * 40,
        "cpu": "another",
        "date": "2026-01-01T00:00:00+00:00",
        "figures": [vars(Figure("test accuracy, deep", 90.0, "%")), vars(Figure("fit time, deep", 0.005, "min"))],
        "details": {
            "images": {"train": 12, "test": 4},
            "settings": settings,
            "predict seconds": {"deep": 1.0},
            "notes": ["scored once"],
        },
    }
    monkeypatch.setattr(
        image_contest, "write_results", lambda name, figures, **record: written.append((figures, record))
    )
    monkeypatch.setattr(image_contest, "read_results", lambda name: former)
    data = LabelledSet("stripes", stripes(6), stripes(2), ("lying", "upright"))
    alone = {"side": 16, "peers": ("ConvNet",), "threads": 1, "peers_alone": True}
    outcomes = image_contest.Contest("stripes", data, settings, **alone).run()
    assert list(outcomes) == ["ConvNet"]
    assert 0.3 <= outcomes["ConvNet"].fit_seconds < 10
    figures, record = written[-1]
    assert {figure.name for figure in figures} >= {"test accuracy, deep", "fit time, deep", "test accuracy, ConvNet"}
    assert record["command"] == "python -m benchmarks.stripes --peers ConvNet 'HOG + SVM' --threads 1"
    assert record["details"]["predict seconds"].keys() == {"deep", "ConvNet"}
    made = {key: former[key] for key in ("command", "commit", "cpu", "date")}
    assert record["details"]["notes"] == ["scored once", {"what is kept": made}]
    with pytest.raises(ValueError, match=r"no deep network with these settings and images stands in stripes\.json"):
        image_contest.Contest("stripes", data, settings | {"C": (1.0,)}, **alone).run()


def test_hybrids_learn_from_the_encodings_of_the_network_and_of_what_is_pretrained():
    (good, labels), (poor, _), (other, _) = rows_of(0.4, 0), rows_of(0.8, 1), rows_of(0.6, 2)
    split = Split(np.zeros((60, 2, 2), np.uint8), labels)
    contest = image_contest.Contest("stripes", LabelledSet("stripes", split, split, ("a", "b", "c")), {}, side=40)
    outcomes = {
        name: Outcome(class_mean_accuracy(rows.test.argmax(1), labels), 0.0, 0.0, rows=rows)
        for name, rows in {"deep": poor, "linear probe": good, "maps": other}.items()
    }
    contest._hybrids(outcomes, ["linear probe"])
    assert list(outcomes)[3:] == ["hybrid", "hybrid by late fusion"]
    assert min(outcomes[name].accuracy for name in list(outcomes)[3:]) > outcomes["deep"].accuracy + 5
    assert "'linear probe'" in contest.notes[-1]
    contest._hybrids(outcomes, ["linear probe", "maps"])
    assert outcomes["both of pretrained features, without the network"].accuracy > outcomes["maps"].accuracy
