"""Sums of table rows and products of pairs, against loops over every replica, bag, head and pair."""

import pytest
import torch

from grokscape.models.lookup import Lookup, Pairs

R, B, M, H, F, L = 2, 5, 4, 3, 2, 3


@pytest.fixture
def numbers():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(M, (R, B, L), generator=generator)
    rows[0, 0] = rows[0, 0, 0]  # a bag with one row several times; row 3 of replica 1 is in no bag
    rows[1][rows[1] == 3] = 1
    bags, table = (torch.randn(R, n, H, F, generator=generator, dtype=torch.float64) for n in (B, M))
    weights = torch.randn(H, R, B, L, generator=generator, dtype=torch.float64)
    return rows, bags.requires_grad_(), table.requires_grad_(), weights.requires_grad_()


def test_row_sums(numbers):
    rows, _, table, _ = numbers
    flat = table.flatten(2)
    expected = torch.stack([torch.stack([sum(flat[r, rows[r, b, i]] for i in range(L)) for b in range(B)])
                            for r in range(R)])
    torch.testing.assert_close(Lookup.of(rows, M)(flat), expected)
    assert torch.autograd.gradgradcheck(Lookup.of(rows, M), flat.detach().requires_grad_())


def test_dot_products_of_pairs(numbers):
    rows, bags, table, _ = numbers
    pairs = Pairs.of(rows, M, H)
    found = pairs.dots(bags, table)
    assert found.shape == (H, R, B, L)
    for h, r, b, i in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        torch.testing.assert_close(found[h, r, b, i], bags[r, b, h] @ table[r, rows[r, b, i], h])
    assert torch.autograd.gradcheck(pairs.dots, (bags, table))
    assert torch.autograd.gradgradcheck(pairs.dots, (bags, table))


def test_weighted_sums_of_pairs(numbers):
    rows, _, table, weights = numbers
    pairs = Pairs.of(rows, M, H)
    found = pairs.sums(weights, table)
    assert found.shape == (R, B, H, F)
    for r, b, h in torch.cartesian_prod(torch.arange(R), torch.arange(B), torch.arange(H)).tolist():
        expected = sum(weights[h, r, b, i] * table[r, rows[r, b, i], h] for i in range(L))
        torch.testing.assert_close(found[r, b, h], expected)
    assert torch.autograd.gradcheck(pairs.sums, (weights, table))
    assert torch.autograd.gradgradcheck(pairs.sums, (weights, table))


def test_the_gradient_does_not_depend_on_the_order_of_pairs(numbers):
    rows, bags, table, _ = numbers
    order = torch.tensor([2, 0, 1])
    one = torch.autograd.grad(Pairs.of(rows, M, H).dots(bags, table).square().sum(), (bags, table))
    other = torch.autograd.grad(Pairs.of(rows[..., order], M, H).dots(bags, table).square().sum(), (bags, table))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
