"""Quantiles of the angles between class means, against NumPy's over a list of all pairs."""

import itertools
import math

import numpy as np
import pytest
import torch

from grokscape.measures import MEASURES, Snapshot, evaluate
from grokscape.measures import statistics as statistics_module
from grokscape.measures.collapse import class_angle
from grokscape.measures.streaming import ClassMoments

SHARES = {"min": 0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1}
NAMES = [f"class_angle_{name}" for name in SHARES]
COUNTS = {
    "unlike sizes": (9, 4, 2, 7, 5, 3),
    "empty and one-sample classes": (6, 0, 5, 1, 4, 0, 3, 1, 2),
    "two classes": (4, 6),
}


def data(counts, width=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.normal(size=(len(labels), width)) + 1.0, labels


def oracle(features, labels):
    kept = [c for c in np.unique(labels) if (labels == c).sum() >= 2]
    centre = features[np.isin(labels, kept)].mean(0)
    means = [features[labels == c].mean(0) - centre for c in kept]
    cosines = [a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in itertools.combinations(means, 2)]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return [np.quantile(angles, share, method="inverted_cdf") for share in SHARES.values()]


def seen(features, labels, classes):
    features, labels = torch.tensor(features), torch.tensor(labels)
    weight = torch.zeros(classes, features.shape[-1], dtype=features.dtype)
    return Snapshot(features, features @ weight.T, labels, weight)


def found(*arguments):
    values = evaluate(seen(*arguments), NAMES)
    return [float(values[name]) for name in NAMES]


@pytest.mark.parametrize("table", [3, 2048])
@pytest.mark.parametrize("case", COUNTS)
def test_they_are_the_quantiles_of_all_pairs(monkeypatch, case, table):
    monkeypatch.setattr(statistics_module, "WHOLE_UP_TO", table)
    features, labels = data(COUNTS[case])
    assert found(features, labels, len(COUNTS[case])) == pytest.approx(oracle(features, labels), abs=0.0051)


def test_replicas_have_angles_of_their_own():
    features, labels = data(COUNTS["unlike sizes"])
    other, _ = data(COUNTS["unlike sizes"], seed=1)
    both = torch.tensor(np.stack([features, other]))
    weight = torch.zeros(2, 6, 4, dtype=torch.float64)
    values = evaluate(Snapshot(both, both @ weight.mT, torch.tensor(np.stack([labels, labels])), weight), NAMES)
    for row, one in enumerate((features, other)):
        assert [float(values[name][row]) for name in NAMES] == found(one, labels, 6)


def test_streamed_statistics_give_the_same():
    features, labels = data(COUNTS["unlike sizes"])
    moments = ClassMoments.empty(6, 4, scatter=False)
    for rows in np.array_split(np.arange(len(labels)), 4):
        moments = moments.update(torch.tensor(features[rows]), torch.tensor(labels[rows]))
    streamed = [float(class_angle(moments.compute(), share=share)) for share in SHARES.values()]
    assert streamed == found(features, labels, 6)


def test_all_angles_of_a_simplex_are_its_angle():
    simplex = np.eye(10).repeat(2, axis=0)
    expected = math.degrees(math.acos(-1 / 9))
    assert found(simplex, np.arange(10).repeat(2), 10) == pytest.approx([expected] * 5, abs=0.0051)


def test_without_pairs_or_without_a_direction_there_are_none():
    assert np.isnan(found(np.random.default_rng(0).normal(size=(4, 3)), np.zeros(4, dtype=np.int64), 2)).all()
    at_the_centre = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]).repeat(2, axis=0)
    assert np.isnan(found(at_the_centre, np.arange(3).repeat(2), 3)).all()
    assert MEASURES["class_angle_min"].differentiable is False
