"""κ of the head against the whole Hessian, computed by autograd with code of its own."""

import pytest
import torch
import torch.nn.functional as F

from grokscape.measures import relative_flatness, relative_flatness_bound


def problem(seed: int = 0, samples: int = 9, width: int = 5, classes: int = 4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=generator)
    return features, weight, bias, labels


def hessian_kappa(loss, weight):
    """Σ_{s,t} ⟨w_s, w_t⟩ Tr(H_st), block by block."""
    hessian = torch.autograd.functional.hessian(loss, weight)
    total = 0.0
    for s in range(weight.shape[0]):
        for t in range(weight.shape[0]):
            total += float(weight[s] @ weight[t]) * float(torch.trace(hessian[s, :, t, :]))
    return total


@pytest.mark.parametrize(("width", "classes"), [(5, 4), (2, 7), (3, 200)])
def test_equals_the_whole_hessian(width, classes):
    features, weight, bias, labels = problem(width=width, classes=classes)
    expected = hessian_kappa(lambda w: F.cross_entropy(features @ w.T + bias, labels), weight)
    value = relative_flatness(features, weight, features @ weight.T + bias)
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_bound_is_above():
    features, weight, bias, _ = problem()
    logits = features @ weight.T + bias
    assert relative_flatness(features, weight, logits) < relative_flatness_bound(features, weight, logits)
