"""Sums of table rows and attention to looked-up rows, against loops over every replica, query, head and row."""

import math
import warnings

import pytest
import torch

from grokscape.models.attention import _Attention
from grokscape.models.lookup import Lookup, Pairs, remembered

R, B, M, H, F, L = 2, 5, 4, 3, 2, 3


@pytest.fixture
def rows():
    rows = torch.randint(M, (R, B, L), generator=torch.Generator().manual_seed(0))
    rows[0, 0] = rows[0, 0, 0]  # a query with one row several times; row 3 of replica 1 is looked at by nobody
    rows[1][rows[1] == 3] = 1
    return rows


@pytest.fixture
def numbers():
    generator = torch.Generator().manual_seed(1)
    shapes = (R, B, H, F), (R, M, 2, H, F)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.fixture
def hidden():
    hidden = torch.zeros(L, B)
    hidden[1, 2] = hidden[0, 4] = hidden[2, 4] = -math.inf
    return hidden.repeat_interleave(H, 1)


def test_row_sums(rows):
    table = torch.randn(R, M, F, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack([torch.stack([sum(table[r, rows[r, b, i]] for i in range(L)) for b in range(B)])
                            for r in range(R)])
    torch.testing.assert_close(Lookup.of(rows, M)(table), expected)
    assert torch.autograd.gradgradcheck(Lookup.of(rows, M), table.requires_grad_())


def looping(query, keys_values, rows, hidden):
    """Attention, one query's head at a time."""
    result = torch.empty_like(query)
    for r, b, h in torch.cartesian_prod(*(torch.arange(n) for n in (R, B, H))).tolist():
        key, value = (keys_values[r, rows[r, b], i, h] for i in (0, 1))  # (L, F) each
        scores = (key @ query[r, b, h]) / math.sqrt(F)
        if hidden is not None:
            scores = scores + hidden[:, b * H + h]
        result[r, b, h] = (scores.exp() / scores.exp().sum()) @ value
    return result


@pytest.mark.parametrize("masked", [False, True])
def test_attention(rows, numbers, hidden, masked):
    hidden = hidden if masked else None
    pairs = Pairs.of(rows, M, H, hidden)
    with torch.no_grad():
        expected = looping(*numbers, rows, hidden)
    torch.testing.assert_close(_Attention.apply(*numbers, pairs), expected)
    assert torch.autograd.gradcheck(lambda *x: _Attention.apply(*x, pairs), numbers)
    assert torch.autograd.gradgradcheck(lambda *x: _Attention.apply(*x, pairs), numbers)


def test_both_ways_to_its_gradient_are_one(rows, numbers, hidden):
    pairs = Pairs.of(rows, M, H, hidden)
    result = _Attention.apply(*numbers, pairs)
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for create_graph in (False, True):
        by_hand = torch.autograd.grad((result * weight).sum(), numbers, create_graph=create_graph, retain_graph=True)
        plain = [x.detach().requires_grad_() for x in numbers]
        expected = torch.autograd.grad((looping_with_graph(*plain, rows, hidden) * weight).sum(), plain)
        for ours, theirs in zip(by_hand, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def looping_with_graph(query, keys_values, rows, hidden):
    out = []
    for r, b, h in torch.cartesian_prod(*(torch.arange(n) for n in (R, B, H))).tolist():
        key, value = (keys_values[r, rows[r, b], i, h] for i in (0, 1))
        scores = (key @ query[r, b, h]) / math.sqrt(F) + hidden[:, b * H + h]
        out.append(scores.softmax(0) @ value)
    return torch.stack(out).view_as(query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_kernels_of_dot_products_agree(rows, monkeypatch, dtype):
    pairs = Pairs.of(rows, M, H)
    bags, table = torch.randn(R * B * H, F, dtype=dtype), torch.randn(R * M * 2 * H, F, dtype=dtype)
    one = pairs.dots(bags, table, 0.3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(pairs.dots(bags, table, 0.3), one)
    assert one.shape == (L, R * B * H)
    expected = 0.3 * bags.view(R, B, H, F)[1, 2, 1] @ table.view(R, M, 2, H, F)[1, rows[1, 2, 0], 0, 1]
    torch.testing.assert_close(one.view(L, R, B, H)[0, 1, 2, 1], expected)


def test_the_gradient_does_not_depend_on_the_order_of_rows(rows, numbers):
    one, other = (
        torch.autograd.grad(_Attention.apply(*numbers, Pairs.of(some, M, H)).square().sum(), numbers)
        for some in (rows, rows[..., [2, 0, 1]])
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_both_ways_to_sort_give_one_order(rows, monkeypatch):
    quick = Pairs.of(rows, M, H)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    slow = Pairs.of(rows, M, H)
    for name in ("rows", "keys", "back_bags", "back_pairs", "back_starts"):
        assert torch.equal(getattr(quick, name), getattr(slow, name)), name
    assert torch.equal(Lookup.of(rows + 2**16, 2**16 + M).back_indices, quick.back_bags[: rows.numel()] // H)


def test_what_is_remembered_is_made_once_and_not_in_inference_mode():
    made = []

    def build(*key):
        made.append(key)
        return torch.zeros(3)

    with torch.inference_mode():
        assert remembered(build, 1).is_inference()
    first = remembered(build, 1)
    assert remembered(build, 1) is first
    assert not first.is_inference()
    assert len(made) == 2
    assert remembered(build, 2) is not first
    for key in range(100):  # what is in use stays
        remembered(build, "many", key)
        assert remembered(build, 1) is first
    made.clear()
    for key in range(100):  # the rest does not pile up
        remembered(build, "many", key)
    assert len(made) == 100
    assert remembered(build, 1) is not first


def test_nothing_is_said_about_new_kinds_of_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)
