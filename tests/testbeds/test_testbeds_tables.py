"""Every answer of every table, recomputed from its definition in plain Python."""

from itertools import permutations

import pytest
import torch

from grokscape.testbeds import ModularArithmetic, SymmetricGroup


def _quotient(x, y, p):
    return next(q for q in range(p) if q * y % p == x)


DEFINITIONS = {
    "x+y": lambda x, y, p: (x + y) % p,
    "x-y": lambda x, y, p: (x - y) % p,
    "x*y": lambda x, y, p: (x * y) % p,
    "x/y": _quotient,
    "x^2+y^2": lambda x, y, p: (x * x + y * y) % p,
    "x^2+xy+y^2": lambda x, y, p: (x * x + x * y + y * y) % p,
    "x^2+xy+y^2+x": lambda x, y, p: (x * x + x * y + y * y + x) % p,
    "x^3+xy": lambda x, y, p: (x * x * x + x * y) % p,
    "x^3+xy^2+y": lambda x, y, p: (x * x * x + x * y * y + y) % p,
    "x/y if y odd else x-y": lambda x, y, p: _quotient(x, y, p) if y % 2 else (x - y) % p,
}


@pytest.mark.parametrize("operation", DEFINITIONS)
@pytest.mark.parametrize("p", [2, 7, 13])
def test_modular_table_follows_the_definition(operation, p):
    pairs, answers = ModularArithmetic(operation=operation, p=p).table()
    expected_pairs = [[x, y] for x in range(p) for y in range(p) if not (operation == "x/y" and y == 0)]
    assert pairs.tolist() == expected_pairs
    assert answers.tolist() == [DEFINITIONS[operation](x, y, p) for x, y in expected_pairs]


@pytest.mark.parametrize("operation", ["x+y", "x*y", "x^3+xy^2+y"])
def test_modular_table_holds_for_a_composite_modulus(operation):
    pairs, answers = ModularArithmetic(operation=operation, p=12).table()
    assert answers.tolist() == [DEFINITIONS[operation](x, y, 12) for x, y in pairs.tolist()]


def _compose(x, y):
    return tuple(x[y[i]] for i in range(len(x)))


def _inverse(x):
    return tuple(x.index(i) for i in range(len(x)))


PRODUCTS = {
    "xy": _compose,
    "xyx^-1": lambda x, y: _compose(_compose(x, y), _inverse(x)),
    "xyx": lambda x, y: _compose(_compose(x, y), x),
}


@pytest.mark.parametrize("operation", PRODUCTS)
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_products_of_permutations(operation, degree):
    pairs, answers = SymmetricGroup(operation=operation, degree=degree).table()
    elements = list(permutations(range(degree)))
    assert len(pairs) == len(elements) ** 2
    for (x, y), answer in zip(pairs.tolist()[::7], answers.tolist()[::7], strict=True):
        assert elements[answer] == PRODUCTS[operation](elements[x], elements[y])


def test_the_group_of_five_is_a_group_that_does_not_commute():
    _, answers = SymmetricGroup().table()
    table = answers.view(120, 120)
    everything = torch.arange(120)
    assert torch.equal(table[0], everything)
    assert torch.equal(table[:, 0], everything)
    assert all(torch.equal(row.sort().values, everything) for row in table)
    assert not torch.equal(table, table.T)
