import itertools

import numpy as np
import pytest
import torch

from fisherlayers.data import DataNotFoundError, TrainTest
from fisherlayers.race import TASKS, Examples, load_task
from fisherlayers.race.tasks.image_tasks import held_out
from fisherlayers.race.tasks.task import accuracy, cross_entropy, explained_variance, pixel_cross_entropy
from fisherlayers.race.tasks.text_tasks import windows
from race.small_task import small_task


def test_batches_visit_every_example_once_an_epoch_in_a_new_order():
    task = small_task()
    batches = list(itertools.islice(task.batches(0), 10))
    epochs = [torch.cat([batch.inputs for batch in batches[:5]]), torch.cat([batch.inputs for batch in batches[5:]])]
    for epoch in epochs:
        assert {tuple(row) for row in epoch.tolist()} == {tuple(row) for row in task.train.inputs.tolist()}
    assert not torch.equal(*epochs)


def test_batches_depend_on_the_seed_only():
    first, again, other = (next(small_task().batches(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)


def test_inputs_stay_with_their_targets():
    task = small_task()
    batch = next(task.batches(0))
    rows = task.train.inputs.tolist()
    expected = torch.stack([task.train.targets[rows.index(row)] for row in batch.inputs.tolist()])
    assert torch.equal(batch.targets, expected)


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert len(next(small_task(batch_size=1000).batches(0)).inputs) == 40


def test_evaluation_size_limits_the_training_examples_that_are_evaluated():
    task = small_task(evaluation_size=7)
    assert torch.equal(task.evaluated_train().inputs, task.train.inputs[:7])
    assert len(small_task().evaluated_train().targets) == 40


def test_accuracy_is_in_percent():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 75


def test_cross_entropy_is_a_mean_over_all_tokens():
    torch.manual_seed(0)
    outputs, targets = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    picked = [outputs[n, t].log_softmax(0)[targets[n, t]] for n in range(3) for t in range(4)]
    torch.testing.assert_close(cross_entropy(outputs, targets), -torch.stack(picked).mean())
    assert accuracy(outputs, outputs.argmax(2)) == 100


def test_pixel_cross_entropy_sums_over_pixels_and_explained_variance_compares_with_the_mean_image():
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 3), torch.rand(6, 3)
    share = outputs.sigmoid()
    expected = -(targets * share.log() + (1 - targets) * (1 - share).log()).sum(1).mean()
    torch.testing.assert_close(pixel_cross_entropy(outputs, targets), expected)
    assert explained_variance(targets.logit(), targets) == pytest.approx(100, abs=1e-3)
    assert explained_variance(targets.mean(0).logit().expand(6, 3), targets) == pytest.approx(0, abs=1e-3)


def test_windows_touch_and_their_targets_are_one_token_further():
    inputs, targets = windows(np.arange(11), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert torch.equal(targets, inputs + 1)


def test_held_out_images_are_no_training_images_and_channels_come_first():
    images = np.arange(20 * 2 * 2 * 3, dtype=np.uint8).reshape(20, 2, 2, 3)
    data = TrainTest(images, np.arange(20), images[:0], np.zeros(0, int), [])
    train, validation = held_out(data, count=4)
    assert train.inputs.shape == (16, 3, 2, 2)
    assert sorted([*train.targets.tolist(), *validation.targets.tolist()]) == list(range(20))
    for example, label in zip(validation.inputs, validation.targets, strict=True):
        torch.testing.assert_close(example, torch.tensor(images[label]).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("name", ["cifar10", "ptb", "shakespeare", "mnist"])
def test_data_that_is_not_there_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FISHERLAYERS_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="is not on this machine"):
        load_task(name)


def test_validation_size_limits_the_validation_examples_that_are_evaluated():
    task = small_task(validation_size=5)
    assert torch.equal(task.evaluated_validation().inputs, task.validation.inputs[:5])
    assert len(small_task().evaluated_validation().targets) == 20


def test_digits_are_split_by_class_without_overlap():
    task = load_task("digits")
    assert (len(task.train.inputs), len(task.validation.inputs)) == (1437, 360)
    assert task.train.inputs.min() == 0
    assert task.train.inputs.max() == 1
    shares = [torch.bincount(split.targets) / len(split.targets) for split in (task.train, task.validation)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    assert task.make_model()(task.validation.inputs).shape == (360, 10)


def test_an_unknown_task_is_refused_by_name():
    assert "digits" in TASKS
    with pytest.raises(ValueError, match=r"task must be one of .*'digits'.*got 'mnist5'"):
        load_task("mnist5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": Examples(torch.ones(3, 5), torch.ones(2, 2))}, "train must hold examples.*3 inputs and 2 targets"),
        ({"validation": Examples(torch.ones(0, 5), torch.ones(0, 2))}, "validation must hold examples"),
        ({"train": (torch.ones(3, 5), torch.ones(3, 2))}, r"train must be Examples\(inputs, targets\), .*; got tuple"),
        ({"validation": Examples([[1.0]], [1])}, r"validation must be Examples\(inputs, targets\), two tensors"),
        ({"make_model": torch.nn.Linear(5, 2)}, "make_model must be a function .*; got Linear"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1; got 2.5"),
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"loss_scale": 0.0}, "loss_scale must be a finite number of more than 0"),
        ({"evaluation_size": 0}, "evaluation_size must be a whole number of at least 1"),
        ({"validation_size": -1}, "validation_size must be a whole number of at least 1"),
    ],
)
def test_a_task_that_cannot_be_raced_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_task(**changes)
