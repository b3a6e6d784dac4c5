"""Averages over the training of a reconstructed model are those of W and b."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fisherlayers import AveragedPlainModel, fold, plain_state_dict, reconstruct
from natural_gradient.cases_natural_gradient import perceptron, train, vectors

EMA = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}


def reconstructed(**options):
    model = reconstruct(perceptron(), statistics_every=1, refresh_every=1, **options)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_a_model_that_stays_is_its_own_average():
    model, _ = reconstructed()
    before, average = plain_state_dict(model), AveragedPlainModel(model, **EMA)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs, targets = vectors()
    for scale in (1.0, 0.1, 3.0, 0.5):  # new coordinates at every step
        train(model, still, inputs * scale, targets, 1)
        average.update_parameters(model)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["input", "kronecker"])
@pytest.mark.parametrize("options", [{}, EMA, {"use_buffers": True}], ids=["mean", "EMA", "buffers"])
def test_the_average_is_that_of_the_plain_weights(options, mode):
    model, optimizer = reconstructed(mode=mode)
    average, plain = AveragedPlainModel(model, **options), perceptron()
    plain.load_state_dict(plain_state_dict(model))
    expected = AveragedModel(plain, **options)
    for _ in range(6):
        train(model, optimizer, *vectors(), 1)
        average.update_parameters(model)
        plain.load_state_dict(fold(copy.deepcopy(model)).state_dict())
        expected.update_parameters(plain)
    assert list(average.state_dict()) == list(expected.state_dict())
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])
    assert torch.equal(average(vectors()[0]), average.module(vectors()[0]))


def test_training_does_not_move_it_and_copies_go_on():
    model, optimizer = reconstructed()
    average = AveragedPlainModel(model)  # torch's function for an EMA cannot be pickled
    train(model, optimizer, *vectors(), 2)
    average.update_parameters(model)
    outputs = average(vectors()[0])
    train(model, optimizer, *vectors(), 1)
    assert torch.equal(average(vectors()[0]), outputs)
    others = copy.deepcopy(average), pickle.loads(pickle.dumps(average))
    for each in (average, *others):
        each.update_parameters(model)
    for other in others:
        assert torch.equal(other(vectors()[0]), average(vectors()[0]))
    assert not torch.equal(average(vectors()[0]), outputs)


def test_normalisation_is_brought_up_to_date_as_torch_does_it():
    torch.manual_seed(0)
    model = reconstruct(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    average = AveragedPlainModel(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), *vectors(), 3)
    average.update_parameters(model)
    update_bn([vectors()[0]], average)
    torch.testing.assert_close(average.module[1].running_mean, average.module[0](vectors()[0]).mean(0))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_buffers_that_no_checkpoint_holds_are_taken_over_too(use_buffers):
    model = reconstruct(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)))
    plain = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    for each in (model, plain):
        each[1].register_buffer("scale", torch.ones(2), persistent=False)
    average = AveragedPlainModel(model, use_buffers=use_buffers)
    expected = AveragedModel(plain, use_buffers=use_buffers)
    for value in (3.0, 5.0):
        for each, its in ((model, average), (plain, expected)):
            each[1].scale.fill_(value)
            its.update_parameters(each)
    assert torch.equal(average.module[1].scale, expected.module[1].scale)
    assert average.module[1].scale[0] > 1


def test_a_plain_model_is_averaged_as_ever_and_nothing_else_is():
    model = perceptron()
    average = AveragedPlainModel(model)
    average.update_parameters(model)
    assert torch.equal(average(vectors()[0]), model(vectors()[0]))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        AveragedPlainModel(3)
