"""The exact value of κ under neural collapse, the paper's bound, and the distance from what they assume."""

import math

import pytest
import torch

from grokscape.measures import collapse_flatness, collapse_flatness_bound, collapse_theory, relative_flatness


def collapsed(classes, scale, radius, offset=0.0, per_class=3, width=None):
    """Features at the vertices of a simplex, and the dual head with nearest-mean decisions."""
    width = width or classes + 2
    basis = torch.linalg.qr(torch.randn(width, classes, generator=torch.Generator().manual_seed(0)).double()).Q.T
    simplex = basis - basis.mean(0)
    simplex = radius * simplex / simplex.norm(dim=1, keepdim=True)
    centre = offset * torch.randn(width, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(classes).repeat(per_class)
    weight = scale * simplex
    return (simplex + centre)[labels], labels, weight, -weight @ centre


@pytest.mark.parametrize("classes", [2, 5, 10, 97])
@pytest.mark.parametrize("offset", [0.0, 0.7])
@pytest.mark.parametrize(("scale", "radius"), [(0.5, 1.0), (2.0, 1.5), (8.0, 1.2), (3.0, 4.0)])
def test_the_exact_value_is_the_measured_one_and_the_bound_is_above(classes, offset, scale, radius):
    features, labels, weight, bias = collapsed(classes, scale, radius, offset)
    measured = float(relative_flatness(features, weight, bias=bias))
    found = collapse_theory(features, labels, weight, bias)
    assert float(found.scale) == pytest.approx(scale, rel=1e-10)
    assert float(found.radius) == pytest.approx(radius, rel=1e-10)
    assert float(found.predicted) == pytest.approx(measured, rel=1e-9)
    assert float(found.measured) == pytest.approx(measured, rel=1e-12)
    for name, distance in found.assumptions.items():
        assert float(distance) == pytest.approx(0, abs=1e-9), name
    if offset == 0:
        assert measured <= float(found.bound) * (1 + 1e-9)


def test_the_formulas_by_hand():
    scale, radius, classes = torch.tensor(1.5, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64), 10
    e = math.exp(-1.5 * 1.44 * 10 / 9)
    q = (1 - e) / (1 + 9 * e)
    value = 2.25 * 1.44 * (1 - q * q)
    assert float(collapse_flatness(scale, radius, classes)) == pytest.approx(1.44 * value, rel=1e-12)
    assert float(collapse_flatness(scale, radius, classes, torch.tensor(7.0))) == pytest.approx(7 * value, rel=1e-12)
    bound = 2.25 * 1000 * 1.44**2 * e / (1 + 9 * e) ** 2
    assert float(collapse_flatness_bound(scale, radius, classes)) == pytest.approx(bound, rel=1e-12)
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        collapse_flatness(scale, radius, 1)


def test_digits_where_epsilon_is_tiny():
    scale, radius = torch.tensor(10.0), torch.tensor(2.0)
    expected = collapse_flatness(scale.double(), radius.double(), 10)
    assert float(collapse_flatness(scale, radius, 10)) == pytest.approx(float(expected), rel=1e-4)
    assert expected > 0


@pytest.mark.parametrize(("name", "spoil"), [
    ("collapsed", lambda f, w, b: (f + 0.1 * torch.randn(f.shape, generator=torch.Generator().manual_seed(2)), w, b)),
    ("dual", lambda f, w, b: (f, w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(2)), b)),
    ("nearest_mean", lambda f, w, b: (f, w, b + torch.arange(len(b)))),
    ("simplex", lambda f, w, b: (f * torch.linspace(0.5, 2, f.shape[1]), w, b)),
])
def test_each_assumption_is_missed_where_it_does_not_hold(name, spoil):
    features, labels, weight, bias = collapsed(5, 2.0, 1.0)
    features, weight, bias = spoil(features, weight, bias)
    found = collapse_theory(features, labels, weight, bias)
    assert found.assumptions[name] > 0.01


def test_a_common_part_of_the_rows_is_not_seen():
    features, labels, weight, bias = collapsed(5, 2.0, 1.0)
    assert collapse_theory(features, labels, weight + 3, bias).assumptions["dual"] < 1e-9


def test_a_class_without_samples_is_an_error():
    features, labels, weight, bias = collapsed(5, 2.0, 1.0)
    with pytest.raises(ValueError, match="at least two samples of every class"):
        collapse_theory(features[labels > 0], labels[labels > 0], weight, bias)
