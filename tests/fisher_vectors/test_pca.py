"""Principal components against scikit-learn and the definition; chunks, signs, whitening, state and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from fisherlayers.fisher_vectors.pca import PrincipalComponents, RunningCovariance, fit_pca


def correlated_rows(rows=200, columns=7, seed=0, offset=3.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing + offset


@pytest.mark.parametrize("whiten", [False, True])
def test_equals_scikit_learn_up_to_sign(whiten):
    rows = correlated_rows()
    components = fit_pca(rows, 4, whiten=whiten)
    expected = PCA(4, whiten=whiten, svd_solver="full").fit(rows.numpy())
    signs = torch.from_numpy(np.sign((expected.components_.T * components.basis.numpy()).sum(axis=0)))
    torch.testing.assert_close(components.mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(components.variances, torch.from_numpy(expected.explained_variance_))
    torch.testing.assert_close(components.basis * signs, torch.from_numpy(expected.components_.T))
    torch.testing.assert_close(components.transform(rows) * signs, torch.from_numpy(expected.transform(rows.numpy())))


def test_the_largest_entry_of_each_direction_is_positive():
    rows = correlated_rows()
    for shuffled in (rows, -rows, rows.flip(0)):
        basis = fit_pca(shuffled).basis
        assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())
        torch.testing.assert_close(basis, fit_pca(rows).basis)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=5), offset=st.sampled_from([0.0, 1e4, -1e6]))
def test_chunks_equal_one_fit_even_far_from_the_origin(cuts, offset):
    rows = correlated_rows(200, offset=offset)
    statistics = RunningCovariance()
    for chunk in torch.tensor_split(rows, sorted({sum(cuts[: i + 1]) for i in range(len(cuts))})):
        if len(chunk):
            statistics.partial_fit(chunk)
    torch.testing.assert_close(statistics.mean(), rows.mean(dim=0))
    torch.testing.assert_close(statistics.covariance(), rows.T.cov(), rtol=1e-6, atol=1e-6)


def test_many_internal_chunks(monkeypatch):
    rows = correlated_rows()
    monkeypatch.setattr("fisherlayers.fisher_vectors.pca._CHUNK", 7)
    torch.testing.assert_close(RunningCovariance().partial_fit(rows).covariance(), rows.T.cov())


def test_a_floor_is_added_to_the_variances():
    rows = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    plain, floored = fit_pca(rows), fit_pca(rows, whiten=True, floor=0.5)
    torch.testing.assert_close(floored.variances, plain.variances + 0.5)
    torch.testing.assert_close(floored.transform(rows), plain.transform(rows) / (plain.variances + 0.5).sqrt())
    torch.testing.assert_close(floored.inverse_transform(floored.transform(rows)), rows)
    with pytest.raises(ValueError, match="floor must be at least 0, got -1"):
        fit_pca(rows, floor=-1.0)


def test_whitened_rows_have_unit_covariance_and_come_back():
    rows = correlated_rows()
    components = fit_pca(rows, whiten=True)
    whitened = components.transform(rows)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(components.inverse_transform(whitened), rows)


def test_inverse_transform_is_the_projection_on_the_subspace():
    rows = correlated_rows()
    for whiten in (False, True):
        components = fit_pca(rows, 3, whiten=whiten)
        projector = components.basis @ components.basis.T
        torch.testing.assert_close(
            components.inverse_transform(components.transform(rows)), (rows - rows.mean(0)) @ projector + rows.mean(0)
        )


def test_constant_columns_whiten_to_zero():
    rows = torch.cat([correlated_rows(columns=3), torch.full((200, 2), 5.0, dtype=torch.float64)], dim=1)
    whitened = fit_pca(rows, whiten=True).transform(rows)
    assert bool(torch.isfinite(whitened).all())
    torch.testing.assert_close(whitened[:, 3:], torch.zeros(200, 2, dtype=torch.float64))


def test_float32_rows_give_a_float32_map_as_accurate_as_float32_allows():
    rows = correlated_rows(offset=1e3)
    exact, rounded = fit_pca(rows, 3), fit_pca(rows.float(), 3)
    assert rounded.basis.dtype == torch.float32
    torch.testing.assert_close(rounded.basis.double(), exact.basis, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-25), (torch.float32, 1e25), (torch.float16, 1e3)])
def test_variances_need_not_fit_the_dtype_of_the_rows(dtype, scale):
    rows = (scale * correlated_rows(columns=3, offset=0.0)).to(dtype)
    components, exact = fit_pca(rows, whiten=True), fit_pca(rows.double(), whiten=True)
    torch.testing.assert_close(components.variances, exact.variances)
    whitened, tolerance = components.transform(rows), 10 * torch.finfo(dtype).eps
    assert whitened.dtype == components.basis.dtype == dtype
    torch.testing.assert_close(whitened.double(), exact.transform(rows.double()), rtol=0, atol=10 * tolerance)
    back = components.inverse_transform(whitened)
    assert back.dtype == dtype
    torch.testing.assert_close(back.double() / scale, rows.double() / scale, rtol=0, atol=10 * tolerance)


def test_a_fit_is_no_function_of_its_rows():
    components = fit_pca(correlated_rows().requires_grad_(), 2, whiten=True)
    assert not any(tensor.requires_grad for tensor in components.to_tensors().values())


def test_leading_axes_are_kept():
    rows = correlated_rows(24)
    components = fit_pca(rows, 2)
    torch.testing.assert_close(components.transform(rows.view(2, 3, 4, 7)), components.transform(rows).view(2, 3, 4, 2))


@pytest.mark.parametrize("whiten", [False, True])
def test_state_as_tensors(whiten):
    rows = correlated_rows()
    components = fit_pca(rows, 2, whiten=whiten)
    again = PrincipalComponents.from_tensors(components.to_tensors())
    assert torch.equal(again.transform(rows), components.transform(rows))


def test_errors_name_the_argument():
    rows = correlated_rows()
    with pytest.raises(ValueError, match=r"num_components must lie between 1 and the number of columns, 7; got 8"):
        fit_pca(rows, 8)
    with pytest.raises(ValueError, match="num_components"):
        fit_pca(rows, 0)
    with pytest.raises(RuntimeError, match="at least two rows"):
        fit_pca(rows[:1])
    with pytest.raises(RuntimeError, match="no rows have been seen"):
        RunningCovariance().mean()
    with pytest.raises(ValueError, match="rows must have shape"):
        fit_pca(rows[0])
    with pytest.raises(ValueError, match=r"rows must have shape \(N, 7\)"):
        RunningCovariance().partial_fit(rows).partial_fit(rows[:, :6])
    with pytest.raises(ValueError, match="rows must be finite"):
        fit_pca(torch.cat([rows, torch.full((1, 7), torch.nan, dtype=torch.float64)]))
    components = fit_pca(rows, 2)
    with pytest.raises(ValueError, match=r"rows must have shape \(..., 7\)"):
        components.transform(rows[:, :5])
    with pytest.raises(ValueError, match=r"projected must have shape \(..., 2\)"):
        components.inverse_transform(rows)
    with pytest.raises(ValueError, match="tensors must hold"):
        PrincipalComponents.from_tensors({"mean": rows[0]})
    with pytest.raises(ValueError, match=r"mean, basis and variances must have shapes"):
        PrincipalComponents(rows[0], rows, rows[0])
