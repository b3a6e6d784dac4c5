"""The contract of reconstruct and fold: what stays, what is left alone, what is refused."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import fold, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights
from natural_gradient.cases_natural_gradient import (
    convolutional,
    images,
    layers_of,
    perceptron,
    rows_of,
    train,
    vectors,
)

EVERY_STEP = {"refresh_every": 1, "statistics_every": 1}
NETWORKS = {"perceptron": (perceptron, vectors), "convolutional": (convolutional, images)}
RANKS = [None, 2, "auto"]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def test_reconstruct_returns_the_same_model_with_the_same_parameters_and_function():
    model, (inputs, _) = perceptron(), vectors()
    parameters, before = list(model.parameters()), model(inputs)
    assert reconstruct(model) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert isinstance(model[0], nn.Linear)
    assert torch.equal(model(inputs), before)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rank", RANKS)
def test_refresh_moves_neither_outputs_nor_plain_gradients(network, rank):
    make, data = NETWORKS[network]
    model, (inputs, targets) = reconstruct(make(), rank=rank), data()
    train(model, sgd(model), inputs, targets, 3)
    functional.cross_entropy(model(3 * inputs), targets).backward()  # new statistics to come
    before, weights = model(inputs), [layer.weight.detach().clone() for layer in layers_of(model)]
    roots = [fisher_of(layer).root.dense().clone() for layer in layers_of(model)]
    for layer in layers_of(model):
        fisher_of(layer).observe(rows_of(layer, torch.randn_like(fisher_inputs(layer))))
    refresh(model)
    torch.testing.assert_close(model(inputs), before)
    for layer, weight, root in zip(layers_of(model), weights, roots, strict=True):
        torch.testing.assert_close(layer.weight, weight)
        assert not torch.allclose(fisher_of(layer).root.dense(), root)


def fisher_inputs(layer):
    """An input of the right shape for a layer."""
    if isinstance(layer, nn.Linear):
        return torch.zeros(16, layer.in_features)
    return torch.zeros(4, layer.in_channels, 8, 8)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rank", RANKS)
def test_fold_gives_the_plain_model_back(network, rank):
    make, data = NETWORKS[network]
    plain, (inputs, targets) = make(), data()
    model = copy.deepcopy(plain)
    parameters = list(model.parameters())
    optimizer = sgd(reconstruct(model, rank=rank, **EVERY_STEP))
    train(model, optimizer, inputs, targets, 5)
    before = model(inputs)
    assert fold(model, optimizer) is model
    torch.testing.assert_close(model(inputs), before)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert all(not module._forward_pre_hooks and not module._load_state_dict_pre_hooks for module in model.modules())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(inputs), before)


def test_a_folded_model_trains_on_as_a_plain_one():
    model, (inputs, targets) = perceptron(), vectors()
    optimizer = sgd(reconstruct(model, **EVERY_STEP))
    train(model, optimizer, inputs, targets, 5)
    fold(model, optimizer)
    plain = copy.deepcopy(model)
    plain_optimizer = sgd(plain)
    plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, inputs, targets, 5) == train(plain, plain_optimizer, inputs, targets, 5)


def test_fold_and_reconstruct_again_continue_the_trajectory():
    # With a frozen information (decay 1 and the same batch) the coordinates come back, and with them everything.
    inputs, targets = vectors()
    losses = []
    for interrupted in (False, True):
        model = reconstruct(perceptron(), decay=1.0, refresh_every=1000)
        optimizer = sgd(model)
        first = train(model, optimizer, inputs, targets, 5)
        if interrupted:
            information = [copy.deepcopy(fisher_of(layer).state_dict()) for layer in layers_of(model)]
            fold(model, optimizer)
            reconstruct(model, decay=1.0, refresh_every=1000)
            for layer, state in zip(layers_of(model), information, strict=True):
                keep = {key: value for key, value in state.items() if key.startswith(("information", "origin", "_"))}
                fisher_of(layer).load_state_dict(keep, strict=False)
            refresh(model, optimizer)
            for layer in layers_of(model):
                fisher_of(layer).refreshed_at = 4
        losses.append(first + train(model, optimizer, inputs, targets, 5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_an_optimizer_built_before_is_one_built_after():
    inputs, targets = vectors()
    before, after = perceptron(), perceptron()
    early = sgd(before)
    reconstruct(before, **EVERY_STEP)
    late = sgd(reconstruct(after, **EVERY_STEP))
    assert train(before, early, inputs, targets, 10) == train(after, late, inputs, targets, 10)


def test_fold_of_a_plain_model_changes_nothing():
    model, (inputs, _) = perceptron(), vectors()
    before = model(inputs)
    assert torch.equal(fold(model)(inputs), before)


@pytest.mark.parametrize("first", ["weight", "bias"])
def test_assigning_sets_the_plain_value_and_leaves_the_other(first):
    model, (inputs, targets) = reconstruct(perceptron(), **EVERY_STEP), vectors()
    train(model, sgd(model), inputs, targets, 3)
    values = {"weight": torch.randn(9, 7), "bias": torch.randn(9)}
    second = "bias" if first == "weight" else "weight"
    kept = getattr(model[0], second).detach().clone()
    setattr(model[0], first, values[first])
    torch.testing.assert_close(getattr(model[0], first), values[first])
    torch.testing.assert_close(getattr(model[0], second), kept)
    setattr(model[0], second, values[second])
    torch.testing.assert_close(model[0](inputs), inputs @ values["weight"].T + values["bias"])


class TestWhatIsLeftAlone:
    def test_other_parametric_layers_are_named_in_one_warning(self):
        model = nn.Sequential(nn.Embedding(5, 4), nn.PReLU(), nn.LayerNorm(3), nn.Linear(3, 2))
        with pytest.warns(UserWarning, match=r"left alone, trained as before: 0 \(Embedding\), 1 \(PReLU\)$") as caught:
            reconstruct(model)
        assert len(caught) == 1

    def test_norm_layers_are_passed_over_silently(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reconstruct(model)

    def test_parametrized_weights(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        nn.utils.parametrizations.weight_norm(model[0])
        with pytest.warns(UserWarning, match=r"0 \(ParametrizedLinear, parametrized\)$"):
            reconstruct(model)
        assert [fisher_of(layer) is not None for layer in model] == [False, True]

    def test_include_and_exclude_choose_by_name(self):
        model = nn.ModuleDict({"body": perceptron(), "head": nn.Linear(3, 2)})
        reconstruct(model, include=["body*"], exclude=["*.2"])
        chosen = [name for name, module in model.named_modules() if fisher_of(module) is not None]
        assert chosen == ["body.0", "body.4"]


def test_numpys_numbers_are_settings():
    given = {"damping": 2.0, "output_damping": 4.0, "trust_region": 0.5, "decay": 0.5, "rank": 3, "refresh_every": 7}
    other = {name: (np.int64 if isinstance(value, int) else np.float32)(value) for name, value in given.items()}
    torch.manual_seed(0)
    first = reconstruct(perceptron(), mode="kronecker", statistics_every=2, **given)
    torch.manual_seed(0)
    second = reconstruct(perceptron(), mode="kronecker", statistics_every=np.int32(2), **other)
    fishers = [list(fisher_weights(model)) for model in (first, second)]
    for one, two in zip(*fishers, strict=True):
        assert one.settings == two.settings
        assert list(map(type, one.settings)) == list(map(type, two.settings))
        assert one.root.basis.shape == two.root.basis.shape


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"damping": 0.0}, "damping must be positive and finite"),
            ({"damping": float("nan")}, "damping must be positive and finite"),
            ({"damping": None}, "damping must be positive and finite .* or 'auto', got None"),
            ({"damping": "large"}, "damping must be positive and finite .* or 'auto', got 'large'"),
            ({"mode": "kronecker", "output_damping": "auto"}, "output_damping must be positive .* or None, got 'auto'"),
            ({"decay": 1.5}, r"decay must lie in \[0, 1\]"),
            ({"refresh_every": 0}, "refresh_every must be a whole number"),
            ({"refresh_every": 2.5}, "refresh_every must be a whole number"),
            ({"statistics_every": -1}, "statistics_every must be a whole number"),
            ({"rank": 0}, "rank must be a whole number"),
            ({"rank": "full"}, "rank must be a whole number"),
            ({"mode": "exact"}, r"mode must be 'input', 'unit' or 'kronecker', got 'exact' .*ExactNaturalGradient"),
            ({"include": ["nothing"]}, "include: the pattern 'nothing' matches no module"),
            ({"exclude": ["nothing"]}, "exclude: the pattern 'nothing' matches no module"),
            ({"exclude": "0"}, "exclude must be a sequence of patterns"),
            ({"exclude": [0]}, "exclude holds patterns of module names and classes of modules, got 0"),
            ({"exclude": ["*"]}, "no layer to reconstruct"),
        ],
    )
    def test_arguments_out_of_range(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            reconstruct(perceptron(), **arguments)

    def test_a_model_that_is_none(self):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
            reconstruct([nn.Linear(2, 2)])

    def test_a_model_without_layers(self):
        with pytest.raises(ValueError, match="no layer to reconstruct"):
            reconstruct(nn.ReLU())

    def test_a_model_reconstructed_already(self):
        with pytest.raises(ValueError, match=r"reconstructed already \(layer '0'\): call fold"):
            reconstruct(reconstruct(perceptron()))

    def test_a_lazy_layer(self):
        with pytest.raises(ValueError, match="'0' has no weights yet: run one forward pass"):
            reconstruct(nn.Sequential(nn.LazyLinear(3)))

    def test_refresh_of_a_plain_model(self):
        with pytest.raises(ValueError, match="not reconstructed"):
            refresh(perceptron())


def test_no_model_is_kept_alive():
    model, (inputs, targets) = reconstruct(perceptron()), vectors()
    train(model, sgd(model), inputs, targets, 2)
    gone = weakref.ref(model[0])
    del model
    gc.collect()
    assert gone() is None


def test_what_hangs_on_the_gradients_of_the_parameters_stays():
    model, (inputs, targets) = convolutional().to(memory_format=torch.channels_last), images()
    # Where DistributedDataParallel has its hooks; the node lives as long as somebody holds it.
    nodes = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    seen = []
    for index, node in enumerate(nodes):
        node.register_hook(lambda *_, index=index: seen.append(index))
    lying = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    optimizer = sgd(model)
    for action in (lambda: reconstruct(model, **EVERY_STEP), lambda: fold(model, optimizer)):
        action()
        seen.clear()
        train(model, optimizer, inputs, targets, 1)
        assert sorted(seen) == list(range(len(nodes)))
        assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == lying


def test_fold_takes_in_a_parametrization_on_top():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, (inputs, targets) = perceptron(), vectors()
    reconstruct(model, **EVERY_STEP)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    train(model, sgd(model), inputs, targets, 3)
    parameters, outputs = list(model.parameters()), model(inputs)
    torch.testing.assert_close(fold(model)(inputs), outputs)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
