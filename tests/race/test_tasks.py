import itertools

import pytest
import torch

from fisherlayers.race import TASKS, load_task
from fisherlayers.race.tasks import accuracy, multilayer_perceptron
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


def test_multilayer_perceptron_has_relu_between_its_layers():
    model = multilayer_perceptron([4, 3, 2])
    assert [type(layer).__name__ for layer in model] == ["Flatten", "Linear", "ReLU", "Linear"]
    x = torch.randn(6, 2, 2)
    expected = model[3](model[1](x.reshape(6, 4)).clamp(min=0))
    torch.testing.assert_close(model(x), expected)


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
