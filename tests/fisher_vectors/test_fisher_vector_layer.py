"""The layer against the encoder and the loops, its gradients against finite differences."""

import pytest
import torch

from fisher_vectors.fisher_vector_references import fisher_vector_loops, random_mixture, sample
from fisherlayers import FisherVectorLayer
from fisherlayers.fisher_vectors.encoding import append_positions, fisher_vectors
from fisherlayers.fisher_vectors.expectation_maximisation import fit_mixture
from fisherlayers.fisher_vectors.normalization import l2_normalize, signed_power


def test_a_fitted_mixture_starts_with_its_own_encodings():
    rows = sample(random_mixture(4, 3), 400)
    mixture = fit_mixture(rows, 4)
    sets = rows.reshape(8, 50, 3)
    expected = l2_normalize(signed_power(fisher_vectors(mixture, sets)))
    torch.testing.assert_close(FisherVectorLayer.from_mixture(mixture)(sets), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(FisherVectorLayer.from_descriptors(rows, 4)(sets), expected, rtol=0, atol=1e-10)
    plain = FisherVectorLayer.from_mixture(mixture, power=1.0, normalize=False)(sets)
    torch.testing.assert_close(plain, fisher_vectors(mixture, sets), rtol=0, atol=1e-10)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_gradients_are_those_of_finite_differences(power):
    mixture = random_mixture(3, 2, spread=1.0)
    layer = FisherVectorLayer.from_mixture(mixture, threshold=0.0, power=power)
    sets = sample(mixture, 10).reshape(2, 5, 2).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, True, False, True]])
    parameters = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def encode(descriptors, *values):
        named = dict(zip(dict(layer.named_parameters()), values, strict=True))
        return torch.func.functional_call(layer, named, (descriptors,), {"mask": mask})

    assert torch.autograd.gradcheck(encode, (sets, *parameters), atol=1e-6)


def test_masked_descriptors_are_as_if_they_were_not_there():
    mixture = random_mixture(4, 3)
    ragged = [sample(mixture, size, seed=size) for size in (7, 3, 5)]
    padded = torch.full((4, 7, 3), torch.nan, dtype=torch.float64)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    for index, rows in enumerate(ragged):
        padded[index, : len(rows)], mask[index, : len(rows)] = rows, True
    layer = FisherVectorLayer.from_mixture(mixture, power=1.0, normalize=False, threshold=0.0)
    padded.requires_grad_()
    result = layer(padded, mask=mask)
    for index, rows in enumerate(ragged):
        torch.testing.assert_close(result[index], fisher_vector_loops(mixture, rows))
    assert not result[3].any()
    result.square().sum().backward()
    assert torch.isfinite(padded.grad).all()
    assert not padded.grad[~mask].any()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_a_feature_map_is_the_set_of_its_positions():
    mixture = random_mixture(4, 5)
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    layer = FisherVectorLayer.from_mixture(mixture, position_weight=2.0)
    sets = torch.stack([maps[:, :, y, x] for y in range(4) for x in range(6)], dim=1)
    positions = torch.tensor([[(x + 0.5) / 6 - 0.5, (y + 0.5) / 4 - 0.5] for y in range(4) for x in range(6)])
    positions = positions.double()
    mask = torch.rand(2, 4, 6) < 0.5
    expected = fisher_vectors(mixture, append_positions(sets, positions, weight=2.0), mask=mask.flatten(1))
    expected = l2_normalize(signed_power(expected))
    torch.testing.assert_close(layer(maps, mask=mask), expected)
    torch.testing.assert_close(layer(sets, positions=positions, mask=mask.flatten(1)), expected)


def test_training_moves_the_mixture_and_keeps_it_one():
    maps = torch.randn(16, 4, 3, 3)
    labels = torch.arange(16) % 2
    maps[labels == 1] *= 2
    layer = FisherVectorLayer.from_descriptors(maps.permute(0, 2, 3, 1).reshape(-1, 4), 3)
    model = torch.nn.Sequential(layer, torch.nn.Linear(layer.num_outputs, 2))
    before = layer.mixture.means.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(maps), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    after = layer.mixture()
    assert losses[-1] < 0.5 * losses[0]
    assert float((after.means - before).detach().abs().max()) > 1e-3
    assert after.weights.sum().item() == pytest.approx(1)


def test_half_precision_descriptors_are_encoded_in_the_precision_of_the_layer():
    layer = FisherVectorLayer.from_mixture(random_mixture(4, 3).to(torch.float32))
    sets = torch.randn(2, 9, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(sets), layer(sets.float()))
    assert layer(sets).dtype == torch.float32


def test_sets_without_descriptors():
    layer = FisherVectorLayer.from_mixture(random_mixture(4, 3))
    assert torch.equal(layer(torch.empty(2, 0, 3)), torch.zeros(2, 24, dtype=torch.float64))


def test_state_survives_saving_and_loading(tmp_path):
    mixture = random_mixture(4, 3)
    layer, other = FisherVectorLayer.from_mixture(mixture), FisherVectorLayer(4, 3, dtype=torch.float64)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    sets = sample(mixture, 20).reshape(2, 10, 3)
    assert torch.equal(layer(sets), other(sets))
    assert "num_components=4, num_features=3" in repr(layer)


def test_bad_arguments():
    for arguments, message in (
        ((0, 3, {}), "num_components must be at least 1"),
        ((2, 2, {"position_weight": 1.0}), "num_features at least 3"),
        ((2, 2, {"power": 1.5}), r"power must lie in \[0, 1\]"),
        ((2, 2, {"threshold": 1.0}), r"threshold must lie in \[0, 1\)"),
        ((2, 3, {"position_weight": -1.0}), "position_weight must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FisherVectorLayer(*arguments[:2], **arguments[2])
    layer = FisherVectorLayer(2, 3)
    with pytest.raises(ValueError, match=r"sets \(B, N, C\) or maps"):
        layer(torch.ones(4, 3))
    with pytest.raises(ValueError, match="it takes no positions"):
        layer(torch.ones(1, 4, 3), positions=torch.ones(4, 2))
    with pytest.raises(ValueError, match="mask must be of bools and shape"):
        layer(torch.ones(1, 4, 3), mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="give positions"):
        FisherVectorLayer(2, 3, position_weight=1.0)(torch.ones(1, 4, 1))
    with pytest.raises(ValueError, match="go together"):
        FisherVectorLayer.from_descriptors(torch.randn(9, 3), 2, position_weight=1.0)


def test_a_mask_of_a_map_has_its_height_and_width():
    layer, maps = FisherVectorLayer(3, 4), torch.randn(1, 4, 5, 6)
    mask = torch.zeros(1, 5, 6, dtype=torch.bool)
    mask[:, 0] = True
    torch.testing.assert_close(layer(maps, mask=mask), layer(maps[:, :, :1]))
    with pytest.raises(ValueError, match=r"mask must have shape \(B, 5, 6\), as the maps; got \(1, 6, 5\)"):
        layer(maps, mask=mask.mT)


@pytest.mark.parametrize("components", range(1, 40))
def test_weights_sum_to_one_in_bfloat16(components):
    layer = FisherVectorLayer(components, 4).bfloat16()
    assert torch.isfinite(layer(torch.randn(1, 50, 4))).all()


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    yield lambda layer, **options: torch.compile(layer, backend=backend, fullgraph=True, **options), graphs
    torch._dynamo.reset()


def test_layers_of_different_options_are_compiled_side_by_side(compiled):
    compile_layer, _ = compiled
    maps = torch.randn(2, 6, 5, 5)
    for options in ({"position_weight": 1.0}, {"position_weight": 0.5}, {}, {"power": 0.3}, {"threshold": 0.01}):
        layer = FisherVectorLayer(4, 8 if "position_weight" in options else 6, **options)
        torch.testing.assert_close(compile_layer(layer)(maps), layer(maps))


@pytest.mark.parametrize("power", [0.5, 0.3])
def test_one_compiled_graph_serves_sets_of_any_size(compiled, power):
    compile_layer, graphs = compiled
    layer = FisherVectorLayer(4, 6, power=power)
    encode = compile_layer(layer, dynamic=True)
    for size in (9, 30, 1500, 2100):
        sets = torch.randn(2, size, 6)
        torch.testing.assert_close(encode(sets), layer(sets), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    exponents = [node.args[1] for node in graphs[0].graph.nodes if node.target == "pow"]
    assert exponents == [power, power]  # no variable: inductor has no gradient for it
    with pytest.raises(AttributeError):
        layer.power = 1.0


@pytest.mark.parametrize("masked", [False, True])
def test_one_exported_program_serves_sets_of_any_size(masked):
    layer = FisherVectorLayer(4, 6)
    size = torch.export.Dim("size")

    def inputs(count):
        mask = torch.rand(2, count) < 0.7
        return (torch.randn(2, count, 6),), {"mask": mask} if masked else {}

    arguments, options = inputs(9)
    shapes = {"descriptors": {1: size}} | {name: {1: size} for name in options}
    program = torch.export.export(layer, arguments, options, dynamic_shapes=shapes).module()
    for count in (5, 1024, 2500):
        arguments, options = inputs(count)
        torch.testing.assert_close(program(*arguments, **options), layer(*arguments, **options), rtol=1e-4, atol=1e-5)


def test_one_exported_program_serves_maps_of_any_size():
    layer = FisherVectorLayer(4, 8, position_weight=1.0)
    shape = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(layer, (torch.randn(2, 6, 9, 8),), dynamic_shapes=(shape,)).module()
    for size in ((1, 6, 20, 5), (3, 6, 40, 50)):
        maps = torch.randn(size)
        torch.testing.assert_close(program(maps), layer(maps), rtol=1e-4, atol=1e-5)
