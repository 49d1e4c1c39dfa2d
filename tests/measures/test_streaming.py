"""Streamed statistics equal one pass, however the samples are split and merged."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from grokscape.measures import MEASURES, neural_collapse
from grokscape.measures.snapshot import Quantities, Snapshot
from grokscape.measures.statistics import nearer_mean
from grokscape.measures.streaming import ClassMoments

STREAMED = [
    row.name for row in MEASURES.values()
    if row.property == "collapse" and row.name not in ("nc4", "ildr") and "squared_norms" not in row.inputs
]


def data(seed=0, samples=300, width=6, classes=5, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    means = torch.randn(classes, width, generator=generator)
    features = means[labels] + 0.3 * torch.randn(samples, width, generator=generator) + offset
    return features, labels, torch.randn(classes, width, generator=generator)


def streamed(moments, weight):
    statistics = moments.compute()
    snapshot = Snapshot(weight, weight, weight, weight.double())
    quantities = Quantities(snapshot, statistics=statistics)
    return {name: MEASURES[name].of(quantities) for name in STREAMED}


def pieces(cuts, samples):
    edges = [0, *sorted(cuts), samples]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8), st.sampled_from([0.0, 10.0, 1000.0]))
def test_the_split_into_batches_does_not_matter(cuts, offset):
    features, labels, weight = data(offset=offset)
    moments = ClassMoments.empty(5, 6)
    for piece in pieces(cuts, 300):
        moments = moments.update(features[piece], labels[piece])
    expected = neural_collapse(features.double(), labels, weight.double())
    for name, value in streamed(moments, weight).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_merging_is_one_pass_in_any_order(first, second):
    features, labels, weight = data(seed=1)
    parts = [ClassMoments.empty(5, 6).update(features[p], labels[p]) for p in pieces([first, second], 300)]
    whole = streamed(ClassMoments.empty(5, 6).update(features, labels), weight)
    for merged in (parts[0].merge(parts[1]).merge(parts[2]), parts[2].merge(parts[0].merge(parts[1]))):
        for name, value in streamed(merged, weight).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-9, atol=1e-12)


def test_a_class_that_becomes_complete_only_when_merged():
    features = torch.tensor([[0.0], [1.0], [5.0], [7.0], [3.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    one, other = ClassMoments.empty(3, 1).update(features, labels), ClassMoments.empty(3, 1)
    assert one.compute().present.tolist() == [True, True, False]
    both = one.merge(other.update(torch.tensor([[5.0]]), torch.tensor([2]))).compute()
    assert both.present.tolist() == [True, True, True]
    assert both.variances.tolist() == pytest.approx([0.25, 1.0, 1.0], rel=1e-12)


def test_what_does_not_fit_is_refused():
    moments = ClassMoments.empty(3, 2)
    with pytest.raises(ValueError, match=r"features must be \(N, 2\), got \(4, 3\)"):
        moments.update(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must lie in 0 … 2, got 3 … 3"):
        moments.update(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\) \(classes, features\) do not merge"):
        moments.merge(ClassMoments.empty(3, 4))


def test_around_others_a_class_unknown_to_them_leaves_no_pooled_scatter():
    features, labels, weight = data()
    others = ClassMoments.empty(5, 6).update(features[labels < 4], labels[labels < 4])
    here = ClassMoments.empty(5, 6).update(features, labels)
    found = here.around(others)
    assert found.present.tolist() == [True] * 4 + [False]
    kept = labels < 4
    expected = neural_collapse(
        features[kept].double(), labels[kept], weight[:4].double(), around=(features[kept].double(), labels[kept])
    )
    assert float(MEASURES["cdnv"].function(found)) == pytest.approx(float(expected["cdnv"]), rel=1e-9)
    assert MEASURES["nc1"].function(found).isnan()
    one = torch.cat([kept.nonzero(), (~kept).nonzero()[:1]]).squeeze(1)
    lonely = ClassMoments.empty(5, 6).update(features[one], labels[one])
    assert MEASURES["nc1"].function(lonely.around(others)).isnan()


@pytest.mark.parametrize("merge", [False, True])
def test_a_batch_costs_what_its_own_classes_cost(merge):
    features, labels, _ = data()

    def products(classes):
        moments = ClassMoments.empty(classes, 6).update(features[:150], labels[:150])
        with FlopCounterMode(display=False) as counter:
            moments.update(features[150:], labels[150:])
            if merge:
                moments.merge(moments)
        return counter.get_total_flops()

    assert products(5000) == products(5)


def test_the_nearest_mean_is_looked_for_among_classes_that_take_part():
    features, _, _ = data(samples=60)
    labels = torch.tensor([7, 2500, 2999]).repeat(20)
    prediction = labels.clone()
    prediction[::4], prediction[::9] = 2500, 11  # of the latter there is no sample
    moments = ClassMoments.empty(3000, 6).update(features, labels)
    statistics = moments.compute()
    samples = features.double() - statistics.offset
    with FlopCounterMode(display=False) as counter:
        found = nearer_mean(statistics, samples, prediction)
    assert counter.get_total_flops() == 2 * 60 * 6 * 3
    means = {c: features[labels == c].double().mean(0) for c in (7, 2500, 2999)}
    for sample, guess, is_nearer in zip(features.double(), prediction.tolist(), found.tolist(), strict=True):
        nearest = min(means, key=lambda c: float((sample - means[c]).norm()))
        assert is_nearer == (nearest != guess)


def test_no_mean_is_nearer_where_no_class_takes_part():
    features, labels = torch.randn(2, 6), torch.tensor([1, 2500])
    statistics = ClassMoments.empty(3000, 6).update(features, labels).compute()
    assert not nearer_mean(statistics, features.double() - statistics.offset, labels).any()
