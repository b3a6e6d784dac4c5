"""Embeddings: the information is the diagonal of the tokens' frequencies, and descent is preconditioned by it."""

import copy
import io

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import fold, input_side, plain_state_dict, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of
from natural_gradient.references_natural_gradient import turns

WORDS, E, DAMPING = 9, 4, 0.5
SETTINGS = {"damping": DAMPING, "decay": 0.9, "statistics_every": 1, "refresh_every": 3, "include": [nn.Embedding]}


def tokens(seed, rows=40):
    """Rare and frequent words: word k about as often as k times the first."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.arange(1.0, WORDS + 1), rows, replacement=True, generator=generator)


def frequencies(words):
    return torch.stack([(words == k).double().mean() for k in range(WORDS)])


def table(**options):
    torch.manual_seed(0)
    return nn.Embedding(WORDS, E, **options)


def test_descent_is_preconditioned_by_damped_frequencies():
    plain = table()
    model, aim = reconstruct(copy.deepcopy(plain), **SETTINGS), torch.randn(WORDS, E)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    moment, total, velocity, refreshes = torch.zeros(WORDS), 0.0, torch.zeros(WORDS, E), turns(3, 30)
    for step in range(30):
        words = tokens(step)
        optimizer.zero_grad()
        loss = (model(words) - aim[words]).square().sum(1).mean()
        loss.backward()
        optimizer.step()

        plain.zero_grad()
        expected = (plain(words) - aim[words]).square().sum(1).mean()
        expected.backward()
        moment, total = 0.9 * moment + frequencies(words), 0.9 * total + 1
        if step in refreshes:
            information = moment / total
            damped = information + DAMPING / WORDS
            inverse = 1 / damped / (information / damped).sum()  # the power of a one-hot input, 1, is kept
        velocity = 0.9 * velocity + plain.weight.grad
        with torch.no_grad():
            plain.weight -= 0.2 * inverse[:, None] * velocity
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(model.weight, plain.weight)


def test_padding_does_not_count_and_does_not_move():
    model, words = reconstruct(table(padding_idx=2), **SETTINGS), tokens(0)
    start = model.weight[2].detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(words).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight[2], start)
    found = fisher_of(model).information.value()
    torch.testing.assert_close(found, frequencies(words[words != 2]))


def test_bags_count_their_words():
    bag = reconstruct(nn.EmbeddingBag(WORDS, E, mode="sum"), **SETTINGS | {"include": [nn.EmbeddingBag]})
    words = tokens(0)
    bag(words, torch.tensor([0, 10, 25])).square().sum().backward()
    assert fisher_of(bag).pending.number == 40
    torch.testing.assert_close(fisher_of(bag).pending.sums[:-1] / 40, frequencies(words))


def test_batches_of_a_step_count_as_one_and_empty_ones_not_at_all():
    model = reconstruct(table(), **SETTINGS)
    for part in (tokens(0)[:15], tokens(0)[:0], tokens(0)[15:].reshape(5, 5)):
        model(part)
    torch.testing.assert_close(fisher_of(model).pending.sums[:-1] / 40, frequencies(tokens(0)))


def test_embeddings_are_reconstructed_only_when_asked_for():
    model = nn.Sequential(table(), nn.Linear(E, 3))
    with pytest.warns(UserWarning, match=r"left alone, trained as before: 0 \(Embedding\)$"):
        reconstruct(model)
    model = reconstruct(nn.Sequential(table(), nn.Linear(E, 3)), include=["*", nn.Embedding])
    assert fisher_of(model[0]) is not None


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}])
def test_sparse_and_renormalised_tables_are_left_alone(options):
    model = nn.Sequential(table(**options), nn.Linear(E, 3))
    with pytest.warns(UserWarning, match=r"0 \(Embedding\)"):
        reconstruct(model, include=["*", nn.Embedding])
    assert fisher_of(model[0]) is None


def test_refresh_fold_resume_and_plain_keys():
    plain, words = table(), tokens(0)
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)

    def train(model, steps):
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(words) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    train(model, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = reconstruct(table(), **SETTINGS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert train(resumed, 6) == train(copy.deepcopy(model), 6)
    before, exported = model(words), plain_state_dict(model)
    refresh(model)
    torch.testing.assert_close(model(words), before)
    fold(model)
    torch.testing.assert_close(model(words), before)
    assert list(model.state_dict()) == list(exported) == list(plain.state_dict())
    fresh = reconstruct(table(), **SETTINGS)
    train(fresh, 3)
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(words), before)


@pytest.fixture
def looked_up(monkeypatch):
    """Count the lookups that leave the rest of the table alone."""
    found, allowed = [], input_side._scales_rows
    monkeypatch.setattr(input_side, "_scales_rows", lambda *args: found.append(allowed(*args)) or found[-1])
    return found


def stepped(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        model(tokens(step)).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (3, 4)])
def test_only_the_rows_that_are_looked_up_are_scaled(options, shape, looked_up):
    model = stepped(reconstruct(table(**options), **SETTINGS))
    words = torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(1))
    aim = torch.randn(*shape, E)
    looked_up.clear()
    found = model(words)
    assert looked_up == [True]
    expected = nn.functional.embedding(words, model.weight, **options)
    torch.testing.assert_close(found, expected)
    derivatives = [torch.autograd.grad((rows * aim).sum(), model.parameters()) for rows in (found, expected)]
    for ours, theirs in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_it_does_not_know_reads_the_whole_table(looked_up):
    class Twice(nn.Embedding):
        def forward(self, input):
            return 2 * super().forward(input)

    model, words = stepped(reconstruct(table(), **SETTINGS)), tokens(7)
    expected = model(words).detach()
    torch.testing.assert_close(model.forward(input=words), expected)
    assert looked_up[-2:] == [True, True]
    looked_up.clear()
    mapped = torch.func.vmap(model)(words[:4])
    torch.testing.assert_close(mapped, expected[:4])
    half = copy.deepcopy(model).bfloat16()
    assert half(words).dtype == torch.bfloat16
    assert not any(looked_up)
    twice = reconstruct(nn.Sequential(Twice(WORDS, E)), include=["*", Twice])
    torch.testing.assert_close(twice(words), 2 * nn.functional.embedding(words, twice[0].weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(words), expected)
