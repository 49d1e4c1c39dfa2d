"""Hessian trace, eigenvalues and sharpness of a small network against its dense Hessian."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokscape.measures import MeasureWarning, curvature


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    inputs, labels = torch.randn(11, 3, dtype=torch.float64), torch.randint(3, (11,))
    quiet = copy.deepcopy(model).eval()
    parameters = dict(model.named_parameters())

    def loss(flat):
        pieces = flat.split([p.numel() for p in parameters.values()])
        values = {n: piece.reshape(p.shape) for (n, p), piece in zip(parameters.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(quiet, values, (inputs,)), labels)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return model, inputs, labels, loss, flat


def test_trace_within_four_standard_errors(problem):
    model, inputs, labels, loss, flat = problem
    expected = float(torch.autograd.functional.hessian(loss, flat).trace())
    for probes in (4, 16, 64):
        estimate = curvature.hessian_trace(model, (inputs, labels), probes, batch_size=4)
        assert abs(estimate.value - expected) <= 4 * estimate.stderr
    assert model.training


def test_largest_eigenvalues(problem):
    model, inputs, labels, loss, flat = problem
    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).flip(0)[:3].tolist()
    masked = torch.cat([labels, torch.tensor([-100])])
    padded = torch.cat([inputs, torch.ones(1, 3, dtype=torch.float64)])
    assert curvature.hessian_eigenvalues(model, (padded, masked), 3, batch_size=5) == pytest.approx(expected, rel=1e-8)


def test_sharpness_is_the_rise_along_the_gradient(problem):
    model, inputs, labels, loss, flat = problem
    flat = flat.requires_grad_()
    (slope,) = torch.autograd.grad(loss(flat), flat)
    expected = (loss(flat + 0.1 * slope / slope.norm()) - loss(flat)).item()
    assert curvature.sharpness(model, (inputs, labels), 0.1, batch_size=4) == pytest.approx(expected, rel=1e-10)
    assert all(parameter.grad is None for parameter in model.parameters())


class NextForCausalLM(nn.Module):
    """Named as transformers names what predicts the next position from each."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens)))


def test_sharpness_of_a_language_model():
    torch.manual_seed(0)
    model, tokens = NextForCausalLM().double(), torch.randint(5, (4, 6))

    def loss():
        return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    found, before = curvature.sharpness(model, (tokens, tokens), 0.1), loss()
    slopes = torch.autograd.grad(before, list(model.parameters()))
    size = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        for parameter, slope in zip(model.parameters(), slopes, strict=True):
            parameter += 0.1 * slope / size
    assert found == pytest.approx((loss() - before).item(), rel=1e-8)


@pytest.mark.parametrize(("inputs", "reason"), [(1.0, "zero, and has no direction"), (float("nan"), "NaN")])
def test_sharpness_without_a_direction(inputs, reason):
    model, labels = torch.nn.Linear(3, 2), torch.arange(4) % 2
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    with pytest.warns(MeasureWarning, match=f"sharpness is NaN: the gradient of the loss is {reason}"):
        assert math.isnan(curvature.sharpness(model, (torch.full((4, 3), inputs), labels)))


def test_errors_say_what_to_do(problem):
    model, inputs, labels, _, _ = problem
    with pytest.raises(ValueError, match="number must lie between 1 and 30, got 99"):
        curvature.hessian_eigenvalues(model, (inputs, labels), 99)
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        curvature.hessian_trace(model, (inputs, labels), 0)
    with pytest.raises(ValueError, match="there are no samples to measure"):
        curvature.hessian_trace(model, (inputs, torch.full_like(labels, -100)))
    with pytest.raises(ValueError, match="no trainable parameter"):
        curvature.sharpness(model.requires_grad_(False), (inputs, labels))


def test_classes_that_do_not_come_last_are_refused():
    pytest.importorskip("curvlinops")
    model, x, y = torch.nn.Conv2d(2, 3, 1), torch.randn(4, 2, 5, 3), torch.zeros(4, 5, 3).long()
    with pytest.raises(ValueError, match=r"classes come last, move them by .movedim\(1, -1\)"):
        curvature.hessian_trace(model, (x, y), 1)


@pytest.mark.parametrize("take", [curvature.sharpness, curvature.hessian_trace, curvature.hessian_eigenvalues])
def test_batches_that_are_written_over(problem, take):
    model, inputs, labels, _, _ = problem

    def rewritten():
        place = torch.empty(4, 3, dtype=torch.float64), torch.empty(4, dtype=torch.long)
        for start in (0, 4):
            yield place[0].copy_(inputs[start:start + 4]), place[1].copy_(labels[start:start + 4])

    assert take(model, rewritten()) == take(model, (inputs[:8], labels[:8]), batch_size=4)
