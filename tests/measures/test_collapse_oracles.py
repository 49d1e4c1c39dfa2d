"""Every measure of neural collapse against its formula written out with loops in NumPy float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from grokscape.measures import (
    MEASURES,
    MeasureWarning,
    Snapshot,
    cdnv,
    collapse,
    collapse_by_class,
    evaluate,
    neural_collapse,
)
from grokscape.measures import statistics as statistics_module
from grokscape.measures.streaming import ClassMoments


def data(seed=0, counts=(9, 4, 2, 7, 5), width=6, offset=0.0, spread=1.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    classes = len(counts)
    labels = rng.permutation(np.repeat(np.arange(classes), counts))
    features = rng.normal(size=(classes, width))[labels] + spread * rng.normal(size=(len(labels), width)) + offset
    weight, bias = rng.normal(size=(classes, width)), rng.normal(size=classes)
    return (*(torch.tensor(x, dtype=dtype) for x in (features,)), torch.tensor(labels),
            torch.tensor(weight, dtype=dtype), torch.tensor(bias, dtype=dtype))


def oracle(features, labels, weight, bias, *, centre=None, by_class=False):
    """name → value, from the definitions; `centre` are other samples whose class means are used."""
    f, y, w, b = (np.asarray(x, dtype=np.float64) if x.is_floating_point() else x.numpy()
                  for x in (features, labels, weight, bias))
    g, z = (f, y) if centre is None else (np.asarray(centre[0], np.float64), centre[1].numpy())
    enough = 2 if centre is None else 1
    classes = [c for c in range(len(w)) if (z == c).sum() >= 2 and (y == c).sum() >= enough]
    mu = {c: g[z == c].mean(0) for c in classes}
    kept = np.isin(y, classes)
    V = {c: np.mean([np.sum((x - mu[c]) ** 2) for x in f[y == c]]) for c in classes}
    n = {c: (y == c).sum() for c in classes}
    K, N = len(classes), kept.sum()
    share = {c: 1 / K if by_class else n[c] / N for c in classes}
    mg = sum(share[c] * mu[c] for c in classes)
    d = f.shape[1]
    sw = np.zeros((d, d))
    for x, c in zip(f[kept], y[kept], strict=True):
        sw += np.outer(x - mu[c], x - mu[c]) * share[c] / n[c]
    m = np.stack([mu[c] - mg for c in classes])
    sb = sum(np.outer(row, row) for row in m) / K
    pairs = [(a, c) for a in classes for c in classes if a != c]
    dist = {(a, c): np.sum((mu[a] - mu[c]) ** 2) for a, c in pairs}
    rows = w[classes]
    norms, wnorms = np.linalg.norm(m, axis=1), np.linalg.norm(rows, axis=1)
    gram = m @ m.T
    simplex = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    cos = [m[i] @ m[j] / norms[i] / norms[j] for i in range(K) for j in range(K) if i != j]
    wcos = [rows[i] @ rows[j] / wnorms[i] / wnorms[j] for i in range(K) for j in range(K) if i != j]
    nearest = [classes[int(np.argmin([np.sum((x - mu[c]) ** 2) for c in classes]))] for x in f]
    decided = np.argmax(f @ w.T + b, axis=1)
    own = [np.sqrt(np.sum((x - mu[c]) ** 2)) for x, c in zip(f[kept], y[kept], strict=True)]
    length = np.linalg.norm(f, axis=1)
    return {
        "cdnv": np.mean([(V[a] + V[c]) / (2 * dist[a, c]) for a, c in pairs]),
        "cdnv_sum": np.sum([(n[a] * V[a] + n[c] * V[c]) / (2 * dist[a, c]) for a, c in pairs]),
        "within_variance": np.mean(list(V.values())),
        "between_distance": np.mean(list(dist.values())),
        "classes": K,
        "nc1": np.trace(sw @ np.linalg.pinv(sb, rcond=1e-12)) / K,
        "nc1_rank": np.linalg.matrix_rank(sb, tol=1e-12 * np.linalg.norm(sb, 2)),
        "nc1_ratio": np.trace(sw) / np.trace(sb),
        "rnc1": np.trace(sw) / np.mean(length) ** 2,
        "rnc1_max": np.trace(sw) / np.max(length) ** 2,
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "nc2_equinorm_weight": np.std(wnorms) / np.mean(wnorms),
        "nc2_equiangular": np.mean(np.abs(np.array(cos) + 1 / (K - 1))),
        "nc2_equiangular_weight": np.mean(np.abs(np.array(wcos) + 1 / (K - 1))),
        "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - simplex),
        "nc3": np.sum((rows / np.linalg.norm(rows) - m / np.linalg.norm(m)) ** 2),
        "nc4": np.mean(decided != np.array(nearest)),
        "ildr": np.mean([np.sqrt(x) for x in dist.values()]) / np.mean(own),
    }


def agree(found, expected, rel=1e-10):
    for name, value in found.items():
        assert float(value) == pytest.approx(expected[name], rel=rel, abs=1e-13), name


CASES = {
    "imbalanced": {},
    "more classes than features": {"counts": (3, 2, 4, 2, 3, 2, 5, 2, 3), "width": 4},
    "empty and one-sample classes": {"counts": (6, 0, 5, 1, 4)},
    "held-out samples of empty and one-sample classes": {"counts": (6, 0, 5, 1, 9, 9)},
    "two classes": {"counts": (4, 6)},
    "one feature": {"counts": (4, 3, 6), "width": 1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighting", ["sample", "class"])
def test_equals_the_definitions(case, weighting):
    features, labels, weight, bias = data(**CASES[case])
    found = neural_collapse(features, labels, weight, bias, weighting=weighting)
    assert {row.name for row in MEASURES.values() if row.property == "collapse"} == set(found)
    agree(found, oracle(features, labels, weight, bias, by_class=weighting == "class"))


@pytest.mark.parametrize("case", CASES)
def test_held_out_samples_around_training_means(case):
    train = data(**CASES[case])
    features, labels, weight, bias = data(seed=5, counts=CASES[case].get("counts", (9, 4, 2, 7, 5))[::-1],
                                          width=CASES[case].get("width", 6))
    expected = oracle(features, labels, weight, bias, centre=train[:2])
    agree(neural_collapse(features, labels, weight, bias, around=train[:2]), expected)
    held_out = Snapshot(features, features @ weight.T + bias, labels, weight, bias)
    trained = Snapshot(train[0], train[0] @ weight.T + bias, train[1], weight, bias)
    names = [name for name in expected if MEASURES[name].around]
    agree(evaluate(held_out, names, around=trained), expected)


@pytest.mark.parametrize("table", [2, 3, 4, 8])
@pytest.mark.parametrize("classes", [9, 10])
def test_pairs_in_blocks_of_any_size(monkeypatch, table, classes):
    features, labels, weight, bias = data(counts=(3,) * classes, width=4)
    whole = neural_collapse(features, labels, weight, bias)
    monkeypatch.setattr(statistics_module, "WHOLE_UP_TO", table)
    blocks = statistics_module.ClassStatistics.of(features, labels, classes).blocks()
    assert max(len(range(classes)[block]) for block in blocks) < classes
    for name, value in neural_collapse(features, labels, weight, bias).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("table", [2, 6])
def test_classes_without_samples_are_left_out_of_the_pairs(monkeypatch, table):
    features, labels, weight, bias = data(counts=(3, 4, 0, 2, 0, 0, 1, 3, 0, 0), width=4)
    whole = neural_collapse(features, labels, weight, bias)
    replicas = torch.stack([features, features * 2]), torch.stack([labels, (labels == 0) * 8 + (labels != 0) * labels])
    by_class = [collapse.cdnv_by_class(statistics_module.ClassStatistics.of(*replicas, 10))]
    monkeypatch.setattr(statistics_module, "WHOLE_UP_TO", table)
    statistics = statistics_module.ClassStatistics.of(features, labels, 10)
    assert statistics.kept.tolist() == [0, 1, 3, 7]
    several = statistics_module.ClassStatistics.of(*replicas, 10)
    assert several.kept.tolist() == [0, 1, 3, 7, 8]  # what takes part in any replica
    by_class += [collapse.cdnv_by_class(several)]
    torch.testing.assert_close(*by_class, rtol=1e-12, atol=1e-14)
    for name, value in neural_collapse(features, labels, weight, bias).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-14)


def test_means_that_coincide_are_named_by_their_own_numbers(monkeypatch):
    features, labels, *_ = data(counts=(0, 2, 0, 2, 0, 2), width=3)
    features[labels == 5] = features[labels == 3]
    statistics = statistics_module.ClassStatistics.of(features, labels, 6)
    assert collapse.coincident_pair(statistics) == (3, 5)
    monkeypatch.setattr(statistics_module, "WHOLE_UP_TO", 2)
    assert collapse.coincident_pair(statistics_module.ClassStatistics.of(features, labels, 6)) == (3, 5)


def test_blocks_end_in_one_row_or_in_a_remainder(monkeypatch):
    def last(classes, table):
        monkeypatch.setattr(statistics_module, "WHOLE_UP_TO", table)
        features, labels, *_ = data(counts=(2,) * classes)
        blocks = statistics_module.ClassStatistics.of(features, labels, classes).blocks()
        return len(range(classes)[blocks[-1]])

    assert last(9, 6) == 1  # blocks of 4, 4 and 1
    assert last(10, 6) == 1  # blocks of 3, 3, 3 and 1
    assert last(11, 6) == 2  # blocks of 3, 3, 3 and 2


@pytest.mark.parametrize("offset", [10.0, 1000.0])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_float32_far_from_the_origin(offset, spread):
    features, labels, weight, bias = data(counts=(40, 60, 50), offset=offset, spread=spread, dtype=torch.float32)
    expected = oracle(features, labels, weight, bias)
    found = neural_collapse(features, labels, weight, bias)
    del found["nc4"]  # decided by logits of size 1000, whose own rounding counts
    agree(found, expected, rel=1e-3)


def test_bias_counts_in_nc4():
    features = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    weight = torch.tensor([[-1.0], [1.0]])
    assert neural_collapse(features, labels, weight)["nc4"] == 0
    assert neural_collapse(features, labels, weight, torch.tensor([5.0, 0.0]))["nc4"] == 0.5


def test_single_classes():
    features, labels, *_ = data(counts=(6, 0, 5, 1, 4))
    found = collapse_by_class(features, labels, num_classes=5)
    assert found["count"].tolist() == [6, 0, 5, 1, 4]
    kept = [0, 2, 4]
    mu = {c: features[labels == c].mean(0) for c in kept}
    centre = torch.cat([features[labels == c] for c in kept]).mean(0)
    V = {c: (features[labels == c] - mu[c]).square().sum(1).mean() for c in kept}
    for c in kept:
        others = [(V[c] + V[o]) / (2 * (mu[c] - mu[o]).square().sum()) for o in kept if o != c]
        assert float(found["variance"][c]) == pytest.approx(float(V[c]), rel=1e-10)
        assert float(found["mean_norm"][c]) == pytest.approx(float((mu[c] - centre).norm()), rel=1e-10)
        assert float(found["cdnv"][c]) == pytest.approx(float(sum(others) / 2), rel=1e-10)
    assert all(found[name][[1, 3]].isnan().all() for name in ("variance", "mean_norm", "cdnv"))
    assert float(found["cdnv"].nanmean()) == pytest.approx(float(cdnv(features, labels, num_classes=5)), rel=1e-12)


PEAK = """
import resource, torch
from grokscape.measures import neural_collapse
torch.set_num_threads(2)
labels = torch.arange(10_000).repeat(3)
features, weight = torch.randn(30_000, 32), torch.randn(10_000, 32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = neural_collapse(features, labels, weight)
assert all(value.isfinite() for value in found.values())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_ten_thousand_classes_fit_in_memory():
    answer = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 700  # MiB; tables of all pairs, or all logits, would take thousands


def test_means_that_coincide_are_named():
    features = torch.tensor([[0.0, 1], [0, 3], [0, 0], [0, 4], [5, 5], [5, 7]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.warns(MeasureWarning, match="cdnv is NaN: the means of classes 0 and 1 coincide"):
        assert cdnv(features, labels).isnan()
    with pytest.warns(MeasureWarning, match="cdnv, cdnv_sum is NaN: the means of classes 0 and 1 coincide"):
        found = neural_collapse(features, labels)
    assert found["nc1_rank"] == 1
    assert found["nc1"] > 0


def test_means_that_all_coincide_are_no_perfect_collapse():
    inside = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for features in (torch.ones(12, 5), inside.repeat(2, 1)):
        with pytest.warns(MeasureWarning):
            found = neural_collapse(features, torch.arange(12) // 6)
        assert all(found[name].isnan() for name in ("cdnv", "nc1", "nc1_rank", "nc1_ratio", "nc2_etf"))


def test_a_rank_cut_off_can_be_chosen():
    features, labels, *_ = data(width=3, counts=(5, 5, 5))
    logits = torch.zeros(15, 3)
    snapshot = Snapshot(features, logits, labels, torch.zeros(3, 3))
    assert MEASURES["nc1_rank"](snapshot) == 2
    assert MEASURES["nc1_rank"](snapshot, tolerance=0.9) == 1
    assert MEASURES["nc1"](snapshot, tolerance=0.9) < MEASURES["nc1"](snapshot)


def ways(features, labels, classes):
    """nc1 and its rank from all samples at once, in the features' type, and from batches of them."""
    streamed = ClassMoments.empty(classes, features.shape[1])
    for batch in torch.arange(len(labels)).split(50):
        streamed = streamed.update(features[batch], labels[batch])
    at_once = statistics_module.ClassStatistics.of(features, labels, classes)
    return [(float(collapse.nc1(each)), int(collapse.nc1_rank(each))) for each in (at_once, streamed.compute())]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_what_rounding_leaves_in_an_unused_direction_is_no_class_mean(offset):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(30)
    raw = torch.randn(20, 8, generator=generator)[labels] + torch.randn(600, 8, generator=generator)
    basis = torch.linalg.svd(torch.ones(1, 8).double()).Vh[1:]  # behind a layer norm features add up to the same
    features = torch.nn.functional.layer_norm(raw, (8,)) + offset * torch.randn(8, generator=generator)
    within = features.double() @ basis.T
    expected = neural_collapse(within, labels)
    for value, rank in ways(features, labels, 20):
        assert rank == expected["nc1_rank"] == 7
        assert value == pytest.approx(float(expected["nc1"]), rel=1e-3)


@pytest.mark.parametrize("counts", [(5,) * 6, (5,) * 40])
def test_a_direction_that_means_hardly_use_counts(counts):
    features, labels, weight, bias = data(counts=counts, width=20)
    if len(counts) > 20:
        features[:, 0] *= 1e-4
    else:
        features[labels == 1] = features[labels == 0] + 1e-4 * weight[1]
    expected = oracle(features, labels, weight, bias)
    for value, rank in ways(features.float(), labels, len(counts)):
        assert rank == expected["nc1_rank"]
        assert value == pytest.approx(expected["nc1"], rel=1e-2)


def test_nothing_else_is_read_from_absent_classes():
    features, labels, weight, _ = data(counts=(6, 0, 5, 1, 4))
    moved = weight.clone()
    moved[[1, 3]] *= 100
    for name in ("nc3", "nc2_equinorm_weight", "nc2_equiangular_weight"):
        assert neural_collapse(features, labels, weight)[name] == neural_collapse(features, labels, moved)[name]
