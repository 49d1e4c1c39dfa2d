"""Radius, scale and offset of the theory of collapse: exact where collapse is exact, and those of `collapse_theory`."""

import numpy as np
import pytest
import torch

from grokscape.measures import MEASURES, Snapshot
from grokscape.measures.theory import collapse_theory


def snapshot(features, weight, labels):
    return Snapshot(features, features @ weight.T, labels, weight, None, {"weight": weight})


def values(found):
    return [float(MEASURES[name](found)) for name in ("collapse_radius", "collapse_scale", "mean_offset")]


def test_exact_collapse_gives_back_what_it_was_made_of():
    simplex = np.eye(5) - 0.2
    means = np.hstack([1.3 * simplex / np.linalg.norm(simplex[0]), np.full((5, 1), 0.7)])
    labels = torch.arange(5).repeat(3)
    features = torch.tensor(means)[labels]
    weight = torch.tensor(2.5 * (means - means.mean(0)) + 4.0)  # what all rows share is not seen by softmax
    assert values(snapshot(features, weight, labels)) == pytest.approx([1.3, 2.5, 0.7])


def test_they_are_those_of_the_theory_on_any_head():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator, dtype=torch.float64) + 2
    labels = torch.cat([torch.arange(6).repeat(8), torch.zeros(12, dtype=torch.int64)])  # classes of unlike size
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    radius, scale, offset = values(snapshot(features, weight, labels))
    theory = collapse_theory(features, labels, weight)
    assert (radius, scale) == pytest.approx((float(theory.radius), float(theory.scale)))
    means = np.stack([features[labels == k].mean(0) for k in range(6)])
    assert offset == pytest.approx(np.linalg.norm(means.mean(0)))


def test_one_class_has_none_of_them():
    found = snapshot(torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64),
                     torch.zeros(4, dtype=torch.int64))
    assert np.isnan(values(found)).all()
