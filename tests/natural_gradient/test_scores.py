"""The scores of a batch where a layer is not all that there is of its parameters, and what has no scores."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.natural_gradient.exact import exact_information
from fisherlayers.natural_gradient.scores import scores_of
from natural_gradient.references_natural_gradient import fisher_by_labels


class Two(nn.Module):
    """Two layers, and a forward of one's own."""

    def __init__(self, forward, widths=(4, 4, 3)):
        super().__init__()
        self.a, self.b = nn.Linear(widths[0], widths[1]), nn.Linear(widths[1], widths[2])
        self.rule = forward

    def forward(self, x):
        return self.rule(self, x)


def plain(net, x):
    return net.b(torch.tanh(net.a(x)))


def in_place(net, x):
    return net.b(net.a(x).relu_())


def input_in_place(net, x):
    return plain(net, x.mul_(2))


def by_keyword(net, x):
    return net.b(input=torch.tanh(net.a(input=x)))


def transposed(net, x):
    return functional.linear(net.b(torch.tanh(net.a(x))), net.b.weight.t()[:3])


def hardly(net, x):
    return plain(net, x) + 1e-4 * net.a.weight[:3, 0]


def with_other_values(net, x):
    return functional_call(net.b, {"weight": net.a.weight[:3].cos()}, (net.a(x),)) + 0 * net.b.weight.sum()


def table_of_rows(net, x):
    table = net.b(torch.arange(24.0).view(6, 4).sin())  # six rows, as the batch has
    return torch.tanh(net.a(x))[:, :3] * (x[:, :1] @ table.sum(0, keepdim=True).exp())


def twice(net, x):
    return net.b(net.a(net.a(x)))


def shared_modules(net, x):
    return net.c(torch.tanh(net.b(torch.tanh(net.a(x)))))


def sharing():
    net = Two(shared_modules, (4, 4, 4))
    net.b.weight, net.c = net.a.weight, nn.Linear(4, 3)
    return net


def hooked():
    net = Two(plain)
    net.a.register_forward_hook(lambda module, arguments, result: result.sin())
    return net


def patched():
    net = Two(plain)
    net.a.forward = lambda x: functional.linear(x, net.a.weight.exp(), net.a.bias)
    return net


# How the model is made, and the places of the parameters (weight and bias of a, of b) that must be held in full.
USES = {
    "plain": (lambda: Two(plain), []),
    "in place": (lambda: Two(in_place), []),
    "input in place": (lambda: Two(input_in_place), []),
    "by keyword": (lambda: Two(by_keyword), []),
    "hooked": (hooked, []),
    "transposed": (lambda: Two(transposed, (4, 5, 4)), [2]),
    "hardly": (lambda: Two(hardly), [0]),
    "with other values": (lambda: Two(with_other_values), [0, 2]),
    "table of rows": (lambda: Two(table_of_rows), [2, 3]),
    "twice": (lambda: Two(twice), [0, 1]),
    "sharing": (sharing, [0]),
    "patched": (patched, [0, 1]),
}


def rows_of(scores):
    count = scores.samples * scores.outputs
    units = torch.eye(count).view(count, scores.samples, scores.outputs)
    return torch.stack([torch.cat([piece.flatten() for piece in scores.combine(unit)]) for unit in units])


@pytest.mark.parametrize("case", USES)
def test_all_uses_of_a_parameter_count(case):
    torch.manual_seed(0)
    make, in_full = USES[case]
    model, inputs = make(), torch.randn(6, 4)
    expected = fisher_by_labels(model, inputs.clone())
    scores = scores_of(model, inputs)
    rows = rows_of(scores)
    torch.testing.assert_close(rows.T @ rows / 6, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(rows @ rows.T, scores.gram())
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    torch.testing.assert_close(rows @ torch.cat([piece.flatten() for piece in vector]), scores.times(vector).flatten())
    torch.testing.assert_close(exact_information(model, inputs), expected, rtol=1e-9, atol=1e-14)
    assert sorted(share.place for share in scores.shares if hasattr(share, "place")) == in_full


def test_a_use_that_comes_later_counts_from_then_on():
    torch.manual_seed(0)
    model, inputs = Two(plain), torch.randn(6, 4)
    for rule in (plain, hardly, plain):
        model.rule = rule
        rows = rows_of(scores_of(model, inputs))
        torch.testing.assert_close(rows.T @ rows / 6, fisher_by_labels(model, inputs), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parts_of_a_layer_are_left_out(frozen):
    torch.manual_seed(0)
    model, inputs = Two(in_place), torch.randn(6, 4)
    whole = fisher_by_labels(model, inputs)
    places = {"weight": range(16), "bias": range(16, 20), "both": range(20)}[frozen]
    for name in ("weight", "bias") if frozen == "both" else (frozen,):
        getattr(model.a, name).requires_grad_(False)
    left = [place for place in range(len(whole)) if place not in places]
    rows = rows_of(scores_of(model, inputs))
    torch.testing.assert_close(rows.T @ rows / 6, whole[left][:, left])


def test_a_model_that_nothing_reaches_has_no_information():
    model = Two(lambda net, x: plain(net, x).detach())
    assert not scores_of(model, torch.randn(6, 4)).gram().any()
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        scores_of(model.requires_grad_(False), torch.randn(6, 4))


@pytest.mark.parametrize("information", [exact_information, scores_of])
def test_a_parameter_that_no_module_is_read_for_is_named(information):
    model = Two(plain)
    kept = model.a.weight
    model.rule = lambda net, x: plain(net, x) @ kept[:3, :3]
    with pytest.raises(ValueError, match=r"uses parameter 'a.weight' without reading it from a module"):
        information(model, torch.randn(6, 4))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, dropout=0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x[None], x[None], x[None], need_weights=False)[0][0])


CHANCE = {
    "module": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 3)), r"dropout \(layer '1'\)"),
    "alpha": (lambda: nn.Sequential(nn.AlphaDropout(0.1), nn.Linear(4, 3)), r"dropout \(layer '0'\)"),
    "function": (
        lambda: Two(lambda net, x: functional.dropout(plain(net, x), training=net.training)),
        "random numbers",
    ),
    "attention": (Attending, "random numbers"),
}


@pytest.mark.parametrize("form", ["auto", "dense", "samples"])
@pytest.mark.parametrize("case", CHANCE)
def test_dropout_is_refused_and_the_information_without_it_is_taken_on_request(case, form):
    torch.manual_seed(0)
    make, message = CHANCE[case]
    model, inputs, targets = make(), torch.randn(6, 4), torch.arange(6) % 3
    optimizer = ExactNaturalGradient(model, form=form, damping=1.0)
    functional.cross_entropy(model(inputs), targets).backward()
    with pytest.raises(ValueError, match=message + r".* or take the information without it: model.eval\(\)"):
        optimizer.step()
    if case != "attention":  # its samples are one another's keys
        before = [parameter.detach().clone() for parameter in model.parameters()]
        model.eval()
        optimizer.observe(inputs)
        model.train()
        optimizer.step()
        assert not any(map(torch.equal, before, model.parameters()))


def test_dropout_with_probability_zero_is_none():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Linear(3, 3)), torch.randn(6, 4)
    torch.testing.assert_close(exact_information(model, inputs), fisher_by_labels(model, inputs))
