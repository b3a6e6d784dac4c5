"""The semi-local layer against windows that are encoded one by one."""

import math

import pytest
import torch

from fisherlayers.fisher_vectors.descriptors import DescriptorGrid
from fisherlayers.fisher_vectors.encoding import fisher_vectors
from fisherlayers.fisher_vectors.mixture import DiagonalMixture
from fisherlayers.fisher_vectors.semi_local import SemiLocalPooling, box_mean, project_descriptors, stack_neighbours


def random_case(seed=0, *, rows=9, columns=11, features=3, components=4, outputs=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mixture = DiagonalMixture(
        torch.softmax(normal(components), 0), normal(components, features), normal(components, features).exp()
    )
    positions = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1).to(dtype)
    grid = DescriptorGrid(normal(2, rows, columns, features), positions, 4.0)
    return mixture, grid, normal(outputs, 2 * components * features)


def hard_fisher_vector(mixture, descriptors):
    """Fisher vector of (N, D) descriptors with hard assignment, entry by entry."""
    weights, means, deviations = mixture.weights, mixture.means, mixture.variances.sqrt()
    first, second = torch.zeros_like(means), torch.zeros_like(means)
    for x in descriptors:
        z = (x - means) / deviations
        k = int((weights.log() - deviations.log().sum(1) - 0.5 * z.square().sum(1)).argmax())
        first[k] += z[k] / weights[k].sqrt() / len(descriptors)
        second[k] += (z[k].square() - 1) / (2 * weights[k]).sqrt() / len(descriptors)
    return torch.cat([first.flatten(), second.flatten()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 2), (9, 1), (4, 3)])
def test_projected_window_is_the_box_mean(size, stride, dtype):
    """W FV(window) = box mean of c."""
    mixture, grid, projection = random_case(dtype=dtype)
    pooled = box_mean(project_descriptors(mixture, grid.descriptors, projection), size, stride)
    assert pooled.shape == (2, (9 - size) // stride + 1, (11 - size) // stride + 1, 5)
    for b in range(2):
        for i in range(pooled.shape[1]):
            for j in range(pooled.shape[2]):
                top, left = i * stride, j * stride
                window = grid.descriptors[b, top : top + size, left : left + size].reshape(-1, 3)
                expected = projection @ hard_fisher_vector(mixture, window)
                torch.testing.assert_close(
                    pooled[b, i, j], expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12
                )


def test_projection_agrees_with_the_encoder():
    mixture, grid, projection = random_case(seed=1)
    flat = grid.descriptors.reshape(-1, 1, 3)
    expected = fisher_vectors(mixture, flat, assignment="hard") @ projection.T
    projected = project_descriptors(mixture, grid.descriptors, projection).reshape(-1, 5)
    torch.testing.assert_close(projected, expected, rtol=1e-10, atol=1e-10)


def test_components_that_win_nothing_are_skipped():
    mixture, grid, projection = random_case(seed=2)
    far = DiagonalMixture(
        mixture.weights, mixture.means + torch.tensor([[0.0], [1e3], [1e3], [1e3]]), mixture.variances
    )
    expected = projection @ hard_fisher_vector(far, grid.descriptors[0, 0, :1])
    torch.testing.assert_close(project_descriptors(far, grid.descriptors[0, 0, 0], projection), expected)


def test_stacking_order():
    values = torch.arange(12.0).reshape(1, 3, 4, 1)
    assert stack_neighbours(values, 1)[0, 1, 2].tolist() == [6, 7, 10, 11]
    assert stack_neighbours(values, 2)[0, 0, 1].tolist() == [1, 3, 9, 11]
    assert stack_neighbours(values, 3).shape == (1, 0, 1, 4)


def test_layer_is_its_definition():
    """Windows, adjacent 2 x 2 stack, unit length, and the coordinates of the stack's centre."""
    mixture, grid, projection = random_case(seed=3)
    first, second = SemiLocalPooling(windows=(3, 5), stride=2)([grid], mixture, projection)
    for pooled, size in ((first, 3), (second, 5)):
        for i, j in ((0, 0), (1, 2)):
            corners = []
            for top, left in ((2 * i, 2 * j), (2 * i, 2 * j + 2), (2 * i + 2, 2 * j), (2 * i + 2, 2 * j + 2)):
                window = grid.descriptors[1, top : top + size, left : left + size].reshape(-1, 3)
                corners.append(projection @ hard_fisher_vector(mixture, window))
            stacked = torch.cat(corners)
            torch.testing.assert_close(pooled.descriptors[1, i, j], stacked / stacked.norm())
            middle = (size - 1) / 2 + 1
            assert pooled.positions[i, j].tolist() == pytest.approx([2 * j + middle, 2 * i + middle])
        assert pooled.scale == grid.scale


def test_disjoint_stack():
    mixture, grid, projection = random_case(seed=4)
    (pooled,) = SemiLocalPooling(windows=(3,), stack_offset=1.0)([grid], mixture, projection)
    windows = box_mean(project_descriptors(mixture, grid.descriptors, projection), 3)
    expected = torch.cat([windows[0, 1, 2], windows[0, 1, 5], windows[0, 4, 2], windows[0, 4, 5]])
    torch.testing.assert_close(pooled.descriptors[0, 1, 2], expected / expected.norm())


def test_without_stacking_and_without_unit_length():
    mixture, grid, projection = random_case(seed=6)
    (pooled,) = SemiLocalPooling(windows=(3,), stacking=False, unit_length=False)([grid], mixture, projection)
    window = grid.descriptors[1, 1:4, 2:5].reshape(-1, 3)
    torch.testing.assert_close(pooled.descriptors[1, 1, 2], projection @ hard_fisher_vector(mixture, window))
    assert pooled.positions[1, 2].tolist() == pytest.approx([3, 2])


@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("power", [False, True])
def test_windows_of_whole_fisher_vectors(assignment, power):
    """The encoding of the window's descriptors by the global layer, normalised or not, then W."""
    mixture, grid, projection = random_case(seed=7)
    layer = SemiLocalPooling((3,), stacking=False, unit_length=False, assignment=assignment, window_power=power)
    (pooled,) = layer([grid], mixture, projection)
    window = grid.descriptors[1, 1:4, 2:5].reshape(-1, 3)
    whole = fisher_vectors(mixture, window, assignment=assignment)
    if power:
        whole = whole.sign() * whole.abs().sqrt()
        whole = whole / whole.norm()
    torch.testing.assert_close(pooled.descriptors[1, 1, 2], projection @ whole)


def test_windows_that_do_not_fit_are_left_out():
    mixture, grid, projection = random_case(rows=4, columns=4)
    grids = SemiLocalPooling(windows=(3, 4, 7))([grid], mixture, projection)
    assert [tuple(g.descriptors.shape[1:3]) for g in grids] == [(1, 1)]
    assert box_mean(torch.zeros(1, 2, 5, 3), 3).shape == (1, 0, 3, 3)


def test_cost_does_not_depend_on_components():
    """Hard assignment touches 2 D of the 2 K D columns a descriptor: the others may hold anything."""
    mixture, grid, projection = random_case(seed=5)
    x = grid.descriptors[0, 0, 0]
    used = hard_fisher_vector(mixture, x[None]) != 0
    assert int(used.sum()) == 2 * 3
    poisoned = torch.where(used, projection, math.nan)
    torch.testing.assert_close(
        project_descriptors(mixture, x, poisoned), project_descriptors(mixture, x, projection), rtol=0, atol=0
    )


def test_bad_input():
    mixture, grid, projection = random_case()
    with pytest.raises(ValueError, match="descriptors must have 3 features and projection 2"):
        project_descriptors(mixture, grid.descriptors[..., :2], projection)
    with pytest.raises(ValueError, match="projection 2"):
        project_descriptors(mixture, grid.descriptors, projection[:, 1:])
    with pytest.raises(ValueError, match="size and stride must be at least 1"):
        box_mean(grid.descriptors, 0)
    with pytest.raises(ValueError, match="values must have shape"):
        box_mean(grid.descriptors[0], 2)
    with pytest.raises(ValueError, match="offset must be at least 1"):
        stack_neighbours(grid.descriptors, 0)
    with pytest.raises(ValueError, match="windows must name"):
        SemiLocalPooling(windows=())
    with pytest.raises(ValueError, match="stride must be"):
        SemiLocalPooling(stride=0)
    with pytest.raises(ValueError, match="stack_offset must be"):
        SemiLocalPooling(stack_offset=-1.0)
