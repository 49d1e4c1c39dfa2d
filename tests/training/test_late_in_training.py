"""Training where losses are so small that 1 − p_y is below float32's rounding: no digits are lost for that reason."""

import pytest
import torch

from grokscape.measures import Snapshot
from grokscape.models import MLP
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Engine, Evaluation, OnsetRule, Plan, Replica
from grokscape.training.hidden import cross_entropies

TASK = ModularArithmetic(operation="x+y", p=7, train_fraction=0.6)
MODEL = MLP(widths=(16, 16))
HIDDEN = "relative_flatness@layers.1"


def engine_of(precision):
    """Without decay, and with an ε of Adam that is no limit."""
    optimizer = AdamW(lr=0.01, weight_decay=0.0, eps=1e-30)
    replicas = tuple(Replica("baseline", seed, seed, seed, TASK.split(seed), (), optimizer) for seed in range(2))
    network = MODEL.build(replicas[0].split.input_spec, replicas[0].split.num_classes)
    evaluation = Evaluation(measures=("loss", "relative_flatness", HIDDEN))
    return Engine(Plan(replicas, network, 3000, None, evaluation, OnsetRule(), precision=precision))


@pytest.fixture(scope="module")
def engines():
    """In float32, trained until the loss is a hundredth of float32's rounding; in float64 with the same weights."""
    single, double = engine_of("float32"), engine_of("float64")
    with torch.no_grad():
        for step in range(1400):
            single.step(step)
    double.state.flat.copy_(single.state.flat)
    return single, double


def test_the_loss_goes_on_falling(engines):
    with torch.no_grad():
        loss = engines[0].measure(1400)["train/loss"]
    assert (loss < 1e-9).all()


def test_the_gradient_is_that_of_float64(engines):
    found, expected = (engine._gradient(engine.state.flat, 1400)[1] for engine in engines)
    assert (found.double() - expected).norm() < 1e-4 * expected.norm()


def test_the_flatness_of_a_hidden_layer_is_that_of_float64(engines):
    with torch.no_grad():
        found, expected = (engine.measure(1400)["train/" + HIDDEN] for engine in engines)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("label", [0, 1])
def test_second_derivatives_are_those_of_float64_whether_a_sample_is_right_or_wrong(label):
    def curvature(dtype):
        logits = torch.tensor([[[19.0, 0.5, -1.0]]], dtype=dtype, requires_grad=True)
        seen = Snapshot(logits, logits, torch.tensor([[label]]), torch.eye(3, dtype=dtype)[None])
        (slope,) = torch.autograd.grad(cross_entropies(seen, curved=True).sum(), logits, create_graph=True)
        return [torch.autograd.grad(part, logits, retain_graph=True)[0].double() for part in slope.flatten()]

    for found, expected in zip(curvature(torch.float32), curvature(torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
