"""Distances that do not cancel, sums by class, and estimates with their errors."""

import math

import pytest
import torch

from grokscape import numerics
from grokscape.numerics import Estimate, full_precision, rademacher, select_rows, squared_distances, sum_by_class


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_distances_of_rows_that_are_close_and_far_out(offset, size):
    rows = offset + size * torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    wide = rows.double()
    expected = (wide[:, None] - wide[None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(rows).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(squared_distances(rows, slice(3, 5)), squared_distances(rows)[3:5])


@pytest.mark.parametrize(("apart", "error"), [(1e-4, 1e-6), (1e-6, 1e-2)])
@pytest.mark.parametrize("width", [20, 768])
def test_close_rows_keep_the_digits_that_are_promised(width, apart, error):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, width, generator=generator)
    rows[1] = rows[0] + apart * torch.randn(width, generator=generator)
    expected = float((rows[1].double() - rows[0].double()).square().sum())
    assert float(squared_distances(rows)[0, 1]) == pytest.approx(expected, rel=error)


def test_the_same_row_twice_has_distance_zero():
    rows = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) + 50
    twice = torch.cat([rows, rows.flip(0)])
    distances = squared_distances(twice)
    assert torch.equal(distances[torch.arange(40), 79 - torch.arange(40)], torch.zeros(40))
    assert (distances == 0).sum() == 160


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_sums_and_rows_by_class(monkeypatch, lead, products):
    monkeypatch.setattr(numerics, "_by_products", lambda *_: products)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*lead, 11, 4, generator=generator)
    index = torch.randint(5, (*lead, 11), generator=generator)
    hot = torch.nn.functional.one_hot(index, 5).float()
    sums = sum_by_class(values, index, 5)
    torch.testing.assert_close(sums, hot.mT @ values)
    torch.testing.assert_close(select_rows(sums, index), hot @ sums)


def test_estimates():
    found = Estimate.of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert (found.value, found.probes, found.exact) == (3.0, 4, False)
    assert found.stderr == pytest.approx(math.sqrt(14 / 3) / 2)
    assert str(found) == "3 ± 1.1"
    assert float(Estimate(2.5, 0.0, 3, exact=True)) == 2.5
    assert str(Estimate(2.5, 0.0, 3, exact=True)) == "2.5"
    assert math.isnan(Estimate.of(torch.tensor([1.0])).stderr)


def test_signs_follow_the_generator():
    draws = [rademacher(1000, generator=torch.Generator().manual_seed(s), like=torch.zeros(1)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].abs().eq(1).all()
    assert draws[0].mean().abs() < 0.1


def test_full_precision_restores_what_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
