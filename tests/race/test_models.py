import pytest
import torch
from torch import nn

from fisherlayers.race.models import (
    CausalAttention,
    RecurrentLanguageModel,
    ResidualBlock,
    Transformer,
    autoencoder,
    multilayer_perceptron,
    residual_network,
)


def test_multilayer_perceptron_has_relu_between_its_layers():
    model = multilayer_perceptron([4, 3, 2])
    assert [type(layer).__name__ for layer in model] == ["Flatten", "Linear", "ReLU", "Linear"]
    x = torch.randn(6, 2, 2)
    expected = model[3](model[1](x.reshape(6, 4)).clamp(min=0))
    torch.testing.assert_close(model(x), expected)


def test_autoencoder_goes_in_and_back_with_a_linear_code():
    model = autoencoder([6, 4, 2])
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(6, 4), (4, 2), (2, 4), (4, 6)]
    x = torch.randn(5, 6)
    code = linear[1](linear[0](x).tanh())
    torch.testing.assert_close(model(x), linear[3](linear[2](code).tanh()))


@pytest.mark.parametrize(("after", "stride"), [(4, 1), (8, 2)])
def test_a_residual_block_adds_its_two_convolutions_to_its_input(after, stride):
    torch.manual_seed(0)
    block = ResidualBlock(4, after, stride)
    x = torch.randn(3, 4, 6, 6)
    branch = nn.Sequential(block.first, block.first_norm, nn.ReLU(), block.second, block.second_norm)
    torch.testing.assert_close(block(x), (branch(x) + block.shortcut(x)).relu())
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1)


def test_residual_network_scores_small_colour_images():
    assert residual_network([4, 8], 3)(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_causal_attention_is_the_softmax_over_the_past():
    torch.manual_seed(0)
    attention = CausalAttention(6, 2)
    x = torch.randn(2, 5, 6)
    query, key, value = attention.inward(x).split(6, 2)
    expected = torch.zeros(2, 5, 6)
    for head in (slice(0, 3), slice(3, 6)):
        for t in range(5):
            weights = torch.softmax((key[:, : t + 1, head] * query[:, t : t + 1, head]).sum(2) / 3**0.5, 1)
            expected[:, t, head] = (weights[:, :, None] * value[:, : t + 1, head]).sum(1)
    torch.testing.assert_close(attention(x), attention.outward(expected))


@pytest.mark.parametrize(
    "model", [RecurrentLanguageModel(7, 6), Transformer(7, 8, 6, 2, 2)], ids=["LSTM", "transformer"]
)
def test_a_language_model_sees_the_past_only(model):
    torch.manual_seed(0)
    tokens = torch.randint(7, (2, 8))
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 7
    scores, changed = model(tokens), model(other)
    assert scores.shape == (2, 8, 7)
    torch.testing.assert_close(scores[:, :5], changed[:, :5])
    assert (scores[:, 5:] - changed[:, 5:]).abs().max() > 1e-3
