"""The gap as representativeness plus feature robustness, and the second-order law that ties the latter to κ."""

import pytest
import torch
import torch.nn.functional as F

from grokscape.measures import MEASURES, Snapshot, decompose_gap, evaluate, feature_robustness, relative_flatness
from grokscape.measures import representativeness as module


def head(seed=0, samples=200, width=10, classes=5):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    bias = torch.randn(classes, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return features, (features @ weight.T).argmax(-1), weight, bias


@pytest.mark.parametrize(("kernel", "share"), [("sphere", 1 / 20), ("gaussian", 1 / 2)])
@pytest.mark.parametrize("radius", [1e-3, 1e-2])
def test_robustness_is_kappa_to_second_order(kernel, share, radius):
    features, labels, weight, bias = head()
    found = feature_robustness(features, labels, weight, bias, radius=radius, kernel=kernel, probes=64)
    expected = radius**2 * share * float(relative_flatness(features, weight, bias=bias))
    assert abs(found.value - expected) <= 4 * found.stderr + 20 * radius**2 * expected
    assert found.stderr < 0.02 * expected


def test_robustness_is_the_rise_of_the_loss_under_noise():
    features, labels, weight, bias = head(samples=30)
    found = feature_robustness(features, labels, weight, bias, radius=0.5, probes=256)
    noise = torch.randn(4000, 30, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise = 0.5 * features.norm(dim=1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)
    logits = (features + noise) @ weight.T + bias
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(4000), reduction="none").reshape(4000, 30).mean(1)
    expected = float(losses.mean() - F.cross_entropy(features @ weight.T + bias, labels))
    assert abs(found.value - expected) <= 4 * (found.stderr + float(losses.std()) / 4000**0.5)


@pytest.mark.parametrize("block", [1, 35, 1000])
def test_every_sample_has_its_own_noise_whatever_the_blocks(monkeypatch, block):
    features, labels, weight, bias = head(samples=23)
    several = torch.stack([features, 2 * features])
    arguments = several, torch.stack([weight, weight]), several @ weight.T + bias, torch.stack([labels, labels])
    generator = torch.Generator().manual_seed(0)  # what the function takes when none is given
    draws = [torch.randn(23, 10, generator=generator, dtype=torch.float64) for _ in range(2)]
    expected = []
    for noise in draws:
        shift = 0.1 * several.norm(dim=-1, keepdim=True) * noise @ weight.T
        losses = [F.cross_entropy((arguments[2] + sign * shift).flatten(0, 1), arguments[3].flatten(), reduction="none")
                  for sign in (0, 1, -1)]
        expected.append(((losses[1] + losses[2]) / 2 - losses[0]).unflatten(0, (2, 23)))
    monkeypatch.setattr(module, "_BLOCK", block)
    found = module.smoothing_excess(*arguments, radius=0.1, probes=2)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-13)


def test_the_parts_add_up_to_the_gap():
    features, labels, weight, bias = head()
    test, test_labels, *_ = head(1, samples=80)
    found = decompose_gap(features, labels, test, test_labels, weight, bias, radius=0.3, probes=8)
    gap = F.cross_entropy(test @ weight.T + bias, test_labels) - F.cross_entropy(features @ weight.T + bias, labels)
    assert found.gap == pytest.approx(float(gap), rel=1e-10)
    assert found.representativeness.value + found.robustness.value == pytest.approx(found.gap, rel=1e-12)
    assert found.robustness.value > 0


def test_columns_of_a_snapshot():
    features, labels, weight, bias = head()
    test, test_labels, *_ = head(1, samples=80)
    train = Snapshot(features, features @ weight.T + bias, labels, weight, bias)
    held_out = Snapshot(test, test @ weight.T + bias, test_labels, weight, bias)
    found = decompose_gap(features, labels, test, test_labels, weight, bias, probes=4)
    assert float(MEASURES["feature_robustness"](train)) == pytest.approx(found.robustness.value, rel=1e-9)
    crossed = evaluate(held_out, ["representativeness"], around=train)["representativeness"]
    assert float(crossed) == pytest.approx(found.representativeness.value, rel=1e-9)


def test_the_generator_decides_the_noise():
    features, labels, weight, bias = head()

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return feature_robustness(features, labels, weight, bias, probes=2, generator=generator)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_wrong_input_says_so():
    features, labels, weight, bias = head()
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        feature_robustness(features, labels, weight, bias, radius=0)
    with pytest.raises(ValueError, match="kernel must be 'sphere' or 'gaussian', got 'box'"):
        feature_robustness(features, labels, weight, bias, kernel="box")


def test_robustness_is_not_negative_where_the_loss_is_large_and_flat():
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(50, 6, generator=generator), torch.randn(4, 6, generator=generator)
    labels = torch.randint(4, (50,), generator=generator)
    logits = 60 * torch.randn(50, 4, generator=generator)
    assert (module.smoothing_excess(features, weight, logits, labels, radius=1e-6) >= 0).all()
