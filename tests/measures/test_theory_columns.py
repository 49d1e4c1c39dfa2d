"""The three columns from which κ under exact collapse follows, checked on heads that are collapsed by construction."""

import math

import numpy as np
import pytest
import torch

from grokscape.analysis.theory import collapse_flatness
from grokscape.measures import MEASURES, Snapshot


def collapsed(classes: int, radius: float, scale: float, offset: float) -> Snapshot:
    """Features on a simplex of a radius around an offset, rows a multiple of it, three samples a class."""
    simplex = (torch.eye(classes, dtype=torch.float64) - 1 / classes) * math.sqrt(classes / (classes - 1)) * radius
    means = torch.cat([simplex, torch.full((classes, 1), offset, dtype=torch.float64)], dim=1)
    labels = torch.arange(classes).repeat(3)
    weight = torch.cat([scale * simplex, torch.zeros(classes, 1, dtype=torch.float64)], dim=1)
    features = means[labels]
    return Snapshot(features, features @ weight.T, labels, weight)


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize(("radius", "scale", "offset"), [(1.0, 2.0, 0.0), (2.5, 0.7, 4.0)])
def test_they_are_what_the_head_was_built_from(classes: int, radius: float, scale: float, offset: float) -> None:
    built = collapsed(classes, radius, scale, offset)
    names = ("collapse_radius", "collapse_scale", "mean_offset")
    found = [float(MEASURES[name](built)) for name in names]
    assert found == pytest.approx([radius, scale, offset], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("radius", "scale", "offset"), [(1.0, 2.0, 0.0), (2.5, 0.7, 4.0)])
def test_the_analysis_gets_measured_flatness_from_them(radius: float, scale: float, offset: float) -> None:
    built = collapsed(5, radius, scale, offset)
    columns = [np.array(float(MEASURES[n](built))) for n in ("collapse_radius", "collapse_scale", "mean_offset")]
    assert collapse_flatness(5, *columns) == pytest.approx(float(MEASURES["relative_flatness"](built)), rel=1e-10)


def test_a_shift_of_all_rows_leaves_the_scale_alone() -> None:
    built = collapsed(4, 1.5, 0.5, 1.0)
    shifted = Snapshot(built.features, built.logits, built.labels, built.weight + 3.0)
    assert float(MEASURES["collapse_scale"](shifted)) == pytest.approx(0.5)
