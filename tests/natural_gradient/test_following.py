"""Following the training loop: which batches count, which steps tick, which are ignored."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.readers import originals
from natural_gradient.cases_natural_gradient import layers_of, perceptron, train, vectors


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def counts(model):
    """Inputs that each layer has seen, whether a step has entered them into its information or not (with decay 1)."""
    for layer in layers_of(model):
        fisher_of(layer).absorb()
    return [float(fisher_of(layer).information.count) for layer in layers_of(model)]


def test_statistics_are_the_covariance_of_what_the_layer_saw():
    model, (inputs, targets) = reconstruct(perceptron(), decay=1.0, statistics_every=1), vectors()
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), inputs, targets, 3)
    fisher = fisher_of(model[2])
    seen = model[1](model[0](inputs)).detach()
    moment, origin = fisher.information.value(), fisher.origin
    torch.testing.assert_close(origin + moment[-1, :-1], seen.mean(0))
    shifted = seen - origin
    torch.testing.assert_close(moment[:-1, :-1], shifted.T @ shifted / len(seen))
    torch.testing.assert_close(fisher.mean, seen.mean(0))


def test_observed_and_refreshed_in_turn():
    model, (inputs, targets) = reconstruct(perceptron(), decay=1.0, statistics_every=2, refresh_every=3), vectors()
    optimizer, fisher, observed, refreshed = sgd(model), fisher_of(model[0]), [], []
    for step in range(15):
        before = fisher.information.count.clone()
        train(model, optimizer, inputs, targets, 1)
        observed += [step] if fisher.information.count > before else []
        refreshed += [step] if fisher.refreshed_at == step else []
    # At first 0, 1, 2, 4, ...; then every second and every third step. A refresh without news waits for them.
    assert observed == [0, 1, 2, 4, 6, 8, 10, 12, 14]
    assert refreshed == [0, 1, 2, 4, 7, 10, 13]


def test_only_training_passes_with_gradients_count():
    model, (inputs, _) = reconstruct(perceptron(), decay=1.0, statistics_every=1), vectors()
    with torch.no_grad():
        model(inputs)
    model.eval()
    model(inputs)
    assert counts(model) == [0.0, 0.0, 0.0]
    model.train()
    model(inputs)
    assert counts(model) == [64.0, 64.0, 64.0]


def test_accumulated_chunks_are_one_big_batch():
    inputs, targets = vectors()
    losses = []
    for chunks in (1, 4):
        model = reconstruct(perceptron(), decay=0.5, statistics_every=1, refresh_every=2)
        # The origin is the first chunk's mean: a shift that the coordinates do not depend on.
        optimizer = sgd(model)
        for _ in range(12):
            optimizer.zero_grad()
            for part, labels in zip(inputs.chunk(chunks), targets.chunk(chunks), strict=True):
                (functional.cross_entropy(model(part), labels) / chunks).backward()
            optimizer.step()
        losses.append(functional.cross_entropy(model(inputs), targets).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_a_layer_used_twice_counts_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs):
            return self.layer(self.layer(inputs).tanh())

    model = reconstruct(Twice(), decay=1.0)
    model(torch.randn(10, 4))
    assert counts(model) == [20.0]


def test_inputs_by_keyword_are_seen():
    layer = reconstruct(nn.Linear(4, 2), decay=1.0)
    layer(input=torch.randn(10, 4))
    assert counts(layer) == [10.0]


def test_a_frozen_layer_stays_bit_by_bit():
    model, (inputs, targets) = perceptron(), vectors()
    model[2].requires_grad_(False)
    before = copy.deepcopy(model[2])
    reconstruct(model, statistics_every=1, refresh_every=1)
    train(model, sgd(model), inputs, targets, 5)
    assert torch.equal(model[2].weight, before.weight)
    assert torch.equal(model[2].bias, before.bias)
    assert fisher_of(model[2]).refreshed_at < 0 <= fisher_of(model[0]).refreshed_at


def test_a_frozen_bias_stays_and_its_layer_is_not_centred():
    model, (inputs, targets) = perceptron(), vectors()
    model[2].bias.requires_grad_(False)
    before = model[2].bias.detach().clone()
    reconstruct(model, statistics_every=1, refresh_every=1)
    train(model, sgd(model), inputs, targets, 5)
    assert torch.equal(model[2].bias, before)
    assert not fisher_of(model[2]).mean.any()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_bias_that_is_frozen_later_stays_from_the_next_step_on(restarted):
    model, (inputs, targets) = reconstruct(perceptron(), statistics_every=1, refresh_every=20), vectors()
    optimizer = sgd(model)
    train(model, optimizer, inputs, targets, 17)
    if restarted:
        saved = model.state_dict(), optimizer.state_dict()
        model = reconstruct(perceptron(), statistics_every=1, refresh_every=20)
        optimizer = sgd(model)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    originals(model[2])[1].requires_grad_(False)
    before, weight = model[2].bias.detach().clone(), model[2].weight.detach().clone()
    assert fisher_of(model[2]).mean.any()
    train(model, optimizer, inputs, targets, 3)
    torch.testing.assert_close(model[2].bias, before, rtol=1e-12, atol=1e-12)
    assert not torch.equal(model[2].weight, weight)
    assert not fisher_of(model[2]).mean.any()
    assert fisher_of(model[0]).refreshed_at == 16  # the others keep their turns


@pytest.mark.parametrize("case", ["evaluation", "weights read", "torch.func"])
def test_training_that_no_layer_can_follow_is_pointed_out_once(case):
    model, (inputs, targets) = reconstruct(perceptron()), vectors()
    model.train(case != "evaluation")
    optimizer = sgd(model)

    def by_reading(x):
        for layer in model:
            x = functional.linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def by_transform(parameters):
        return functional.cross_entropy(torch.func.functional_call(model, parameters, inputs), targets)

    def steps(number):
        for _ in range(number):
            optimizer.zero_grad()
            if case == "torch.func":
                parameters = dict(model.named_parameters())
                for name, gradient in torch.func.grad(by_transform)(parameters).items():
                    parameters[name].grad = gradient
            else:
                outputs = by_reading(inputs) if case == "weights read" else model(inputs)
                functional.cross_entropy(outputs, targets).backward()
            optimizer.step()

    steps(10)  # without a word
    with pytest.warns(UserWarning, match=r"3 of 3 reconstructed weights \(Linear\) have taken 10 steps, and no input"):
        steps(1)
    steps(5)


def test_layers_that_take_no_steps_are_not_pointed_out():
    model, (inputs, targets) = perceptron(), vectors()
    model[0].requires_grad_(False)
    model.append(nn.Linear(3, 3))  # never called
    reconstruct(model)
    optimizer = sgd(model)
    for _ in range(15):
        optimizer.zero_grad()
        functional.cross_entropy(model[:5](inputs), targets).backward()
        optimizer.step()


def test_a_step_that_the_grad_scaler_skips_does_not_tick():
    model, (inputs, targets) = reconstruct(perceptron(), statistics_every=1, refresh_every=1), vectors()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    for spoiled in (False, True, False):
        optimizer.zero_grad()
        loss = scaler.scale(functional.cross_entropy(model(inputs), targets))
        (loss * float("inf") if spoiled else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert fisher_of(model[0]).steps == 2


def test_a_closure_works_as_a_loop_does():
    inputs, targets = vectors()
    model = reconstruct(perceptron(), statistics_every=1, refresh_every=1)
    optimizer = sgd(model)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.95 * losses[0]
    assert fisher_of(model[0]).refreshed_at == 19


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_a_batch_that_is_not_finite_is_passed_over(value):
    layer = reconstruct(nn.Linear(4, 2), decay=1.0)
    layer(torch.full((3, 4), value))
    assert counts(layer) == [0.0]


def test_an_empty_batch_is_passed_over():
    layer = reconstruct(nn.Linear(4, 2), decay=1.0)
    layer(torch.zeros(0, 4))
    assert counts(layer) == [0.0]


def test_inputs_that_never_vary_leave_the_root_alone():
    model = reconstruct(nn.Linear(4, 2))
    optimizer = sgd(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.full((8, 4), 3.0)).square().mean().backward()
        optimizer.step()
    assert torch.equal(fisher_of(model).root.dense(), torch.eye(4))


def test_a_large_mean_costs_no_accuracy_in_float32():
    inputs = torch.randn(512, 6, generator=torch.Generator().manual_seed(0)) + 1e4
    layer = reconstruct(nn.Linear(6, 2).float(), damping=1e-3)
    optimizer = sgd(layer)
    layer(inputs.float()).square().mean().backward()
    optimizer.step()
    root = fisher_of(layer).root.dense().double()
    covariance = torch.cov(inputs.float().double().T, correction=0)
    whitened = root @ covariance @ root
    torch.testing.assert_close(whitened / whitened.diagonal().mean(), torch.eye(6), rtol=0, atol=0.02)


class TestAutomaticDamping:
    """Few rows for many inputs ask for more of it; D / N is how far a covariance of noise alone is from its mean."""

    def damping_after(self, rows, *, batches=1, **settings):
        model = reconstruct(nn.Linear(40, 2), **settings)
        for _ in range(batches):
            model(torch.randn(rows, 40)).square().mean().backward()
        sgd(model).step()
        return fisher_of(model)

    @pytest.mark.parametrize(("rows", "expected"), [(4, 19.2), (8, 9.6), (25, 3.072), (26, 3.0), (1000, 3.0)])
    def test_it_follows_the_rows_of_a_step(self, rows, expected):
        assert self.damping_after(rows).damping == pytest.approx(expected)

    def test_batches_that_are_accumulated_count_together(self):
        assert self.damping_after(4, batches=2).damping == pytest.approx(9.6)

    def test_the_root_is_made_with_it(self):
        torch.manual_seed(0)
        automatic = self.damping_after(4)
        torch.manual_seed(0)
        given = self.damping_after(4, damping=automatic.damping)
        assert given.settings.damping == automatic.damping
        torch.testing.assert_close(automatic.root.dense(), given.root.dense(), rtol=0, atol=0)
        torch.manual_seed(0)
        assert not torch.allclose(automatic.root.dense(), self.damping_after(4, damping=3.0).root.dense())

    def test_what_was_given_stays(self):
        assert self.damping_after(4, damping=0.5).damping == 0.5

    def test_a_checkpoint_holds_the_rows_and_older_ones_do_without(self):
        fisher = self.damping_after(4)
        state = fisher.get_extra_state()
        fresh = fisher_of(reconstruct(nn.Linear(40, 2)))
        assert fresh.damping == 3.0
        fresh.set_extra_state(state)
        assert (fresh.damping, fresh.steps) == (fisher.damping, fisher.steps)
        fresh.set_extra_state(state[:3])
        assert (fresh.damping, fresh.steps) == (3.0, fisher.steps)
