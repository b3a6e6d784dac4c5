"""Weights that several modules hold: one information, and every holder reads the same W."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from fisherlayers.natural_gradient import fold, plain_state_dict, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights

SETTINGS = {"refresh_every": 3, "statistics_every": 1}
WORDS, E = 7, 5


class Twice(nn.Module):
    """Two linear layers with one weight and biases of their own; ``biases`` says which of them have one."""

    def __init__(self, biases=(True, True)):
        super().__init__()
        self.first, self.second = (nn.Linear(E, E, bias=bias) for bias in biases)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Tied(nn.Module):
    """A table of words that is also the weight of the last layer."""

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(WORDS, E), nn.Linear(E, E), nn.Linear(E, WORDS)
        self.last.weight = self.table.weight

    def forward(self, words):
        return self.last(self.inner(self.table(words)).tanh())


class Reader(nn.Module):
    """A module of no known kind that reads a weight of another one."""

    def __init__(self, layer):
        super().__init__()
        self.kernel = layer.weight

    def forward(self, x):
        return x @ self.kernel


class Mirror(nn.Module):
    """An auto-encoder with one weight: x -> W x -> Wᵀ W x."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(E, 3)
        self.decoder = Reader(self.encoder)

    def forward(self, x):
        return self.decoder(self.encoder(x).tanh())


def inputs(rows=20):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, E, generator=generator) @ torch.randn(E, E, generator=generator) + 1


def words():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, WORDS, (30,), generator=generator)


CASES = {
    "linear and linear": (Twice, inputs, lambda outputs: (outputs - 1).square().mean()),
    "embedding and linear": (Tied, words, lambda outputs: functional.cross_entropy(outputs, words().flip(0))),
    "a module without a rule": (Mirror, inputs, lambda outputs: (outputs - inputs()).square().mean()),
}


@pytest.fixture(params=CASES)
def case(request):
    make, data, loss = CASES[request.param]
    torch.manual_seed(0)
    return make(), data(), loss


def train(model, data, loss, steps):
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(data))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def test_the_function_stays_at_every_change_and_the_weight_stays_shared(case):
    plain, data, loss = case
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    number = len(list(model.parameters()))
    assert number == len(list(plain.parameters()))
    torch.testing.assert_close(model(data), plain(data))
    losses = train(model, data, loss, 8)
    assert losses[-1] < losses[0]
    before, exported = model(data), plain_state_dict(model)
    refresh(model)
    torch.testing.assert_close(model(data), before)
    fold(model)
    torch.testing.assert_close(model(data), before)
    assert len(list(model.parameters())) == number
    assert list(model.state_dict()) == list(plain.state_dict()) == list(exported)
    plain.load_state_dict(exported)
    torch.testing.assert_close(plain(data), before)


def test_resumes_exactly_from_tensors_and_from_plain_keys(case):
    plain, data, loss = case
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    train(model, data, loss, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = reconstruct(copy.deepcopy(plain), **SETTINGS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    duplicate, exported = copy.deepcopy(model), plain_state_dict(model)
    with torch.no_grad():  # not observed
        outputs = model(data)
    expected = train(model, data, loss, 5)
    assert train(resumed, data, loss, 5) == expected
    assert train(duplicate, data, loss, 5) == expected
    fresh = reconstruct(copy.deepcopy(plain), **SETTINGS)
    train(fresh, data, loss, 3)
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(data), outputs)


def test_gradients_reach_w_from_every_reader(case):
    plain, data, loss = case
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    train(model, data, loss, 4)
    plain.load_state_dict(plain_state_dict(model))
    for network in (model, plain):
        network.zero_grad()
        loss(network(data)).backward()
    shared = next(fisher for fisher in fisher_weights(model) if len(fisher.readers) > 1)
    reader = shared.readers[0]
    names = {module: name for name, module in model.named_modules()}
    holders = [plain.get_submodule(names[reader.host]) for reader in shared.readers]
    gradient = getattr(holders[0], reader.weight).grad
    biases = [holder.bias.grad for holder, reader in zip(holders, shared.readers, strict=True) if reader.bias]
    expected = (gradient - torch.outer(sum(biases), shared.mean)) @ shared.root.dense()
    torch.testing.assert_close(shared.weight.grad, expected)
    assert shared.mean.any()


def test_two_linear_layers_have_the_information_of_both_inputs():
    model, x = Twice(), inputs()
    rows = torch.cat([x, model.first(x).tanh()]).detach()
    reconstruct(model, decay=1.0)
    model(x)
    (fisher,) = fisher_weights(model)
    assert fisher.pending.number == 40
    torch.testing.assert_close(fisher.pending.origin + fisher.pending.sums[-1, :-1] / 40, rows.mean(0))
    shifted = rows - fisher.pending.origin
    torch.testing.assert_close(fisher.pending.sums[:-1, :-1], shifted.T @ shifted)


def test_a_shared_weight_is_centred_only_where_all_products_have_a_bias():
    model = reconstruct(Twice(biases=(True, False)), **SETTINGS)
    losses = train(model, inputs(), lambda outputs: (outputs - 1).square().mean(), 8)
    (fisher,) = fisher_weights(model)
    assert not fisher.mean.any()
    assert losses[-1] < losses[0]


def test_a_table_that_is_a_last_layer_has_the_information_of_the_last_layer():
    model = reconstruct(Tied(), **SETTINGS, include=["*", nn.Embedding])
    train(model, words(), lambda outputs: functional.cross_entropy(outputs, words().flip(0)), 3)
    assert fisher_of(model.table) is fisher_of(model.last)
    assert fisher_of(model.last).mean.shape == (E,)
    assert fisher_of(model.last).mean.any()


def test_a_shared_bias_takes_up_no_mean():
    model = nn.Sequential(nn.Linear(E, E), nn.Tanh(), nn.Linear(E, E))
    model[2].bias = model[0].bias
    plain, x = copy.deepcopy(model), inputs()
    reconstruct(model, **SETTINGS)
    torch.testing.assert_close(model(x), plain(x))
    losses = train(model, x, lambda outputs: (outputs - 1).square().mean(), 8)
    assert losses[-1] < losses[0]
    assert not any(fisher.mean.any() for fisher in fisher_weights(model))
    assert model[2].bias is model[0].bias


def test_other_modes_take_the_input_of_a_shared_weight():
    model = reconstruct(Twice(), mode="kronecker", **SETTINGS)
    losses = train(model, inputs(), lambda outputs: (outputs - 1).square().mean(), 8)
    assert losses[-1] < losses[0]
    (fisher,) = fisher_weights(model)
    assert fisher.output is None


@pytest.mark.parametrize("tie", [True, False])
def test_every_module_names_what_another_holds_as_transformers_does(tie):
    model = Tied()
    if not tie:
        model.last.weight = nn.Parameter(model.last.weight.detach().clone())
    reconstruct(model, exclude=[] if tie else ["table"], **SETTINGS)
    state = model.state_dict()
    patterns = [
        re.compile(f"{name}.{pattern}")
        for name, module in model.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or {}
    ]
    kept = {key: value for key, value in state.items() if not any(pattern.search(key) for pattern in patterns)}
    storages = [value.untyped_storage().data_ptr() for value in kept.values() if value.numel()]
    assert len(set(storages)) == len(storages)
    assert (len(kept) < len(state)) == tie
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        nn.init.zeros_(parameter)
    copied.load_state_dict(kept, strict=False)
    for name, value in copied.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not hasattr(fold(model).last, "_tied_weights_keys")


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_a_tied_language_model_is_saved_and_resumed_by_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Sentences(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            tokens = torch.arange(8) + index
            return {"input_ids": tokens, "labels": tokens}

    def trained(folder, **resume):
        transformers.set_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        model = reconstruct(transformers.LlamaForCausalLM(config), exclude=["*norm*"])
        assert model.lm_head.parametrizations.weight[0] is model.model.embed_tokens.parametrizations.weight[0]
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=6, save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True
        )
        transformers.Trainer(model=model, args=arguments, train_dataset=Sentences()).train(**resume)
        return plain_state_dict(model)

    expected = trained(tmp_path / "run")
    found = trained(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
