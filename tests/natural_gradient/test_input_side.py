"""The root on the input's side of a linear layer: outputs and derivatives are those of the weight's side."""

import copy

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import fold, input_side, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_of

D, OUT = 9, 50


def trained(**settings):
    """Return a reconstructed layer whose root and mean are no longer the plain ones."""
    layer = reconstruct(nn.Sequential(nn.Linear(D, OUT, bias=settings.pop("bias", True))), **settings)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(20, D) * torch.linspace(0.1, 2, D) + 3).square().mean().backward()
        optimizer.step()
    return layer


def by_the_weight(layer, inputs):
    return nn.functional.linear(inputs, layer[0].weight, layer[0].bias)


@pytest.fixture
def sides(monkeypatch):
    """Count the passes on the input's side."""
    found, product = [], input_side.centred_product
    monkeypatch.setattr(input_side, "centred_product", lambda *args: found.append(1) or product(*args))
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("shape", [(4, D), (2, 3, D)])
@pytest.mark.parametrize("of_inputs", [True, False])
def test_outputs_and_derivatives_are_those_of_the_other_side(bias, rank, shape, of_inputs, sides):
    layer = trained(rank=rank, bias=bias)
    assert (fisher_of(layer[0]).mean.abs().max() > 1) == bias
    aim = torch.randn(*shape[:-1], OUT)
    results = []
    for forward in (layer, lambda inputs: by_the_weight(layer, inputs)):
        torch.manual_seed(1)
        inputs = torch.randn(shape, requires_grad=of_inputs)
        sides.clear()
        outputs = forward(inputs)
        wanted = [*layer.parameters(), *([inputs] if of_inputs else [])]
        results.append((outputs, *torch.autograd.grad((outputs * aim).sum(), wanted), len(sides)))
    *first, ours = results[0]
    *second, theirs = results[1]
    assert (ours, theirs) == (1, 0)
    for found, expected in zip(first, second, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rank", [3, None])
def test_it_can_be_differentiated_twice(rank, sides):
    layer = trained(rank=rank)
    assert torch.autograd.gradgradcheck(lambda inputs: layer(inputs).sin(), torch.randn(3, D, requires_grad=True))
    assert sides


@pytest.mark.parametrize(
    ("rows", "of_inputs", "with_grad", "on_the_input"),
    [(49, False, True, True), (99, False, True, True), (100, False, True, False), (49, True, True, True),
     (50, True, True, False), (49, False, False, True), (50, False, False, False)],
)  # fmt: skip
def test_the_side_with_less_work_is_taken(rows, of_inputs, with_grad, on_the_input, sides):
    layer = trained(rank=3)
    sides.clear()
    with torch.set_grad_enabled(with_grad):
        layer(torch.randn(rows, D, requires_grad=of_inputs))
    assert bool(sides) == on_the_input


def test_training_takes_the_same_course_on_both_sides(monkeypatch):
    courses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = reconstruct(nn.Sequential(nn.Linear(D, OUT), nn.Tanh(), nn.Linear(OUT, 40)), rank=3, refresh_every=3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, D) + 1).square().mean().backward()
            optimizer.step()
        courses.append(list(fold(model).parameters()))
        monkeypatch.setattr(input_side, "_parts", lambda *_: None)
    for first, second in zip(*courses, strict=True):
        torch.testing.assert_close(first, second)


def test_what_it_does_not_know_is_left_to_the_weights_side(sides):
    class Twice(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    inputs = torch.randn(3, D)
    layer = trained(rank=3)
    sides.clear()
    expected = layer(inputs)
    assert len(sides) == 1
    layer[0].forward(input=inputs)
    assert len(sides) == 2
    sides.clear()
    half = copy.deepcopy(layer).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half(inputs.float())
    torch.func.vmap(layer)(inputs)
    torch.func.functional_call(layer, {"0.parametrizations.weight.original": torch.zeros(OUT, D)}, (inputs[0],))
    twice = reconstruct(nn.Sequential(Twice(D, OUT)))
    torch.testing.assert_close(twice(inputs), 2 * by_the_weight(twice, inputs))
    torch.nn.utils.parametrize.register_parametrization(layer[0], "weight", nn.Identity())
    torch.testing.assert_close(layer(inputs), expected)
    assert not sides


def test_a_class_on_top_of_ours_changes_nothing(sides):
    class Mixin:
        """As ``fully_shard`` puts one before a layer's class."""

    layer, inputs = trained(rank=3), torch.randn(3, D)
    expected = layer(inputs)
    layer[0].__class__ = type("Sharded", (Mixin, type(layer[0])), {})
    sides.clear()
    torch.testing.assert_close(layer(inputs), expected)
    assert sides


def test_given_weights_are_used():
    layer, inputs = trained(rank=3), torch.randn(3, D)
    other = {name: torch.randn_like(tensor) for name, tensor in layer.named_parameters()}
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(other[name])
    found = torch.func.functional_call(layer, other, (inputs,))
    torch.testing.assert_close(found, by_the_weight(changed, inputs))


def test_a_wrong_input_is_the_plain_layers_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trained().eval()(torch.randn(3, D + 1))
