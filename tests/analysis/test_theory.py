"""Flatness under exact collapse, against the definition through the Hessian's blocks on a collapsed network."""

import numpy as np
import polars as pl
import pytest

from grokscape.analysis.record import Record
from grokscape.analysis.theory import collapse_bound, collapse_flatness, theory


def collapsed_network(classes, radius, scale, offset):
    """Class means of a centred simplex moved by an offset, and the head and bias that decide by the nearest mean."""
    simplex = np.eye(classes) - 1 / classes
    centred = radius * simplex / np.linalg.norm(simplex[0])
    shift = np.zeros(classes + 1)
    shift[-1] = offset  # orthogonal to the simplex
    means = np.hstack([centred, np.zeros((classes, 1))]) + shift
    weight = scale * (means - means.mean(axis=0))
    return means, weight, -weight @ means.mean(axis=0)


def hessian_trace_form(means, weight, bias):
    """Σ_{s,s'} ⟨w_s, w_s'⟩ Tr(H_{s,s'}) with H_{s,s'} = mean_i p_s(δ_{ss'} − p_s') φ_i φ_iᵀ, one block at a time."""
    total = 0.0
    for phi in means:
        logits = weight @ phi + bias
        p = np.exp(logits - logits.max())
        p /= p.sum()
        for s in range(len(weight)):
            for t in range(len(weight)):
                block = p[s] * ((s == t) - p[t]) * np.outer(phi, phi)
                total += weight[s] @ weight[t] * np.trace(block)
    return total / len(means)


def test_a_head_that_points_the_wrong_way_overflows_nothing():
    radius, scale = np.array([3.0, 1e3]), np.array([-0.5, -2.0])
    exact, bound = collapse_flatness(5, radius, scale, np.zeros(2)), collapse_bound(5, radius, scale)
    means, weight, bias = collapsed_network(5, 3.0, -0.5, 0.0)
    assert exact[0] == pytest.approx(hessian_trace_form(means, weight, bias))
    assert np.isfinite(exact).all()
    assert np.isfinite(bound).all()


@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize("offset", [0.0, 1.7])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_collapse_flatness_is_the_definition(classes, offset, scale):
    found = collapse_flatness(classes, np.array(1.3), np.array(scale), np.array(offset))
    assert found == pytest.approx(hessian_trace_form(*collapsed_network(classes, 1.3, scale, offset)), rel=1e-10)


def test_the_bound_lies_above_and_far():
    radius, scale = np.array(1.3), np.linspace(0.1, 30, 50)
    for classes in (5, 10, 97):
        ratio = collapse_bound(classes, radius, scale) / collapse_flatness(classes, radius, scale, np.array(0.0))
        assert (ratio >= 1).all()
        assert ratio.max() > 5


def test_late_training_keeps_its_digits():
    found = collapse_flatness(10, np.array(5.0), np.array(5.0), np.array(0.0))
    epsilon = np.exp(-125 * 10 / 9)
    assert found == pytest.approx(5.0**2 * 5.0**2 * 5.0**2 * 20 * epsilon, rel=1e-12)


def test_the_finding_compares_measured_exact_and_bound():
    grid, seeds = np.arange(0, 500, 10), 5
    radius, scale = np.full_like(grid, 1.3, dtype=float), 0.2 + grid / 100
    exact = collapse_flatness(10, radius, scale, np.zeros_like(radius))
    frame = pl.DataFrame({
        "seed": np.repeat(np.arange(seeds), len(grid)), "step": np.tile(grid, seeds),
        "train/accuracy": 1.0, "test/accuracy": 1.0, "train/relative_flatness": np.tile(3 * exact, seeds),
        "train/collapse_radius": np.tile(radius, seeds), "train/collapse_scale": np.tile(scale, seeds),
        "train/mean_offset": 0.0, "train/nc1": 0.2})
    (found,) = theory(Record.of(frame, {"testbed": {"num_classes": 10}}))
    assert found.estimates["measured over exact collapse"]["value"] == pytest.approx(3)
    assert found.estimates["bound over measured"]["value"] > 1
    assert "is 3 times what exact collapse with its radius and scale would give" in found.statement
    assert found.data["distance_from_collapse"]["train/nc1"] == [0.2] * seeds
    assert np.shape(found.data["curves"]["exact"]) == (seeds, len(grid))


def test_without_the_columns_or_the_number_of_classes_there_is_no_finding():
    frame = pl.DataFrame({"step": [0, 1], "train/accuracy": [1.0, 1.0], "test/accuracy": [0.0, 1.0]})
    assert theory(Record.of(frame, {"testbed": {"num_classes": 10}})) == []
    assert theory(Record.of(frame)) == []
