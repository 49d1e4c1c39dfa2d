"""Distances that do not cancel, sums by class, and estimates with their errors."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from grokscape import numerics
from grokscape.numerics import (
    Estimate,
    full_precision,
    pseudo_inverse,
    rademacher,
    select_rows,
    squared_distances,
    squared_norms,
    sum_by_class,
    transforming,
)


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


def test_full_precision_where_single_backends_were_set():
    text = """
import torch
from grokscape.numerics import full_precision
torch.backends.fp32_precision = "tf32"
kinds = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
with full_precision():
    assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
assert [kind.fp32_precision for kind in kinds] == ["tf32", "tf32"]
"""
    if hasattr(torch.backends, "fp32_precision"):
        subprocess.run([sys.executable, "-c", text], check=True)


def test_full_precision_restores_what_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def grams(seed=0):
    """Gram matrices of centred rows: in general position; two rows alike; all zero; a row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 5, 7, dtype=torch.float64, generator=generator)
    rows[1, 1] = rows[1, 0]
    rows[2] = 1.0
    rows[3, 2] = 0.0
    rows[:3] -= rows[:3].mean(1, keepdim=True)
    rows[3, [0, 1, 3, 4]] -= rows[3, [0, 1, 3, 4]].mean(0)
    direction = torch.full((4, 5), 5**-0.5, dtype=torch.float64)
    direction[3] = torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5])
    null = direction[:, :, None] * direction[:, None, :]
    null[3, 2, 2] = 1.0
    return rows @ rows.mT, null


@pytest.mark.parametrize("which", [[0], [3], [0, 3], [0, 1, 2, 3]])
def test_pseudo_inverse_is_numpys(which):
    gram, null = (x[which] for x in grams())
    expected = torch.from_numpy(np.linalg.pinv(gram.numpy(), rcond=1e-12, hermitian=True))
    torch.testing.assert_close(pseudo_inverse(gram, null, 1e-12), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(lambda a, p: pseudo_inverse(a, p, 1e-12))(gram, null), expected)


def test_eigenvalues_up_to_the_cut_off_count_as_zero():
    values = torch.tensor([1.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    matrix, null = vectors * values @ vectors.T, torch.outer(vectors[:, 3], vectors[:, 3])
    for cut, kept in ((1e-4, 3), (1e-2, 2), (0.7, 1)):
        expected = vectors[:, :kept] / values[:kept] @ vectors[:, :kept].T
        torch.testing.assert_close(pseudo_inverse(matrix, null, cut), expected, rtol=1e-9, atol=1e-9)


def test_regular_matrices_need_no_eigenvalues_and_do_not_depend_on_others(monkeypatch):
    gram, null = grams()
    together = pseudo_inverse(gram, null, 1e-12)
    monkeypatch.setattr(torch.linalg, "pinv", None)
    assert torch.equal(pseudo_inverse(gram[[0, 3]], null[[0, 3]], 1e-12), together[[0, 3]])


def test_the_slope_of_a_pseudo_inverse_is_numerical_even_beside_irregular_matrices():
    gram, null = grams()
    root = torch.linalg.cholesky(gram[0] + null[0])[:, :4].clone().requires_grad_()

    def total(root, others):
        centred = root - root.mean(0)
        matrices = torch.cat([(centred @ centred.T)[None], gram[others]])
        return pseudo_inverse(matrices, torch.cat([null[:1], null[others]]), 1e-12)[0].sin().sum()

    assert torch.autograd.gradcheck(lambda root: total(root, []), root)
    assert torch.autograd.gradcheck(lambda root: total(root, [1, 2]), root)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_full_precision_ends_autocast(kind):
    torch.set_autocast_enabled(kind, True)
    try:
        with full_precision():
            assert not torch.is_autocast_enabled(kind)
        assert torch.is_autocast_enabled(kind)
    finally:
        torch.set_autocast_enabled(kind, False)


@pytest.mark.parametrize(("function", "expected"), [
    (numerics.root, [0.0, 0.25]), (numerics.log, [0.0, 0.25])])
def test_slopes_at_zero_are_zero(function, expected):
    values = torch.tensor([0.0, 4.0], requires_grad=True)
    function(values)[function(values).isfinite()].sum().backward()
    assert values.grad.tolist() == expected


def test_squared_norms_and_their_slopes():
    rows = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[0, 1] = 0.0
    rows.requires_grad_()
    torch.testing.assert_close(squared_norms(rows), (rows * rows).sum(-1))
    assert torch.autograd.gradcheck(squared_norms, rows)
    assert torch.autograd.gradgradcheck(squared_norms, rows)
    torch.testing.assert_close(torch.func.vmap(squared_norms)(rows), squared_norms(rows))
    slope = torch.func.grad(lambda x: squared_norms(x).sum())(rows.detach())
    torch.testing.assert_close(slope, 2 * rows.detach())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func.jvp's own
def test_derivatives_by_hand_step_aside_where_pytorch_transforms():
    seen = []

    def function(x):
        seen.append(transforming())
        return x.square().sum()

    x = torch.ones(2)
    function(x)
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x[None])
    torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        function(x)
    assert seen == [False, True, True, True, True]
