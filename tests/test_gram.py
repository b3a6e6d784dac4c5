"""Xᵀ X by blocks: every entry is the sum over rows, whatever the width, the number of rows and the layout."""

import pytest
import torch

from fisherlayers.gram import gram, gram_with_ones


@pytest.mark.parametrize("size", [1, 200, 201, 415, 850])
@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_entries_are_sums_over_rows(rows, size):
    found = gram(matrix := torch.randn(rows, size, dtype=torch.float64))
    torch.testing.assert_close(found, torch.einsum("ni,nj->ij", matrix, matrix))


def test_the_blocks_are_symmetric_bit_by_bit():
    found = gram(torch.randn(300, 850))
    assert torch.equal(found[:400, 416:], found[416:, :400].mT)
    torch.testing.assert_close(found, found.mT)


def test_leading_dimensions_are_matrices_of_their_own():
    matrices = torch.randn(2, 3, 150, 230, dtype=torch.float64)
    found = gram(matrices)
    for one in range(2):
        for other in range(3):
            torch.testing.assert_close(found[one, other], gram(matrices[one, other]))


def test_transposed_and_strided_rows():
    wide = torch.randn(600, 500, dtype=torch.float64)
    for rows in (wide.T, wide[::2, ::2], wide[:, :1].expand(-1, 450)):
        torch.testing.assert_close(gram(rows), rows.T.contiguous() @ rows)


def test_no_rows_give_zeros():
    assert torch.equal(gram(torch.empty(0, 300)), torch.zeros(300, 300))


def test_no_gradient_flows():
    assert not gram(torch.randn(200, 300, requires_grad=True)).requires_grad


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 300])
def test_a_further_column_of_ones(rows):
    matrix = torch.randn(2, rows, 230, dtype=torch.float64)
    vectors = torch.cat([matrix, torch.ones(2, rows, 1, dtype=torch.float64)], -1)
    torch.testing.assert_close(gram_with_ones(matrix), vectors.mT @ vectors)
