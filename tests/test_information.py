"""One suite for all kinds of information: each against its definition, then chunks, decay, merging and state."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlayers.information import DenseInformation, DiagonalInformation, KroneckerInformation

D = 5


def scores(rows, seed=0, size=D, batch_shape=()):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch_shape, rows, size, generator=generator, dtype=torch.float64) * 2 + 0.7


def dense_definition(rows):
    return sum(torch.outer(row, row) for row in rows) / len(rows)


def diagonal_definition(rows):
    return sum(row * row for row in rows) / len(rows)


KINDS = {
    "dense": (lambda **kw: DenseInformation(D, dtype=torch.float64, **kw), dense_definition),
    "diagonal": (lambda **kw: DiagonalInformation(D, dtype=torch.float64, **kw), diagonal_definition),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_exact_mean_is_the_definition(kind):
    make, definition = kind
    information = make()
    information.update(scores(7, seed=1))
    information.update(scores(30, seed=2))
    everything = torch.cat([scores(7, seed=1), scores(30, seed=2)])
    torch.testing.assert_close(information.value(), definition(everything))
    assert float(information.count) == 37


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    decay=st.floats(0, 1),
    name=st.sampled_from(sorted(KINDS)),
)
def test_chunked_update_equals_one_update(sizes, cuts, decay, name):
    make, _ = KINDS[name]
    whole, chunked = make(decay=decay), make(decay=decay)
    for step, rows in enumerate(sizes):
        batch = scores(rows, seed=step)
        whole.update(batch)
        edges = sorted({0, rows, *(c for c in cuts if c < rows)})
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            chunked.update(batch[start:stop], new_step=i == 0)
    torch.testing.assert_close(chunked.value(), whole.value(), rtol=1e-10, atol=1e-12)
    assert float(chunked.count) == pytest.approx(float(whole.count))


def test_decay_is_the_bias_corrected_moving_average(kind):
    make, definition = kind
    information = make(decay=0.9)
    batches = [scores(11, seed=s) for s in range(6)]
    for batch in batches:
        information.update(batch)
    # The textbook form: an average that starts at zero, divided by 1 - decay^t.
    average = torch.zeros_like(information.value())
    for batch in batches:
        average = 0.9 * average + 0.1 * definition(batch)
    torch.testing.assert_close(information.value(), average / (1 - 0.9 ** len(batches)))


def test_zero_decay_forgets_and_first_batch_has_no_start_up_bias(kind):
    make, definition = kind
    forgetful, slow = make(decay=0.0), make(decay=0.999)
    for information in (forgetful, slow):
        information.update(scores(4, seed=9))
    torch.testing.assert_close(slow.value(), definition(scores(4, seed=9)))
    forgetful.update(scores(4, seed=10))
    torch.testing.assert_close(forgetful.value(), definition(scores(4, seed=10)))


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_merge_equals_one_process(kind, decay):
    make, _ = kind
    one, first, second = make(decay=decay), make(decay=decay), make(decay=decay)
    for step in range(4):
        batch = scores(10, seed=step)
        one.update(batch)
        first.update(batch[:3])
        second.update(batch[3:])
    first.merge(second)
    torch.testing.assert_close(first.value(), one.value(), rtol=1e-12, atol=1e-12)
    assert float(first.count) == pytest.approx(float(one.count))


def test_merging_an_empty_one_changes_nothing(kind):
    make, _ = kind
    information, empty = make(), make()
    information.update(scores(6))
    before = information.value().clone()
    information.merge(empty)
    assert torch.equal(information.value(), before)
    empty.merge(information)
    assert torch.equal(empty.value(), before)
    twice_empty = make()
    twice_empty.merge(make())
    assert float(twice_empty.count) == 0


def test_batched_information_is_several_side_by_side(kind):
    make, definition = kind
    information = make(batch_shape=(2, 3))
    batch = scores(8, batch_shape=(2, 3))
    information.update(batch)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(information.value()[i, j], definition(batch[i, j]))


def test_state_dict_copy_and_dtype_follow(kind):
    make, _ = kind
    information = make(decay=0.9)
    information.update(scores(6))
    restored = make(decay=0.9)
    restored.load_state_dict(copy.deepcopy(information.state_dict()))
    copied = copy.deepcopy(information)
    for other in (restored, copied):
        other.update(scores(6, seed=5))
    information.update(scores(6, seed=5))
    assert torch.equal(restored.value(), information.value())
    assert torch.equal(copied.value(), information.value())
    assert information.float().value().dtype == torch.float32
    information.update(scores(6, seed=7))


def test_no_gradient_flows_through_the_information(kind):
    make, _ = kind
    information = make()
    information.update(scores(6).requires_grad_())
    assert not information.value().requires_grad


def test_float32_mean_of_many_batches_stays_accurate():
    information = DiagonalInformation(1, dtype=torch.float32)
    for _ in range(5000):
        information.update(torch.full((64, 1), 3.0))
    assert float(information.value()) == pytest.approx(9.0, rel=1e-6)


def test_bad_scores_leave_the_state_alone(kind):
    make, _ = kind
    information = make()
    information.update(scores(6))
    before = information.value().clone()
    for bad, message in [
        (torch.ones(4, D + 1), r"scores must have shape \(N, 5\), got \(4, 6\)"),
        (torch.ones(D), "scores must have shape"),
        (torch.ones(2, 4, D), "scores must have shape"),
        (torch.ones(0, D), "at least one row"),
        (torch.tensor([[1.0, 2.0, float("nan"), 0.0, 0.0]]), "scores must be finite"),
        (torch.tensor([[1.0, 2.0, float("-inf"), 0.0, 0.0]]), "scores must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            information.update(bad)
    assert torch.equal(information.value(), before)
    assert float(information.count) == 6


def test_bad_arguments(kind):
    make, _ = kind
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\]"):
            make(decay=decay)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        DenseInformation(0)
    with pytest.raises(RuntimeError, match="the information is empty"):
        make().value()
    with pytest.raises(ValueError, match=r"decay 1.0, got .* 0.5"):
        make().merge(make(decay=0.5))
    with pytest.raises(TypeError, match="other must be a DenseInformation, got DiagonalInformation"):
        DenseInformation(D).merge(DiagonalInformation(D))


def test_closed_form_diagonal():
    value = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(DiagonalInformation.from_value(value).value(), value)
    with pytest.raises(ValueError, match="value must hold positive finite entries"):
        DiagonalInformation.from_value(torch.tensor([1.0, 0.0]))


def test_kronecker_is_the_information_of_independent_factors():
    information = KroneckerInformation(3, 2, dtype=torch.float64)
    inputs, gradients = scores(50, size=3), scores(50, seed=1, size=2)
    information.update((inputs, gradients))
    # Over all pairs (n, m), inputs and gradients are independent by construction: the factorisation is exact there.
    pairs = [torch.outer(g, x).T.reshape(-1) for x in inputs for g in gradients]
    torch.testing.assert_close(information.value(), dense_definition(pairs))
    other = KroneckerInformation(3, 2, dtype=torch.float64)
    other.update((scores(20, seed=2, size=3), scores(20, seed=3, size=2)))
    information.merge(other)
    assert float(information.inputs.count) == 70
    with pytest.raises(ValueError, match="as many inputs as gradients, got 3 and 4"):
        information.update((inputs[:3], gradients[:4]))


@pytest.mark.parametrize("rows", [64, 4000])  # with and without the blocked product
def test_autocast_of_the_caller_does_not_round(rows):
    scores = torch.randn(rows, 3, dtype=torch.float32)
    expected, found = DenseInformation(3, dtype=torch.float32), DenseInformation(3, dtype=torch.float32)
    expected.update(scores)
    with torch.autocast("cpu", torch.bfloat16):
        found.update(scores)
    assert torch.equal(found.value(), expected.value())


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_neither_the_mean_nor_the_count(other):
    information = DenseInformation(2, dtype=torch.float32).to(other)
    for step in range(300):
        information.update(torch.full((1, 2), 1.0 if step < 150 else 2.0))
    assert float(information.count) == 300
    torch.testing.assert_close(information.value(), torch.full((2, 2), 2.5))
    assert information.double().value().dtype == torch.float64
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        DenseInformation(2, dtype=other)


def test_a_refused_batch_leaves_no_trace():
    information = KroneckerInformation(3, 2)
    information.update((torch.ones(4, 3), torch.ones(4, 2)))
    before = copy.deepcopy(information.state_dict())
    for scores in (
        (torch.ones(4, 3), torch.full((4, 2), torch.nan)),
        (torch.ones(4, 3), torch.ones(4, 5)),
        (torch.full((4, 3), torch.inf), torch.ones(4, 2)),
    ):
        with pytest.raises(ValueError, match="scores must"):
            information.update(scores)
    with pytest.raises(ValueError, match="other must have"):
        information.merge(KroneckerInformation(3, 4))
    with pytest.raises(TypeError, match="other must be a KroneckerInformation"):
        information.merge(DenseInformation(3))
    with pytest.raises(TypeError, match="scores must be a pair"):
        information.update(torch.ones(4, 3))
    for name, value in information.state_dict().items():
        assert torch.equal(value, before[name])


def test_squares_that_overflow_are_told_from_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="so large that the squares overflow"):
        DenseInformation(3, dtype=torch.float32).update(torch.full((5, 3), 1e20))


def test_leading_dimensions_may_be_a_list():
    information = DenseInformation(3, batch_shape=[2])
    information.update(torch.ones(2, 5, 3))
    assert torch.equal(information.value(), torch.ones(2, 3, 3))
