"""Numbers are made where the model's are, whatever the default device is; here one that holds none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from grokscape.measures import MeasureWarning
from grokscape.models import Transformer
from grokscape.testbeds import ModularArithmetic


def problem():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, device="cpu")
    model = nn.Sequential(nn.Linear(6, 9, device="cpu"), nn.ReLU(), nn.Linear(9, 5, device="cpu"))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model, inputs, torch.arange(30, device="cpu") % 5


def measured():
    model, inputs, labels = problem()
    return dict(gs.measure(model, (inputs, labels), test_loader=(inputs, labels)))


def layers():
    model, inputs, labels = problem()
    found = gs.layer_flatness(model, (inputs, labels), exact=False, probes=4)
    return {name: each.value for name, each in found.items()}


def in_a_loop():
    model, inputs, labels = problem()
    clamps = gs.Clamp("relative_flatness@0", at_least=1e3, ramp=3), gs.Clamp("nc1", at_most=1e-3)
    with gs.Probe(model, layers=["0"]) as probe:
        loss = F.cross_entropy(model(inputs), labels)
        for clamp in clamps:
            loss = loss + clamp(probe.snapshot(labels), step=1)
        loss.backward()
    return {name: float(parameter.grad.sum()) for name, parameter in model.named_parameters()}


def collapsed():
    _, features, labels = problem()
    features[labels == 1] = features[labels == 0]  # two means coincide
    with pytest.warns(MeasureWarning):
        return {name: float(value) for name, value in gs.neural_collapse(features, labels).items()}


def out_of_a_run():
    with torch.device("cpu"):
        split = ModularArithmetic(p=5).split(0)
        network = Transformer(width=8, heads=2).build(split.input_spec, 5)
        model = network.single(network.init(torch.Generator().manual_seed(0)), {})
    found = gs.layer_flatness(model, (split.train_inputs, split.train_labels), exact=False, probes=2)
    return {name: each.value for name, each in found.items()}


@pytest.mark.parametrize("found", [measured, layers, in_a_loop, collapsed, out_of_a_run])
def test_the_default_device_does_not_matter(found):
    expected = found()
    with torch.device("meta"):
        values = found()
    assert values == pytest.approx(expected, nan_ok=True)
