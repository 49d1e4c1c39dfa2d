"""Who carries κ: its geometric mean over samples, and the effective share of the samples."""

import math

import pytest
import torch

from grokscape.measures import MEASURES, Snapshot, measure
from grokscape.measures.flatness import log_row_variance
from grokscape.measures.softmax import Softmax

GEOMETRIC, SHARE, MEAN = "relative_flatness_geometric", "relative_flatness_participation", "relative_flatness"


def seen(samples=12, width=5, classes=4, scale=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (samples, classes))
    features, weight = (scale * features).to(dtype), weight.to(dtype)
    return Snapshot(features, features @ weight.T, torch.arange(samples) % classes, weight)


def each(snapshot):
    """κ of every sample from the Hessian of its loss in the head's weight, in float64."""
    weight, found = snapshot.weight.double(), []
    for row, label in zip(snapshot.features.double(), snapshot.labels, strict=True):

        def loss(w, row=row, label=label):
            return torch.nn.functional.cross_entropy((w @ row)[None], label[None])

        hessian = torch.autograd.functional.hessian(loss, weight)
        traces = torch.einsum("aibi->ab", hessian)
        found.append(float((weight @ weight.T * traces).sum()))
    return found


@pytest.mark.parametrize("classes", [2, 4])
def test_against_the_hessian_of_every_sample(classes):
    snapshot = seen(classes=classes)
    kappa = each(snapshot)
    geometric = math.exp(sum(map(math.log, kappa)) / len(kappa))
    share = sum(kappa) ** 2 / (len(kappa) * sum(k * k for k in kappa))
    assert float(MEASURES[GEOMETRIC](snapshot)) == pytest.approx(geometric, rel=1e-10)
    assert float(MEASURES[SHARE](snapshot)) == pytest.approx(share, rel=1e-10)


@pytest.mark.parametrize("classes", [2, 4])
def test_what_kappa_is_divided_by_and_divides(classes):
    snapshot = seen(classes=classes)
    kappa, p = sum(each(snapshot)) / len(snapshot.labels), snapshot.logits.softmax(-1)
    bound = sum(w * w for w in snapshot.weight.flatten().tolist()) * sum(
        sum(x * x for x in row) * (1 - sum(q * q for q in chances))
        for row, chances in zip(snapshot.features.tolist(), p.tolist(), strict=True)
    ) / len(p)
    loss = -sum(math.log(chances[label]) for chances, label in zip(p.tolist(), snapshot.labels, strict=True)) / len(p)
    assert float(MEASURES["relative_flatness_looseness"](snapshot)) == pytest.approx(bound / kappa, rel=1e-10)
    assert float(MEASURES["relative_flatness_per_loss"](snapshot)) == pytest.approx(kappa / loss, rel=1e-10)


def slow(logits, weight):
    """log tr Cov of the rows, as its definition has it."""
    p = logits.softmax(-1)
    return (p[..., None] * (weight - (p @ weight)[..., None, :]).square()).sum((-2, -1)).log()


def margins(classes, width, size, dtype):
    """Logits of six samples with a margin of about `size`, of different likeliest classes, and a weight."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, classes, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    logits[range(6), [0, 1, 2, 0, 1, 2]] += size
    return logits.to(dtype), weight.to(dtype)


@pytest.mark.parametrize(("classes", "width"), [(3, 4), (200, 16)])
@pytest.mark.parametrize("size", [0.0, 10.0, 100.0, 300.0])
def test_the_logarithm_does_not_underflow(classes, width, size):
    logits, weight = (x.requires_grad_() for x in margins(classes, width, size, torch.float32))
    exact = [x.detach().double().requires_grad_() for x in (logits, weight)]
    found, expected = log_row_variance(Softmax.of(logits), weight), log_row_variance(Softmax.of(exact[0]), exact[1])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if size < 100:  # beyond, the definition itself cancels
        torch.testing.assert_close(expected, slow(*exact), rtol=1e-9, atol=1e-9)
    slopes = torch.autograd.grad(found.sum(), (logits, weight))
    for slope, right in zip(slopes, torch.autograd.grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(slope.double(), right, rtol=1e-3, atol=1e-4)


def test_far_out_it_is_the_odds_of_the_second_class_times_the_distance_of_the_two_rows():
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    found = log_row_variance(Softmax.of(torch.tensor([[1000.0, 0.0]])), weight)
    assert float(found) == pytest.approx(-1000 + math.log(25), rel=1e-6)


@pytest.mark.parametrize("classes", [3, 9])
def test_slopes(classes):
    logits, weight = (x.requires_grad_() for x in margins(classes, 4, 3.0, torch.float64))
    assert torch.autograd.gradcheck(lambda z, w: log_row_variance(Softmax.of(z), w), (logits, weight))


def test_laws():
    for seed in range(20):
        snapshot = seen(seed=seed, scale=1 + seed)
        mean, geometric, share = (float(MEASURES[name](snapshot)) for name in (MEAN, GEOMETRIC, SHARE))
        assert 0 < geometric < mean
        assert 1 / 12 <= share < 1
        one = Snapshot(snapshot.features[:1], snapshot.logits[:1], snapshot.labels[:1], snapshot.weight)
        assert float(MEASURES[GEOMETRIC](one)) == pytest.approx(float(MEASURES[MEAN](one)), rel=1e-12)
        assert float(MEASURES[SHARE](one)) == pytest.approx(1, rel=1e-12)


def test_few_samples_at_the_boundary_carry_the_mean_and_not_the_geometric_mean():
    weight = torch.eye(2, dtype=torch.float64)
    features = torch.tensor([[20.0, 0.0]] * 98 + [[14.0, 14.0]] * 2, dtype=torch.float64)
    snapshot = Snapshot(features, features @ weight.T, torch.zeros(100, dtype=torch.int64), weight)
    assert float(MEASURES[MEAN](snapshot)) == pytest.approx(0.02 * 392 / 2, rel=1e-4)
    assert float(MEASURES[SHARE](snapshot)) == pytest.approx(0.02, rel=1e-4)
    assert float(MEASURES[GEOMETRIC](snapshot)) < 1e-5


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_share_is_that_of_numbers_whose_squares_float32_does_not_hold(scale):
    wide = seen()
    single = Snapshot((scale * wide.features).float(), wide.logits.float(), wide.labels, wide.weight.float())
    assert float(MEASURES[SHARE](single)) == pytest.approx(float(MEASURES[SHARE](wide)), rel=1e-5)


def test_a_sample_without_features_makes_it_zero_and_leaves_slopes_finite():
    snapshot = seen()
    features = snapshot.features.clone()
    features[3] = 0
    features.requires_grad_()
    value = MEASURES[GEOMETRIC](Snapshot(features, features @ snapshot.weight.T, snapshot.labels, snapshot.weight))
    assert float(value.detach()) == 0
    (slope,) = torch.autograd.grad(value, features)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_no_flatness_at_all_has_no_share():
    snapshot = seen()
    flat = Snapshot(0 * snapshot.features, 0 * snapshot.logits, snapshot.labels, snapshot.weight)
    assert MEASURES[SHARE](flat).isnan()


def test_of_a_model_batch_by_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs, labels = torch.randn(50, 6), torch.arange(50) % 3
    features, head = model[:2](inputs).detach(), model[2]
    snapshot = Snapshot(features, model(inputs).detach(), labels, head.weight.detach(), head.bias.detach())
    found = measure(model, (inputs, labels), batch_size=7, measures=[GEOMETRIC, SHARE])
    for name in (GEOMETRIC, SHARE):
        assert found[name] == pytest.approx(float(MEASURES[name](snapshot)), rel=1e-5)
