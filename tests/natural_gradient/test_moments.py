"""Sums about an origin: exact in any order and about any origin, and accurate in float32."""

import torch

from fisherlayers.natural_gradient.moments import about, moments, total


def direct(rows, origin):
    scores = torch.cat([rows - origin, torch.ones(len(rows), 1)], 1)
    return sum(torch.outer(score, score) for score in scores)


def test_moments_are_sums_of_outer_products():
    rows, origin = torch.randn(9, 4), torch.randn(4)
    found = moments(rows, origin)
    torch.testing.assert_close(found.sums, direct(rows, origin))
    assert found.number == 9


def test_a_change_of_origin_is_exact():
    rows, first, second = torch.randn(9, 4) + 3, torch.randn(4), torch.randn(4)
    moved = about(moments(rows, first), second)
    torch.testing.assert_close(moved.sums, direct(rows, second))
    assert torch.equal(moved.origin, second)


def test_groups_change_their_origins_apart():
    rows, first, second = torch.randn(2, 9, 4) + 3, torch.randn(2, 4), torch.randn(2, 4)
    together = about(moments(rows, first), second)
    for group in range(2):
        torch.testing.assert_close(together.sums[group], direct(rows[group], second[group]))


def test_batches_about_their_own_means_add_up_to_one_batch():
    rows = torch.randn(20, 4) + torch.arange(20.0)[:, None]
    parts = [moments(part, part.mean(0)) for part in rows.split([3, 7, 10])]
    whole = total(total(parts[0], parts[1]), parts[2])
    torch.testing.assert_close(whole.sums, direct(rows, rows[:3].mean(0)))


def test_a_large_mean_costs_no_accuracy_in_float32():
    rows = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    parts = [moments(part.float(), part.float().mean(0)) for part in rows]
    sums = total(*parts).sums.double()
    mean = sums[-1, :-1] / 2000
    covariance = sums[:-1, :-1] / 2000 - torch.outer(mean, mean)
    expected = torch.cov(rows.float().double().flatten(0, 1).T, correction=0)
    torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-3)
