"""The engine against a loop of one's own: `torch.optim`, one module at a time, the arm's interventions around it."""

import pytest
import torch
import torch.nn.functional as F

from grokscape.integrations import Applied
from grokscape.interventions import Clamp, NormalizeFeatures, Promote, Suppress, Unplug, WeightCap
from grokscape.models import MLP, QuadraticMLP, Transformer
from grokscape.testbeds import ModularArithmetic
from grokscape.training import SGD, AdamW, Engine, Evaluation, OnsetRule, Plan, Replica

STEPS = 24
TASK = ModularArithmetic(operation="x+y", p=7, train_fraction=0.6)
SPLITS = [TASK.split(seed) for seed in range(2)]
ARMS = {
    "baseline": (),
    "pushed": (Promote("relative_flatness", strength=1e-2, start=3, ramp=6), Suppress("cdnv", strength=1e-3, until=15)),
    "held": (
        Clamp("relative_flatness_bound", at_least=500.0, temperature=2.0, start=2),
        Clamp("nc1_ratio", at_least=0.5, at_most=1.0, ramp=8),
        Clamp("head_norm", at_most=1.0, strength=0.3),
    ),
    "paper": (
        Suppress("relative_flatness_bound", strength=1e-2, temperature=2.0),
        NormalizeFeatures(2.0),
        WeightCap(1.0),
        Unplug(9, lr=0.02, cosine=True, weight_decay=0.1),
    ),
    "falling": (
        Clamp("loss", at_least=0.5),
        WeightCap(0.5, norm="spectral", start=4, until=12),
        Unplug(11, cosine=True),
    ),
    "released": (NormalizeFeatures(until=7), Promote("margin", strength=0.1), Unplug(14, weight_decay=0.0)),
}
TRAININGS = {
    "AdamW": (AdamW(lr=0.01, weight_decay=0.3), QuadraticMLP(width=12), None),
    "SGD": (SGD(lr=0.05, weight_decay=1e-2, nesterov=True), MLP(widths=(10, 8), embedding=4, activation="gelu"), 14),
    "decoder": (AdamW(lr=3e-3), Transformer(layers=1, heads=2, width=8, norm="post", tied=True), 20),
}


def engine_of(optimizer, model, batch_size):
    replicas = tuple(Replica(name, seed, seed, seed, SPLITS[seed], interventions, optimizer)
                     for name, interventions in ARMS.items() for seed in range(2))
    network = model.build(SPLITS[0].input_spec, SPLITS[0].num_classes)
    return Engine(Plan(replicas, network, STEPS, batch_size, Evaluation(measures=("loss",)), OnsetRule(),
                       precision="float64"))


def torch_optimizer(settings, parameters):
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay,
                           nesterov=settings.nesterov)


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
@pytest.mark.parametrize("name", TRAININGS)
def test_every_arm_trains_as_in_a_loop_of_one_s_own(name):
    engine = engine_of(*TRAININGS[name])
    started = engine.layout.view(engine.state.flat.clone())
    data = [[part.clone() for part in engine.batches.at(step, slice(None))] for step in range(STEPS)]
    for step in range(STEPS):
        engine.step(step)
    ended = engine.layout.view(engine.state.flat)
    assert engine.state.alive.all()
    for row, replica in enumerate(engine.plan.replicas):
        module = engine.network.single({key: value[row] for key, value in started.items()}, {}).double()
        optimizer = torch_optimizer(replica.optimizer, module.parameters())
        with Applied(module, replica.interventions, steps=STEPS) as arm:
            for step, (inputs, labels) in enumerate(data):
                arm.before_forward(step)
                loss = F.cross_entropy(module(inputs[row]), labels[row]) + arm.penalty(labels[row], step)
                optimizer.zero_grad()
                loss.backward()
                arm.before_step(optimizer, step)
                optimizer.step()
                arm.after_step(step)
        with torch.no_grad():
            expected = torch.nn.utils.parameters_to_vector(module.parameters())
        found = engine.layout.flatten({key: value[row] for key, value in ended.items()})
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8), replica.arm
        if replica.arm != "baseline":
            assert (engine.state.flat[row] - engine.state.flat[row % 2]).abs().max() > 1e-4, replica.arm
