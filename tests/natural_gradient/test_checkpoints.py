"""Checkpoints: exact resume with weights_only=True, plain keys in and out."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.checkpoint import checkpoint

from fisherlayers.natural_gradient import AveragedPlainModel, fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.race import Muon
from natural_gradient.cases_natural_gradient import convolutional, images, layers_of, perceptron, train, vectors

NETWORKS = {"perceptron": (perceptron, vectors), "convolutional": (convolutional, images)}
OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def trained(network="perceptron", optimizer="SGD", steps=7, **options):
    make, data = NETWORKS[network]
    model = reconstruct(make(), **{"refresh_every": 3, "statistics_every": 2} | options)
    built = OPTIMIZERS[optimizer](model)
    train(model, built, *data(), steps)
    return model, built


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_resumes_exactly_by_torchs_distributed_checkpoints(optimizer, model_first):
    model, built = trained(optimizer=optimizer)
    options = StateDictOptions(full_state_dict=True)
    saved = copy.deepcopy(get_state_dict(model, built, options=options))
    fresh = reconstruct(perceptron(seed=9), refresh_every=3, statistics_every=2)
    fresh_optimizer = OPTIMIZERS[optimizer](fresh)
    # Torch fills a fresh optimizer's state by a step with a learning rate of zero.
    if model_first:
        set_model_state_dict(fresh, saved[0], options=options)
    set_optimizer_state_dict(fresh, fresh_optimizer, saved[1], options=options)
    if not model_first:
        set_model_state_dict(fresh, saved[0], options=options)
    assert [fisher_of(layer).steps for layer in layers_of(fresh)] == [7, 7, 7]
    losses = [train(*pair, *vectors(), 6) for pair in ((model, built), (fresh, fresh_optimizer))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rank", [None, 3])
def test_training_resumes_exactly(optimizer, rank):
    model, built = trained(optimizer=optimizer, rank=rank)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": built.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = reconstruct(perceptron(seed=9), rank=rank, refresh_every=3, statistics_every=2)
    fresh_optimizer = OPTIMIZERS[optimizer](fresh)
    fresh.load_state_dict(saved["model"])
    fresh_optimizer.load_state_dict(saved["optimizer"])
    assert train(fresh, fresh_optimizer, *vectors(), 20) == train(model, built, *vectors(), 20)


def test_a_checkpoint_holds_tensors_only():
    model, _ = trained()
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_state_dict_is_that_of_the_folded_model(network):
    model, _ = trained(network)
    exported = plain_state_dict(model)
    again = plain_state_dict(model)
    expected = fold(copy.deepcopy(model)).state_dict()
    assert list(exported) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(exported[key], value)
        assert torch.equal(exported[key], again[key])
    plain = NETWORKS[network][0](seed=9)
    plain.load_state_dict(exported)
    inputs, _ = NETWORKS[network][1]()
    torch.testing.assert_close(plain(inputs), model(inputs))


def test_plain_state_dict_of_a_plain_model_is_its_state_dict():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    exported = plain_state_dict(model)
    assert list(exported) == list(model.state_dict())
    exported["0.weight"].zero_()
    assert model[0].weight.any()


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_keys_load_into_a_reconstructed_model(network):
    make, data = NETWORKS[network]
    model, _ = trained(network)
    inputs, targets = data()
    plain = make(seed=9)
    state = plain.state_dict()
    keys, roots = list(state), [fisher_of(layer).root.dense().clone() for layer in layers_of(model)]
    model.load_state_dict(state)
    assert list(state) == keys  # the caller's dictionary is left alone
    torch.testing.assert_close(model(inputs), plain(inputs))
    for layer, root in zip(layers_of(model), roots, strict=True):
        assert torch.equal(fisher_of(layer).root.dense(), root)
    losses = train(model, OPTIMIZERS["SGD"](model), inputs, targets, 5)
    assert losses[-1] < losses[0]


def test_a_single_layer_loads_without_a_prefix():
    layer, plain = reconstruct(nn.Linear(3, 2)), nn.Linear(3, 2)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)


def test_a_copy_loads_plain_keys_into_itself():
    model, _ = trained()
    duplicate, plain = copy.deepcopy(model), perceptron(seed=9)
    before = model(vectors()[0])
    duplicate.load_state_dict(plain.state_dict())
    torch.testing.assert_close(duplicate(vectors()[0]), plain(vectors()[0]))
    assert torch.equal(model(vectors()[0]), before)


def test_a_plain_weight_alone_leaves_the_plain_bias():
    model, _ = trained()
    bias = model[0].bias.detach().clone()
    model.load_state_dict({"0.weight": torch.ones(9, 7)}, strict=False)
    torch.testing.assert_close(model[0].weight, torch.ones(9, 7))
    torch.testing.assert_close(model[0].bias, bias)


def test_plain_tensors_of_other_shapes_are_all_named_and_the_others_are_loaded():
    model, state = reconstruct(perceptron()), perceptron(seed=9).state_dict()
    wrong = {"0.weight": torch.ones(9, 8), "4.bias": torch.ones(4)}
    with pytest.raises(RuntimeError) as refused:
        model.load_state_dict(state | wrong)
    for line in ("0.weight: (9, 8) in the checkpoint, (9, 7) in the model", "4.bias: (4,) in the checkpoint, (3,)"):
        assert line in str(refused.value)
    torch.testing.assert_close(model[2].weight, state["2.weight"])


def test_a_plain_checkpoint_that_lacks_a_bias_is_refused():
    state = perceptron().state_dict()
    del state["2.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "2.bias"'):
        reconstruct(perceptron()).load_state_dict(state)
    assert reconstruct(perceptron()).load_state_dict(state, strict=False).missing_keys == ["2.bias"]


class Aliased(nn.Module):
    """A layer under two names, and a list that holds one twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 7)
        self.net = nn.Sequential(self.first, nn.Tanh(), nn.Linear(7, 3))
        self.twice = nn.ModuleList([self.net[2], self.net[2]])

    def forward(self, inputs):
        return self.net(inputs)


def test_a_layer_under_several_names_has_keys_under_each():
    model = reconstruct(Aliased(), statistics_every=1, refresh_every=1)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), *vectors(), 3)
    exported, plain = plain_state_dict(model), Aliased()
    assert list(exported) == list(plain.state_dict())
    plain.load_state_dict(exported)
    torch.testing.assert_close(plain(vectors()[0]), model(vectors()[0]))
    again = reconstruct(Aliased())
    again.load_state_dict(exported)
    torch.testing.assert_close(again(vectors()[0]), model(vectors()[0]))


def test_patterns_match_any_name_of_a_layer():
    kept = reconstruct(Aliased(), exclude=["net.0"])
    assert fisher_of(kept.first) is None
    assert fisher_of(kept.net[2]) is not None
    chosen = reconstruct(Aliased(), include=["twice.1"])
    assert fisher_of(chosen.first) is None
    assert fisher_of(chosen.net[2]) is not None


@pytest.mark.parametrize("options", [{}, {"mode": "kronecker"}, {"mode": "unit"}], ids=["input", "kronecker", "unit"])
def test_what_was_seen_before_a_checkpoint_is_loaded_does_not_count(options):
    model, built = trained(steps=2, **options)
    saved = copy.deepcopy((model.state_dict(), built.state_dict()))
    expected = train(model, built, *vectors(), 12)
    for _ in range(2):
        model.load_state_dict(saved[0])
        built.load_state_dict(copy.deepcopy(saved[1]))  # torch shares the tensors
        assert train(model, built, *vectors(), 12) == expected
        model.load_state_dict(saved[0])
        model(100 * vectors()[0]).square().sum().backward()  # no step follows


def test_what_was_seen_before_a_checkpoint_is_loaded_hides_nothing_under_activation_checkpointing():
    model = reconstruct(nn.Linear(6, 3))
    inputs = torch.randn(8, 6).requires_grad_()
    model(inputs)
    model.load_state_dict(model.state_dict())
    # Reentrant: the layer is seen in the backward pass alone.
    checkpoint(model, inputs, use_reentrant=True).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert fisher_of(model).rows == 8


@pytest.mark.parametrize("options", [{}, {"mode": "kronecker"}, {"mode": "unit"}], ids=["input", "kronecker", "unit"])
def test_what_was_seen_in_another_precision_does_not_count(options):
    models = [trained(steps=2, **options) for _ in range(2)]
    models[0][0](100 * vectors()[0]).square().sum().backward()
    models[0][0].float().double()
    models[1][0].float().double()
    first, second = (train(model, built, *vectors(), 12) for model, built in models)
    assert first == second


@pytest.mark.parametrize("options", [{"mode": "kronecker"}, {"block_size": 5}], ids=["kronecker", "blocks"])
def test_plain_weights_lie_as_usual(options):
    model, built = trained("convolutional", **options)
    for value in plain_state_dict(model).values():
        assert value.is_contiguous()
    for parameter in fold(model, built).parameters():
        assert parameter.is_contiguous()


def test_plain_weights_stay_channels_last():
    model, _ = trained("convolutional", mode="kronecker")
    model.to(memory_format=torch.channels_last)
    assert model[0].parametrizations.weight.original.is_contiguous(memory_format=torch.channels_last)
    assert plain_state_dict(model)["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert fold(model)[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        plain_state_dict(3)


def test_foreign_and_missing_keys_are_still_refused():
    state = perceptron().state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nonsense"):
        reconstruct(perceptron()).load_state_dict(state | {"nonsense": torch.ones(1)})
    state.pop("2.weight"), state.pop("2.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*2\.parametrizations"):
        reconstruct(perceptron()).load_state_dict(state)


@pytest.mark.parametrize("first", ["wrapped", "reconstructed"])
def test_keys_of_a_model_whose_activations_are_checkpointed(first):
    checkpoint_wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")

    def wrap(model):
        checkpoint_wrapper.apply_activation_checkpointing(model, check_fn=lambda layer: isinstance(layer, nn.Linear))
        return model

    def options(model):
        return reconstruct(model, refresh_every=1, statistics_every=1)

    model = options(wrap(perceptron())) if first == "wrapped" else wrap(options(perceptron()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, *vectors(), 3)
    average = AveragedPlainModel(model)
    average.update_parameters(model)
    state = plain_state_dict(model)
    assert list(state) == list(perceptron().state_dict())
    assert list(plain_state_dict(checkpoint_wrapper.checkpoint_wrapper(model))) == list(state)
    plain = perceptron(seed=9)
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(vectors()[0]), model(vectors()[0]))
    for name, value in average.module.state_dict().items():
        assert torch.equal(value, state[name])
    other = wrap(reconstruct(perceptron(seed=8)))
    other.load_state_dict(state)
    torch.testing.assert_close(other(vectors()[0]), model(vectors()[0]))


def wide():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


SETTINGS = {
    "low rank": {"rank": 2},
    "dense": {"rank": None},
    "kronecker": {"mode": "kronecker", "rank": None},
    "unit": {"mode": "unit"},
    "blocks": {"block_size": 3, "rank": None},
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("own", SETTINGS)
@pytest.mark.parametrize("other", SETTINGS)
def test_coordinates_of_other_settings_are_refused_and_leave_the_function(own, other, strict):
    inputs, labels = torch.randn(32, 6), torch.arange(32) % 3
    models = [reconstruct(wide(), **SETTINGS[name]) for name in (own, other)]
    for model in models:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs, labels, 3)
    model, saved = models[0], models[1].state_dict()
    if own == other:
        model.load_state_dict(saved, strict=strict)
        assert torch.equal(model(inputs), models[1](inputs))
        return
    weight = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"0\.weight: the checkpoint has .*, the model .*plain_state_dict"):
        model.load_state_dict(saved, strict=strict)
    assert torch.equal(model[0].weight, weight)
    model.load_state_dict(plain_state_dict(models[1]), strict=strict)
    torch.testing.assert_close(model(inputs), models[1](inputs))


@pytest.mark.parametrize("lost", ["original", "0.root.matrix", "0.mean"])
def test_a_weight_without_its_root_is_refused_and_whole_layers_may_be_left_out(lost):
    saved = trained(rank=None)[0].state_dict()
    model = reconstruct(perceptron(seed=9), rank=None)
    before = layers_of(model)[0].weight.detach().clone()
    part = {key: value for key, value in saved.items() if not key.startswith("0.")}
    model.load_state_dict(part, strict=False)
    assert torch.equal(layers_of(model)[0].weight, before)
    del saved[f"0.parametrizations.weight.{lost}"]
    with pytest.raises(RuntimeError, match=r"0\.weight: the checkpoint has .* or is not whole"):
        model.load_state_dict(saved, strict=False)


def two_optimizers(model):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    return [Muon(matrices, lr=0.01), torch.optim.AdamW(others, lr=0.01)]


def one_optimizer_a_kind(model):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    return [torch.optim.SGD(parameters, lr=0.01, momentum=0.9) for parameters in (matrices, others)]


class Wrapped(torch.optim.Optimizer):
    """Shows what another optimizer holds, as accelerate's does."""

    def __init__(self, inner):
        self.inner = inner

    state = property(lambda self: self.inner.state)
    param_groups = property(lambda self: self.inner.param_groups)


@pytest.mark.parametrize("mode", ["input", "kronecker"])
@pytest.mark.parametrize("make", [two_optimizers, one_optimizer_a_kind])
def test_two_optimizers_resume_exactly_at_every_step(make, mode):
    inputs, labels = vectors()

    def step(model, optimizers):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    model = reconstruct(perceptron(), mode=mode, refresh_every=4, statistics_every=2)
    optimizers, states, losses = make(model), [], []
    for _ in range(14):
        states.append(copy.deepcopy((model.state_dict(), [optimizer.state_dict() for optimizer in optimizers])))
        losses.append(step(model, optimizers))
    for start, (weights, momenta) in enumerate(states[:10]):
        fresh = reconstruct(perceptron(seed=9), mode=mode, refresh_every=4, statistics_every=2)
        fresh_optimizers = make(fresh)
        wrappers = [Wrapped(optimizer) for optimizer in fresh_optimizers]
        fresh.load_state_dict(weights)
        for optimizer, momentum in zip(fresh_optimizers, momenta, strict=True):
            optimizer.load_state_dict(momentum)
        assert [step(fresh, fresh_optimizers) for _ in range(4)] == losses[start : start + 4]
        del wrappers


def test_a_bias_that_was_frozen_before_the_restart_stays_as_well():
    inputs, labels = vectors()

    def frozen(model):
        model[0].parametrizations.bias.original.requires_grad_(False)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = frozen(trained(steps=8, refresh_every=6, statistics_every=6)[0])
    fresh, fresh_optimizer = frozen(reconstruct(perceptron(seed=9), refresh_every=6, statistics_every=6))
    fresh.load_state_dict(model.state_dict())
    bias = model[0].bias.detach().clone()
    losses = [train(*pair, inputs, labels, 4) for pair in ((model, optimizer), (fresh, fresh_optimizer))]
    assert losses[0] == losses[1]
    torch.testing.assert_close(fresh[0].bias, bias, rtol=0, atol=1e-5)


def test_counters_of_former_releases_load():
    model, _ = trained()
    fresh = reconstruct(perceptron(seed=9), refresh_every=3, statistics_every=2)
    fresh.load_state_dict({
        key: value[:3] if key.endswith("extra_state") else value for key, value in model.state_dict().items()
    })
    assert [fisher_of(layer).steps for layer in layers_of(fresh)] == [7] * 3
