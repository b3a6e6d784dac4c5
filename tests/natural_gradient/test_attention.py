"""Multi-head attention trains as the linear layers that it is made of, whatever the masks, the layout and the path."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from fisherlayers.natural_gradient import fold, plain_state_dict, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_of, fisher_weights

E, HEADS, LENGTH, BATCH = 8, 2, 5, 6
SETTINGS = {"damping": 0.1, "decay": 0.9, "refresh_every": 3, "statistics_every": 1}


class Spelled(nn.Module):
    """Attention of linear layers: ``inner`` is one layer for self-attention, three layers for query, key and value."""

    def __init__(self, attention, apart):
        super().__init__()
        sizes = [E, attention.kdim, attention.vdim]
        self.inner = nn.ModuleList(nn.Linear(size, E) for size in sizes) if apart else nn.Linear(E, 3 * E)
        self.outer = nn.Linear(E, E)
        with torch.no_grad():
            self.outer.weight.copy_(attention.out_proj.weight), self.outer.bias.copy_(attention.out_proj.bias)
            if not apart:
                self.inner.weight.copy_(attention.in_proj_weight), self.inner.bias.copy_(attention.in_proj_bias)
                return
            if attention._qkv_same_embed_dim:
                weights = attention.in_proj_weight.chunk(3)
            else:
                weights = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
            for layer, weight, bias in zip(self.inner, weights, attention.in_proj_bias.chunk(3), strict=True):
                layer.weight.copy_(weight), layer.bias.copy_(bias)

    def forward(self, query, key, value, mask=None):
        if isinstance(self.inner, nn.Linear):
            q, k, v = self.inner(query).chunk(3, -1)
        else:
            q, k, v = (layer(x) for layer, x in zip(self.inner, (query, key, value), strict=True))
        heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
        scores = heads[0] @ heads[1].mT / math.sqrt(E / HEADS)
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf)
        return self.outer((scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))


def tokens(seed=1, length=LENGTH, size=E):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, size, generator=generator).cumsum(-1) + 0.5


def attention(**options):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(E, HEADS, **{"batch_first": True} | options)
    nn.init.normal_(made.in_proj_bias), nn.init.normal_(made.out_proj.bias)
    return made


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(call, model, steps=15):
    optimizer, aim, losses = sgd(model), tokens(9), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (call() - aim).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_trains_as_its_linear_layers(rank, need_weights, masked):
    ours, x = attention(), tokens()
    spelled = reconstruct(Spelled(ours, apart=False), rank=rank, **SETTINGS)
    reconstruct(ours, rank=rank, **SETTINGS)
    mask = torch.ones(LENGTH, LENGTH).triu(1).bool() if masked else None
    losses = train(lambda: ours(x, x, x, attn_mask=mask, need_weights=need_weights)[0], ours)
    assert losses == pytest.approx(train(lambda: spelled(x, x, x, mask), spelled), rel=1e-9)
    assert losses[-1] < 0.9 * losses[0]
    assert len(list(fisher_weights(ours))) == 2
    torch.testing.assert_close(ours.in_proj_bias, spelled.inner.bias)
    torch.testing.assert_close(ours.out_proj.weight, spelled.outer.weight)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 7}])
@pytest.mark.parametrize("rank", [None, 3])
def test_attention_of_different_tensors_trains_as_its_linear_layers(rank, sizes):
    ours = attention(**sizes)
    given = tokens(1), tokens(2, LENGTH, sizes.get("kdim", E)), tokens(3, LENGTH, sizes.get("vdim", E))
    spelled = reconstruct(Spelled(ours, apart=True), rank=rank, **SETTINGS)
    reconstruct(ours, rank=rank, **SETTINGS)
    losses = train(lambda: ours(*given)[0], ours)
    assert losses == pytest.approx(train(lambda: spelled(*given), spelled), rel=1e-9)
    torch.testing.assert_close(ours.in_proj_bias, torch.cat([layer.bias for layer in spelled.inner]))


def test_key_padding_and_batches_in_the_second_axis():
    ours, x = attention(batch_first=False), tokens()
    spelled = reconstruct(Spelled(ours, apart=False), **SETTINGS)
    reconstruct(ours, **SETTINGS)
    padding = torch.arange(LENGTH) >= torch.tensor([5, 4, 3, 2, 5, 1])[:, None]
    turned = x.transpose(0, 1)
    losses = train(lambda: ours(turned, turned, turned, key_padding_mask=padding)[0].transpose(0, 1), ours)
    expected = train(lambda: spelled(x, x, x, padding[:, None, None, :]), spelled)
    assert losses == pytest.approx(expected, rel=1e-9)


def test_statistics_of_the_out_projection_are_what_it_is_multiplied_with_under_dropout():
    # With dropout 0.5 the heads' outputs are random: recomputed with the same draws, they are those of the forward.
    ours, x = reconstruct(attention(dropout=0.5), decay=1.0), tokens()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    outputs, _ = ours(x, x, x)
    after = torch.random.get_rng_state()
    pending = fisher_of(ours.out_proj).pending
    attended = torch.linalg.solve(ours.out_proj.weight, (outputs - ours.out_proj.bias).flatten(0, 1).T).T
    scores = torch.cat([attended - pending.origin, torch.ones(len(attended), 1)], 1)
    torch.testing.assert_close(pending.sums, scores.T @ scores)
    torch.random.set_rng_state(state)
    fold(ours)
    torch.testing.assert_close(ours(x, x, x)[0], outputs)
    assert torch.equal(torch.random.get_rng_state(), after)  # the run draws what it drew without us


def test_a_weight_is_split_when_query_and_key_differ_and_nothing_moves():
    ours, x, memory = reconstruct(attention(), **SETTINGS), tokens(), tokens(2, length=7)
    before = train(lambda: ours(x, x, x)[0], ours, 4)
    root = fisher_of(ours, "in_proj_weight").root.dense()
    assert root.shape == (E, E)
    optimizer = sgd(ours)
    optimizer.zero_grad()
    unsplit, unsplit_state = ours(x, x, x)[0].detach(), copy.deepcopy(ours.state_dict())
    ours(x, memory, memory)[0].sum().backward()
    fisher = fisher_of(ours, "in_proj_weight")
    assert fisher.root.dense().shape == (3, E, E)
    ours.eval()
    torch.testing.assert_close(ours(x, x, x)[0], unsplit)
    ours.train()
    optimizer.step()
    assert fisher.refreshed_at == fisher.steps - 1
    assert not torch.allclose(fisher.mean[0], fisher.mean[1])
    torch.testing.assert_close(fisher.mean[1], fisher.mean[2])
    assert len(before) == 4
    ours.load_state_dict(unsplit_state)  # of before the split
    torch.testing.assert_close(ours.eval()(x, x, x)[0], unsplit)


@pytest.mark.parametrize("cross", [False, True])
def test_resumes_exactly_and_folds(cross):
    x = tokens()
    given = (x, tokens(2), tokens(2)) if cross else (x, x, x)
    plain = attention()
    model = reconstruct(copy.deepcopy(plain), **SETTINGS)
    train(lambda: model(*given)[0], model, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = reconstruct(attention(), **SETTINGS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    duplicate = copy.deepcopy(model)
    expected = train(lambda: model(*given)[0], model)
    assert train(lambda: resumed(*given)[0], resumed) == expected
    assert train(lambda: duplicate(*given)[0], duplicate) == expected
    before, exported = model(*given)[0], plain_state_dict(model)
    refresh(model)
    torch.testing.assert_close(model(*given)[0], before)
    fold(model)
    torch.testing.assert_close(model(*given)[0], before)
    assert type(model) is nn.MultiheadAttention
    assert list(model.state_dict()) == list(plain.state_dict()) == list(exported)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(exported)
    torch.testing.assert_close(plain(*given)[0], before)
    fresh = reconstruct(attention(), **SETTINGS)
    fresh.load_state_dict(exported)
    torch.testing.assert_close(fresh(*given)[0], before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fast path
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_computes_in_evaluation_what_it_computes_when_folded(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first), tokens()
    reconstruct(model, **SETTINGS)
    losses = train(lambda: model(x), model)
    assert losses[-1] < losses[0]
    assert all(fisher.refreshed_at >= 0 for fisher in fisher_weights(model))
    assert len(list(fisher_weights(model))) == 8
    model.eval()
    padding = torch.arange(LENGTH) >= torch.tensor([5, 4, 3, 2, 5, 1])[:, None]
    with torch.no_grad():
        outputs = [model(x), model(x, src_key_padding_mask=padding)[~padding]]
    folded = fold(model)
    with torch.no_grad():
        torch.testing.assert_close(outputs, [folded(x), folded(x, src_key_padding_mask=padding)[~padding]])


def test_a_decoder_layer_attends_to_itself_and_to_a_memory():
    torch.manual_seed(0)
    model, x, memory = nn.TransformerDecoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True), tokens(), tokens(2)
    reconstruct(model, **SETTINGS)
    losses = train(lambda: model(x, memory), model)
    assert losses[-1] < losses[0]
    assert fisher_of(model.self_attn, "in_proj_weight").mean.shape == (E,)
    assert fisher_of(model.multihead_attn, "in_proj_weight").mean.shape == (3, E)
    seen = fisher_of(model.multihead_attn, "in_proj_weight").mean
    torch.testing.assert_close(seen[1], memory.flatten(0, 1).mean(0))


def test_extra_biases_are_left_alone():
    ours, x = reconstruct(attention(add_bias_kv=True), **SETTINGS), tokens()
    assert fisher_of(ours, "bias_k") is None
    assert fisher_of(ours, "in_proj_weight") is not None
    losses = train(lambda: ours(x, x, x)[0], ours)
    assert losses[-1] < losses[0]
    assert list(plain_state_dict(ours)) == list(attention(add_bias_kv=True).state_dict())


def test_gradients_of_single_samples_by_vmap():
    model, x = reconstruct(attention(), **SETTINGS), tokens()
    train(lambda: model(x, x, x)[0], model, 4)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, sample):
        sample = sample[None]
        return functional_call(model, parameters, (sample, sample, sample))[0].square().mean()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(BATCH):
        model.zero_grad()
        sample = x[index : index + 1]
        model(sample, sample, sample)[0].square().mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad)


def test_a_bfloat16_input_under_autocast_is_observed():
    model, x = reconstruct(attention().float(), **SETTINGS), tokens().bfloat16()
    optimizer = sgd(model)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(x, x, x)[0]
        optimizer.zero_grad()
        outputs.float().square().mean().backward()
        optimizer.step()
    fisher = fisher_of(model, "in_proj_weight")
    torch.testing.assert_close(fisher.mean, x.float().flatten(0, 1).mean(0))
    assert all(fisher.refreshed_at == 1 for fisher in fisher_weights(model))


def test_a_checkpointed_pass_leaves_no_weight_behind():
    model, x = reconstruct(nn.TransformerEncoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True)), tokens()
    expected = model(x).detach()
    outputs = checkpoint(model, x, use_reentrant=False)
    torch.testing.assert_close(outputs, expected)
    outputs.square().mean().backward()
    first = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], first)
