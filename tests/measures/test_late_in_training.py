"""Networks in float32 that are so sure that 1 − p is below its rounding: measures have digits, as in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense import dense_kappa
from grokscape.measures import Probe, layer_flatness
from grokscape.measures.curvature import hessian_eigenvalues, hessian_trace, sharpness


@pytest.fixture(params=["all right", "one wrong"])
def problem(request):
    """A network in float64 with margins of 18 and more, inputs, labels; numbers are such as float32 has too."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(12, 4)
    with torch.no_grad():
        top = model(inputs).topk(2).values
        model[2].weight *= 18 / (top[:, 0] - top[:, 1]).min()
        model[2].bias *= 18 / (top[:, 0] - top[:, 1]).min()
        labels = model(inputs).argmax(-1)
    if request.param == "one wrong":
        labels[3] = (labels[3] + 1) % 3
    return model.double(), inputs.double(), labels


def single(model, inputs):
    return copy.deepcopy(model).float(), inputs.float()


def test_flatness_of_every_layer(problem):
    model, inputs, labels = problem
    narrow, few = single(model, inputs)
    found = layer_flatness(narrow, (few, labels))
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(dense_kappa(model, f"{name}.weight", inputs, labels), rel=1e-4)


def test_flatness_with_a_share_for_every_class(problem):
    model, inputs, labels = problem
    targets = F.one_hot(labels, 3).double()
    narrow, few = single(model, inputs)
    found = layer_flatness(narrow, (few, targets.float()), loss="cross_entropy")
    expected = layer_flatness(model, (inputs, targets), loss=lambda z, t: -(t * z.log_softmax(-1)).sum(-1))
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name].value, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_flatness_with_targets_of_yes_and_no(problem, sign):
    model, inputs, _ = problem
    with torch.no_grad():
        logits = sign * model(inputs)
        model[2].weight *= sign
        model[2].bias *= sign
        model[2].bias += sign * (18 - (sign * logits).min())
    targets = (model(inputs) > 0).double()
    narrow, few = single(model, inputs)
    found = layer_flatness(narrow, (few, targets.float()), loss="binary_cross_entropy")
    expected = layer_flatness(
        model, (inputs, targets), loss=lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none").mean(-1)
    )
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name].value, rel=1e-3)


def test_flatness_of_a_hidden_layer_in_a_loop(problem):
    found = []
    for model, inputs in (problem[:2], single(*problem[:2])):
        with Probe(model, layers=["0"]) as probe:
            model(inputs)
            found.append(probe.snapshot(problem[2]).layers["relative_flatness@0"].item())
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", [hessian_trace, hessian_eigenvalues, sharpness])
def test_curvature_of_the_whole_network(problem, measure):
    model, inputs, labels = problem
    found, expected = measure(*single(model, inputs)[:1], (inputs.float(), labels)), measure(model, (inputs, labels))
    if measure is hessian_trace:
        found, expected = found.value, expected.value
    assert found == pytest.approx(expected, rel=1e-3)
