"""Comparison measures against NumPy and plain torch, written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from grokscape.measures import MEASURES, Snapshot
from grokscape.measures.representation import distance_from, layer_norms


def snapshot(seed=0, samples=40, width=6, classes=5):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, weight, bias = draw(samples, width), draw(classes, width), draw(classes)
    labels = torch.randint(classes, (samples,), generator=generator)
    return Snapshot(features, features @ weight.T + bias, labels, weight, bias, {"a": draw(3, 2), "b": draw(4)})


def value(name, snapshot, **options):
    return float(MEASURES[name](snapshot, **options))


def test_fit_and_margins():
    s = snapshot()
    assert value("loss", s) == pytest.approx(float(F.cross_entropy(s.logits, s.labels)), rel=1e-12)
    assert value("accuracy", s) == float((s.logits.argmax(-1) == s.labels).double().mean())
    margins = []
    for z, y in zip(s.logits.tolist(), s.labels.tolist(), strict=True):
        margins.append(z[y] - max(v for c, v in enumerate(z) if c != y))
    assert value("margin", s) == pytest.approx(np.mean(margins), rel=1e-12)
    assert value("margin_min", s) == pytest.approx(min(margins), rel=1e-12)
    sizes = np.linalg.norm(s.weight.numpy()) * np.linalg.norm(s.features.numpy(), axis=1)
    assert value("margin_normalised", s) == pytest.approx(np.mean(margins / sizes), rel=1e-12)


@pytest.mark.parametrize("margin", [10.0, 40.0, 80.0])
def test_the_loss_keeps_its_digits_where_softmax_rounds(margin):
    logits = torch.tensor([[margin, 0.0, 1.0]])
    s = Snapshot(torch.ones(1, 2), logits, torch.tensor([0]), torch.ones(3, 2))
    assert value("loss", s) == pytest.approx(np.log1p(np.exp(-margin) + np.exp(1 - margin)), rel=1e-5)


def test_entropy_of_predictions_against_the_sum_written_out():
    s = snapshot()
    entropies = []
    for z in s.logits.tolist():
        p = np.exp(z) / np.exp(z).sum()
        entropies.append(-(p * np.log(p)).sum())
    assert value("predictive_entropy", s) == pytest.approx(np.mean(entropies), rel=1e-12)


def test_entropy_of_predictions_at_its_ends():
    uniform = Snapshot(torch.ones(2, 2), torch.zeros(2, 4), torch.zeros(2).long(), torch.ones(4, 2))
    assert value("predictive_entropy", uniform) == pytest.approx(np.log(4), rel=1e-6)
    masked = Snapshot(torch.ones(1, 2), torch.tensor([[0.0, 0.0, -np.inf]]), torch.tensor([0]), torch.ones(3, 2))
    assert value("predictive_entropy", masked) == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("margin", [5.0, 20.0, 60.0])
def test_entropy_keeps_its_digits_and_its_slope_where_softmax_rounds(margin):
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    s = Snapshot(torch.ones(1, 2), logits, torch.tensor([0]), torch.ones(3, 2))
    entropy = MEASURES["predictive_entropy"](s)
    (slope,) = torch.autograd.grad(entropy, logits)
    q = np.exp(-margin) / (1 + 2 * np.exp(-margin))  # each of the two unlikely classes
    assert entropy.item() == pytest.approx(np.log1p(2 * np.exp(-margin)) + 2 * q * margin, rel=1e-5)
    assert float(slope[0, 1]) == pytest.approx(q * (1 - 2 * q) * margin, rel=1e-4)  # −p_c (log p_c + H)


def test_softmax_collapse_counts_samples_that_round_to_one_hot():
    logits = torch.tensor([[30.0, 0.0], [10.0, 0.0], [0.0, 90.0], [0.0, 0.0]])
    s = Snapshot(torch.ones(4, 2), logits, torch.zeros(4).long(), torch.ones(2, 2))
    assert value("softmax_collapse", s) == 0.5
    wide = Snapshot(s.features.double(), logits.double(), s.labels, s.weight.double())
    assert value("softmax_collapse", wide) == 0.25


def test_norms():
    s = snapshot()
    flat = torch.cat([p.flatten() for p in s.parameters.values()])
    assert value("weight_norm", s) == pytest.approx(float(flat.norm()), rel=1e-12)
    assert value("head_norm", s) == pytest.approx(float(s.weight.norm()), rel=1e-12)
    assert {k: float(v) for k, v in layer_norms(s.parameters).items()} == pytest.approx(
        {k: float(v.norm()) for k, v in s.parameters.items()})
    start = {k: v + 1 for k, v in s.parameters.items()}
    assert float(distance_from(s.parameters, start)) == pytest.approx(10**0.5)
    with pytest.raises(KeyError, match=r"parameters differ: \['b'\] are in one only"):
        distance_from(s.parameters, {"a": start["a"]})


@pytest.mark.parametrize("samples", [40, 4])
def test_rank_and_entropy_of_features(samples):
    s = snapshot(samples=samples)
    sizes = np.linalg.svd(s.features.numpy() - s.features.numpy().mean(0), compute_uv=False)
    sizes = sizes[sizes > 1e-9]
    shares, variances = sizes / sizes.sum(), sizes**2 / (sizes**2).sum()
    assert value("effective_rank", s) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-6)
    assert value("spectral_entropy", s) == pytest.approx(-np.sum(variances * np.log(variances)), rel=1e-9)


def test_alignment_with_labels():
    s = snapshot()
    centring = np.eye(40) - 1 / 40
    hot = np.eye(5)[s.labels.numpy()]
    a, b = (centring @ x @ x.T @ centring for x in (s.features.numpy(), hot))
    expected = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert value("kernel_alignment", s) == pytest.approx(expected, rel=1e-10)


def test_frequencies_of_the_head():
    s = snapshot()
    wave = np.fft.fft(s.weight.numpy() - s.weight.numpy().mean(0), axis=0)
    power = np.sum(np.abs(wave) ** 2, axis=1)
    assert value("fourier_concentration", s) == pytest.approx(np.sum((power / power.sum()) ** 2), rel=1e-10)
    turn = torch.cos(2 * torch.pi * 2 * torch.arange(11) / 11)[:, None] * torch.ones(1, 3) + 5
    one = Snapshot(torch.zeros(2, 3), torch.zeros(2, 11), torch.zeros(2).long(), turn)
    assert value("fourier_concentration", one) == pytest.approx(0.5, rel=1e-5)


def test_sharpness_of_the_head():
    s = snapshot()
    weight = s.weight.clone().requires_grad_()

    def loss(w):
        return F.cross_entropy(s.features @ w.T + s.bias, s.labels)

    (slope,) = torch.autograd.grad(loss(weight), weight)
    expected = (loss(weight + 0.3 * slope / slope.norm()) - loss(weight)).item()
    assert value("head_sharpness", s, radius=0.3) == pytest.approx(expected, rel=1e-10)
