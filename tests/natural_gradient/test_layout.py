"""Weights as rows: against einsum's way of writing the product, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlayers.natural_gradient.layout import Layout, thinned


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_rows_and_back(groups, outputs, inputs, kernel, transposed):
    layout = Layout(groups, transposed)
    shape = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
    weight = torch.arange(float(torch.Size([*shape, *kernel]).numel())).reshape(*shape, *kernel)
    rows = layout.rows(weight)
    expected = (outputs, inputs * torch.Size(kernel).numel())
    assert rows.shape == (expected if groups == 1 else (groups, *expected))
    assert torch.equal(layout.tensor(rows, weight.shape), weight)
    per_group = rows.reshape(groups, outputs, inputs, *kernel)
    for group in range(groups):
        for o in range(outputs):
            for i in range(inputs):
                place = (group * inputs + i, o) if transposed else (group * outputs + o, i)
                assert torch.equal(per_group[group, o, i], weight[place])


def test_a_bias_lies_beside_its_rows():
    assert Layout(2).entries(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("total", "count"), [(5, 5), (3, 10)])
def test_few_rows_all_stay(total, count):
    assert thinned(total, count, torch.device("cpu")) is None
