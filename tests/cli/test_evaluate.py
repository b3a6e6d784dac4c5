"""``evaluate`` through the command line, and its rates against scikit-learn's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from cli.pictures import write_folder
from fisherlayers.cli.evaluate import compare


def test_a_good_model_in_json(run, fitted, load_json):
    result = run("evaluate", fitted.model, fitted.test, "--json")
    assert result.code == 0
    evaluation = load_json(result.out)
    assert evaluation["images"] == 12
    assert evaluation["accuracy"] == evaluation["class_mean_accuracy"] == 1
    assert evaluation["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert [entry["name"] for entry in evaluation["classes"]] == ["leaning", "lying", "upright"]


def test_the_tables(run, fitted):
    result = run("evaluate", fitted.model, fitted.test)
    assert result.code == 0
    assert "accuracy             100.0 %" in result.out
    assert "class-mean accuracy  100.0 %" in result.out
    assert "2. lying" in result.out


def test_wrong_labels_lower_the_accuracy(run, fitted, tmp_path, load_json):
    rows = [(fitted.test / "lying" / f"{number}.png", "lying" if number else "upright") for number in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(f"{path},{label}" for path, label in rows))
    evaluation = load_json(run("evaluate", fitted.model, tmp_path / "t.csv", "--json").out)
    assert evaluation["accuracy"] == 0.75
    assert evaluation["class_mean_accuracy"] == 0.5
    assert evaluation["classes"][2]["most_confused_with"] == "lying"


def test_a_single_class_can_be_evaluated(run, fitted, tmp_path, load_json):
    root = write_folder(tmp_path / "p", per_class=1, classes=("upright",))
    evaluation = load_json(run("evaluate", fitted.model, root, "--json").out)
    assert evaluation["images"] == evaluation["accuracy"] == 1
    assert evaluation["classes"][0]["recall"] is None


def test_labels_that_the_model_does_not_know(refused, fitted, tmp_path):
    (tmp_path / "t.csv").write_text(f"{fitted.test}/lying/0.png,sideways\n{fitted.test}/lying/1.png,lying\n")
    message = refused("evaluate", fitted.model, tmp_path / "t.csv")
    assert "labels that the model does not know: sideways; it knows leaning, lying, upright" in message


def test_many_unknown_labels_are_counted(refused, fitted, tmp_path):
    rows = [f"{fitted.test}/lying/{number % 4}.png,{number}" for number in range(4)]
    rows += [f"{fitted.test}/upright/{number % 4}.png,{number + 4}" for number in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    assert "0, 1, 2, 3, 4 and 3 more; it knows" in refused("evaluate", fitted.model, tmp_path / "t.csv")


def test_unreadable_images(run, refused, fitted, tmp_path, load_json):
    root = write_folder(tmp_path / "p", per_class=1)
    (root / "lying" / "bad.png").touch()
    assert "bad.png: it is empty" in refused("evaluate", fitted.model, root)
    result = run("evaluate", fitted.model, root, "--skip-unreadable", "--json")
    assert load_json(result.out)["images"] == 3
    assert "left out: " in result.err


CLASSES = ["a", "b", "c", "d"]


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1))
def test_rates_are_those_of_scikit_learn(pairs):
    actual, predicted = (list(side) for side in zip(*pairs, strict=True))
    evaluation = compare(actual, predicted, CLASSES)
    confusion = metrics.confusion_matrix(actual, predicted, labels=CLASSES)
    assert evaluation.confusion == confusion.tolist()
    assert evaluation.accuracy == pytest.approx(metrics.accuracy_score(actual, predicted))
    present = sorted(set(actual))
    precision, recall, _, counts = metrics.precision_recall_fscore_support(
        actual, predicted, labels=CLASSES, zero_division=math.nan
    )
    assert [rate.images for rate in evaluation.classes] == counts.tolist()
    assert [math.nan if rate.recall is None else rate.recall for rate in evaluation.classes] == pytest.approx(
        recall, nan_ok=True
    )
    assert [math.nan if rate.precision is None else rate.precision for rate in evaluation.classes] == pytest.approx(
        precision, nan_ok=True
    )
    mean = sum(recall[CLASSES.index(name)] for name in present) / len(present)
    assert evaluation.class_mean_accuracy == pytest.approx(mean)


def test_most_confused_with():
    evaluation = compare(["a", "a", "a", "a", "b"], ["a", "c", "c", "b", "b"], CLASSES)
    assert [rate.most_confused_with for rate in evaluation.classes] == ["c", None, None, None]
