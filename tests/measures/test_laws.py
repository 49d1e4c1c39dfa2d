"""What must not change κ and the measures of collapse, and what κ̄ lets through."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from grokscape.measures import Snapshot, evaluate, neural_collapse, relative_flatness, relative_flatness_bound

seeds = st.integers(0, 2**31)
law = settings(derandomize=True, max_examples=20, deadline=None)


def head(seed, samples=12, width=5, classes=4):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(samples) % classes
    return draw(samples, width), draw(classes, width), draw(classes), labels, draw(width, width), draw(width)


def kappa(features, weight, bias):
    return float(relative_flatness(features, weight, bias=bias))


@law
@given(seeds, st.floats(1e-3, 1e3))
def test_scale_moves_between_features_and_head(seed, scale):
    features, weight, bias, *_ = head(seed)
    assert kappa(scale * features, weight / scale, bias) == pytest.approx(kappa(features, weight, bias), rel=1e-9)


@law
@given(seeds)
def test_rotations_of_the_feature_space(seed):
    features, weight, bias, _, matrix, _ = head(seed)
    turn = torch.linalg.qr(matrix).Q
    assert kappa(features @ turn.T, weight @ turn.T, bias) == pytest.approx(kappa(features, weight, bias), rel=1e-9)


@law
@given(seeds)
def test_the_order_of_samples_and_classes(seed):
    features, weight, bias, *_ = head(seed)
    generator = torch.Generator().manual_seed(seed)
    samples, rows = torch.randperm(12, generator=generator), torch.randperm(4, generator=generator)
    assert kappa(features[samples], weight[rows], bias[rows]) == pytest.approx(kappa(features, weight, bias), rel=1e-9)


@law
@given(seeds, st.floats(0.1, 100))
def test_one_vector_added_to_every_row_changes_kappa_not_but_the_bound(seed, size):
    features, weight, bias, _, _, vector = head(seed)
    moved = weight + size * vector / vector.norm()
    assert kappa(features, moved, bias) == pytest.approx(kappa(features, weight, bias), rel=1e-7)
    before, after = (float(relative_flatness_bound(features, w, bias=bias)) for w in (weight, moved))
    assert abs(after / before - 1) > 1e-4


@law
@given(seeds, st.floats(0.01, 20))
def test_the_bound_is_one(seed, size):
    features, weight, bias, *_ = head(seed)
    bound = float(relative_flatness_bound(features, size * weight, bias=bias))
    assert 0 <= kappa(features, size * weight, bias) <= bound * (1 + 1e-12)


@law
@given(seeds)
def test_shifting_all_logits_of_a_sample_changes_nothing(seed):
    features, weight, bias, *_ = head(seed)
    logits = features @ weight.T + bias
    shifted = logits + features[:, :1]
    value = float(relative_flatness(features, weight, logits))
    assert float(relative_flatness(features, weight, shifted)) == pytest.approx(value, rel=1e-9)


@law
@given(seeds, st.floats(0.1, 10))
def test_collapse_is_blind_to_translation_rotation_and_scale(seed, scale):
    features, _, _, labels, matrix, vector = head(seed)
    turn = torch.linalg.qr(matrix).Q
    before, after = (neural_collapse(f, labels) for f in (features, scale * features @ turn.T + vector))
    for name in ("cdnv", "nc1", "nc1_rank", "nc1_ratio", "nc2_equinorm", "nc2_equiangular", "nc2_etf", "ildr"):
        assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-8, abs=1e-10), name


@law
@given(seeds)
def test_collapse_is_blind_to_the_names_of_classes(seed):
    features, weight, bias, labels, *_ = head(seed)
    names = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    before = neural_collapse(features, labels, weight, bias)
    after = neural_collapse(features, names[labels], weight[names.argsort()], bias[names.argsort()])
    for name, value in before.items():
        assert float(after[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("scale", [2.0**-45, 2.0**45])
def test_measures_without_unit_survive_the_scale_of_the_features_in_float32(scale):
    features, weight, _, labels, *_ = head(0, samples=40)
    features, weight = features.float(), weight.float()
    names = [
        "cdnv", "nc1", "nc1_ratio", "rnc1", "rnc1_max", "nc2_equinorm", "nc2_equiangular", "nc2_etf", "nc3", "nc4",
        "ildr", "margin_normalised", "effective_rank", "spectral_entropy", "kernel_alignment",
    ]
    before, after = (
        evaluate(Snapshot(f, features @ weight.T, labels, weight), names) for f in (features, scale * features)
    )
    for name in names:
        share = 1 / scale if name == "margin_normalised" else 1.0
        assert float(after[name]) == pytest.approx(share * float(before[name]), rel=1e-4), name
