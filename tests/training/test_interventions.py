"""Interventions by themselves: penalties against formulas, schedules, JSON, errors by their text."""

import math
import warnings

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from grokscape.interventions import (
    Clamp,
    Intervention,
    NormalizeFeatures,
    Promote,
    Rescale,
    Suppress,
    Unplug,
    WeightCap,
    describe,
)
from grokscape.measures import MEASURES, MeasureWarning, Snapshot
from grokscape.penalties import clamp_penalty

EXAMPLES = (
    Promote("cdnv", strength=1e-3, ramp=10),
    Suppress("relative_flatness_bound", strength=1e-2, temperature=2.0, until=200),
    Clamp("relative_flatness", at_least=30.0),
    Clamp("loss", at_least=0.5, at_most=2.0, relative_to="memorisation", start=5),
    Clamp("cdnv", at_least=1.5, at_most=1.5),  # at one level
    NormalizeFeatures(radius=2.0, until=100),
    Rescale(2.0),
    WeightCap(50.0, norm="spectral"),
    Unplug(200, lr=0.1, cosine=True, weight_decay=2e-4),
)


@pytest.fixture
def snapshot():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(20).remainder(4).expand(3, 20)
    return Snapshot(features, features @ weight.mT, labels, weight)


@pytest.mark.parametrize("intervention", EXAMPLES, ids=str)
def test_to_json_and_back(intervention):
    adapter = TypeAdapter(Intervention)
    assert adapter.validate_json(adapter.dump_json(intervention)) == intervention


def test_promote_and_suppress_follow_the_direction_of_the_measure(snapshot):
    kappa = MEASURES["relative_flatness"](snapshot)
    torch.testing.assert_close(Promote("relative_flatness", strength=0.5)(snapshot), 0.5 * kappa)
    torch.testing.assert_close(Suppress("relative_flatness", strength=0.5)(snapshot), -0.5 * kappa)
    margin = MEASURES["margin"](snapshot)
    torch.testing.assert_close(Promote("margin", strength=0.5)(snapshot), -0.5 * margin)


def test_temperature_divides_the_logits(snapshot):
    cooler = Snapshot(snapshot.features, snapshot.logits / 2, snapshot.labels, snapshot.weight)
    expected = -MEASURES["relative_flatness_bound"](cooler)
    torch.testing.assert_close(Suppress("relative_flatness_bound", strength=1, temperature=2)(snapshot), expected)


def test_clamp_is_the_squared_log_shortfall_and_exactly_zero_once_held(snapshot):
    value = MEASURES["cdnv"](snapshot)
    expected = 0.3 * (torch.log(2 * value.max()) - value.log()) ** 2
    torch.testing.assert_close(Clamp("cdnv", at_least=2 * value.max().item(), strength=0.3)(snapshot), expected)
    assert (Clamp("cdnv", at_least=value.min().item() / 2)(snapshot) == 0).all()
    at_most = Clamp("cdnv", at_most=value.min().item() / 2, strength=1.0)(snapshot)
    torch.testing.assert_close(at_most, (value / (value.min() / 2)).log() ** 2)


def test_a_held_clamp_has_no_gradient_even_at_zero():
    value = torch.tensor([0.0, 5.0], requires_grad=True)
    clamp_penalty(value, 1.0, None, torch.tensor([1.0, 10.0])).sum().backward()
    assert value.grad.tolist() == [0.0, 0.0]
    for level in (0.0, torch.inf):  # relative to a reference that was zero, or overflowed
        assert clamp_penalty(torch.tensor(2.0), 1.0, torch.tensor(level), torch.tensor(level)) == 0


CLAMPED = [row.name for row in MEASURES.values() if row.differentiable and row.positive and "statistics" in row.inputs]


def seen_of(features, weight, labels):
    return Snapshot(features, features @ weight.mT, labels, weight)


@pytest.mark.parametrize("measure", CLAMPED)
@pytest.mark.parametrize("batch", ["one class", "one of each class", "no features", "no head"])
def test_a_clamp_rests_where_its_measure_does_not_exist(snapshot, measure, batch):
    features, weight, labels = snapshot.features[0], snapshot.weight[0], snapshot.labels[0]
    features = features[:4] if batch == "one of each class" else features
    labels = torch.zeros_like(labels) if batch == "one class" else labels[: len(features)]
    inputs = [features * (batch != "no features"), weight * (batch != "no head")]
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = MEASURES[measure](seen_of(*inputs, labels))
    penalties = Clamp(measure, at_least=1e6), Clamp(measure, at_most=1e-6)
    if value.isfinite() and value != 0:
        penalties = ()
    for clamp in penalties:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            penalty = clamp(seen_of(*inputs, labels))
        assert penalty == 0
        slopes = torch.autograd.grad(penalty, inputs, allow_unused=True)
        assert all(slope is None or not slope.any() for slope in slopes)
        reasons = [str(warning.message) for warning in caught]
        if clamp.at_least or value != 0:
            assert len(reasons) == 1
            assert reasons[0].startswith(f"{measure} of this batch is")
            assert reasons[0].endswith("the clamp rests")


def test_a_clamp_rests_at_zero_and_moves_the_other_replicas(snapshot):
    weight = snapshot.weight * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    weight.requires_grad_()
    with pytest.warns(MeasureWarning, match="relative_flatness of this batch is not above 0, or too small"):
        penalty = Clamp("relative_flatness", at_least=1e9)(seen_of(snapshot.features, weight, snapshot.labels))
    (slope,) = torch.autograd.grad(penalty.sum(), weight)
    assert [bool(part.any()) for part in slope] == [True, False, True]
    assert penalty.isfinite().all()


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
@pytest.mark.parametrize("margin", range(60, 120, 4))
def test_a_clamp_has_a_finite_gradient_at_every_margin(margin):
    inputs = [torch.eye(2).requires_grad_(), (margin * torch.eye(2)).requires_grad_()]
    penalty = Clamp("relative_flatness", at_least=3.0)(seen_of(*inputs, torch.arange(2)))
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(penalty, inputs))
    assert (penalty > 0) == (margin <= 78)


def test_a_linear_penalty_of_no_number_says_why(snapshot):
    one = seen_of(snapshot.features[0], snapshot.weight[0], torch.zeros(20, dtype=torch.int64))
    with pytest.warns(MeasureWarning, match="cdnv of this batch is NaN: it needs two .* leave such batches out"):
        assert Suppress("cdnv", strength=1)(one).isnan()


def test_relative_clamp_scales_its_levels_and_asks_for_the_reference(snapshot):
    clamp = Clamp("cdnv", at_least=2.0, relative_to=10)
    value = MEASURES["cdnv"](snapshot)
    torch.testing.assert_close(clamp(snapshot, reference=value), torch.full_like(value, 0.1 * math.log(2) ** 2))
    assert (clamp(snapshot, reference=torch.full_like(value, torch.nan)) == 0).all()
    with pytest.raises(ValueError, match="this clamp is relative to 10; pass reference="):
        clamp(snapshot)
    with pytest.raises(ValueError, match="levels of this clamp are absolute; leave reference= out"):
        Clamp("cdnv", at_least=2.0)(snapshot, reference=value)


def test_a_reference_that_is_a_plain_number_keeps_all_its_digits(snapshot):
    one = seen_of(snapshot.features[0], snapshot.weight[0], snapshot.labels[0])
    clamp, value = Clamp("cdnv", at_least=1.3, relative_to=10), MEASURES["cdnv"](one)
    torch.testing.assert_close(clamp(one, reference=value.item()), clamp(one, reference=value), rtol=1e-13, atol=0)


def test_a_penalty_on_no_samples_says_so(snapshot):
    none = seen_of(snapshot.features[0, :0], snapshot.weight[0], torch.zeros(0, dtype=torch.int64))
    with pytest.warns(MeasureWarning, match="NaN: there are no samples, or every label is ignored; the clamp rests"):
        assert Clamp("relative_flatness", at_least=2.0)(none) == 0


def test_schedule_starts_ramps_and_ends():
    promote = Promote("cdnv", strength=1, start=10, until=20, ramp=4)
    assert [promote.gate(step) for step in (9, 10, 11, 13, 19, 20)] == [0, 0.25, 0.5, 1, 1, 0]


@pytest.mark.parametrize("kind", [Promote, Suppress, Clamp])
def test_the_term_grows_with_its_ramp(snapshot, kind):
    levels = {"at_least": 50.0} if kind is Clamp else {}
    whole = kind("cdnv", strength=2.0, **levels)(snapshot)
    ramped = kind("cdnv", strength=2.0, start=10, ramp=4, **levels)
    for step, share in ((10, 0.25), (12, 0.75), (13, 1.0)):
        torch.testing.assert_close(ramped(snapshot, step=step), share * whole)


@pytest.mark.parametrize("kind", [Promote, Suppress, Clamp])
def test_outside_its_schedule_a_penalty_looks_at_nothing(snapshot, kind):
    one = seen_of(snapshot.features[0], snapshot.weight[0], torch.zeros(20, dtype=torch.int64))
    levels = {"at_least": 1.0} if kind is Clamp else {}
    penalty = kind("cdnv", strength=1, start=5, until=9, **levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert penalty(one, step=4) == penalty(one, step=9) == 0
        assert penalty(snapshot, step=9).shape == (3,)
        features = snapshot.features[0].requires_grad_()
        grown = seen_of(features, snapshot.weight[0], snapshot.labels[0])
        assert [penalty(grown, step=step).requires_grad for step in (4, 5, 9)] == [False, True, False]
        (slope,) = torch.autograd.grad(features.sum() + penalty(grown, step=9), features)
        assert torch.equal(slope, torch.ones_like(features))


def test_normalised_features_have_the_radius_and_zero_stays_zero():
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(NormalizeFeatures(2.0)(features), torch.tensor([[1.2, 1.6], [0.0, 0.0]]))
    assert torch.equal(NormalizeFeatures(2.0, until=5)(features, step=5), features)


def test_weight_cap_only_shrinks():
    weight = torch.diag(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(WeightCap(1.0)(weight), weight / 5)
    torch.testing.assert_close(WeightCap(1.0, norm="spectral")(weight), weight / 4)
    assert torch.equal(WeightCap(6.0)(weight), weight)
    assert torch.equal(WeightCap(1.0, until=5)(weight, step=5), weight)


def test_one_readable_line():
    assert describe((Clamp("cdnv", at_least=1.2), WeightCap(50))) == (
        "cdnv held ≥ 1.2 (strength 0.1); head weight capped at Frobenius norm 50"
    )
    assert str(EXAMPLES[1]) == "loss − 0.01·relative_flatness_bound(τ = 2) before step 200"
    assert str(EXAMPLES[3]) == (
        "loss held ≥ 0.5 and ≤ 2 × its value at memorisation (strength 0.1) from step 5"
    )
    assert describe(()) == "no intervention"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Promote("relative_flatnes", strength=1), "the name of a measure, got 'relative_flatnes'; near: rel"),
        (lambda: Suppress("accuracy", strength=1), "'accuracy' is not differentiable and cannot be a penalty"),
        (lambda: Promote("head_norm", strength=1), "'head_norm' has no direction to promote or suppress; use Clamp"),
        (lambda: Promote("cdnv", strength=0), "greater than 0"),
        (lambda: Promote("cdnv", strength=1, start=5, until=5), "expected until > start, got start=5, until=5"),
        (lambda: Clamp("cdnv"), r"expected at_least or at_most \(or both\), got neither"),
        (lambda: Clamp("cdnv", at_least=3, at_most=2), "expected at_least ≤ at_most, got at_least=3.0, at_most=2.0"),
        (lambda: Clamp("margin", at_least=3), "'margin' can be negative, a clamp works on its logarithm"),
        (lambda: Unplug(0), "greater than or equal to 1"),
        (lambda: WeightCap(-1), "greater than 0"),
    ],
)
def test_bad_settings_say_what_was_expected(make, message):
    with pytest.raises(ValidationError, match=message):
        make()
