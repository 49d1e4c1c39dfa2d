"""κ of hidden layers in a run: measured, held, and without effect on replicas that do without."""

import pytest
import torch
from torch import nn

import grokscape as gs
from grokscape.interventions import Clamp
from grokscape.measures import layer_flatness
from grokscape.models import MLP, QuadraticMLP, Transformer
from grokscape.models.module_network import ModuleNetwork
from grokscape.studies import StudySpec
from grokscape.testbeds import ModularArithmetic
from grokscape.testbeds.types import InputSpec
from grokscape.training import AdamW, Engine, Evaluation, OnsetRule, Plan, Replica, engine
from grokscape.training.hidden import HiddenLayers
from tiny import study

SPLIT = ModularArithmetic(operation="x+y", p=7, train_fraction=0.6).split(10)
QUADRATIC = QuadraticMLP(width=16)
TRANSFORMER = Transformer(layers=1, heads=2, width=8)


def trained(arms, model=QUADRATIC, steps=30, measures=("relative_flatness",), batch_size=None, **more):
    replicas = tuple(Replica(name, seed, seed, 10, SPLIT, interventions, AdamW(lr=1e-2))
                     for name, interventions in arms.items() for seed in range(2))
    plan = Plan(replicas, model.build(SPLIT.input_spec, SPLIT.num_classes), steps, batch_size,
                Evaluation(measures=measures), OnsetRule(train_threshold=0.5), **more)
    made = Engine(plan)
    with torch.no_grad():
        for step in range(steps):
            if step % 10 == 0:
                made.measure(step)
            made.step(step)
    return made


def held(layer, level, **more):
    return (Clamp(f"relative_flatness@{layer}", at_least=level, **more),)


def test_measured_as_layer_flatness_does(tmp_path):
    names = ["relative_flatness@first", "relative_flatness_stderr@first"]
    done = gs.run(StudySpec(**study(steps=100, evaluation={"measures": names, "points": 5})), out=tmp_path / "run")
    last = done.trajectory.filter(arm="held", seed=1, step=100)
    network, train, _, _ = done.trained("held", 1)
    expected = layer_flatness(network, train, ["first"], exact=True)["first"].value
    value, error = (last[f"train/{name}"].item() for name in names)
    assert abs(value - expected) < 6 * error  # of a standard error by four probes
    assert error < 0.5 * abs(expected)


def test_measured_in_pieces(monkeypatch):
    monkeypatch.setattr(engine, "_CHUNK", 2 * 7)  # pieces of 7 samples for two replicas
    found = trained({"baseline": ()}, MLP(widths=(16, 8)), measures=("relative_flatness@layers.1",
                                                                     "relative_flatness_stderr@layers.1"))
    values = found.measure(30)
    inputs, labels = found.batches.all("train", slice(0, 2))
    parameters = {name: value[1].detach() for name, value in found.layout.view(found.state.flat).items()}
    network = found.network.single(parameters, {})
    expected = layer_flatness(network, (inputs[1], labels[1]), ["layers.1"], exact=True)["layers.1"].value
    value, error = (values[f"train/{name}@layers.1"][1] for name in ("relative_flatness", "relative_flatness_stderr"))
    assert abs(value - expected) < 6 * error
    assert error < 0.3 * abs(expected)


@pytest.mark.parametrize("pieces_of", [1, 7, 11])
def test_pieces_have_the_signs_of_the_whole(monkeypatch, pieces_of):
    found = trained({"baseline": ()}, measures=("relative_flatness@first", "relative_flatness_stderr@first"))
    whole = found.measure(30)
    monkeypatch.setattr(engine, "_CHUNK", 2 * pieces_of)  # there are as many pieces as more replicas would make
    for name, value in found.measure(30).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


def test_standard_errors_are_honest():
    names = ("relative_flatness@first", "relative_flatness_stderr@first")
    done = trained({"baseline": ()}, measures=names)
    found = [done.measure(step) for step in range(400)]  # the same weights, other signs
    values, errors = (torch.stack([each[f"train/{name}"] for each in found]) for name in names)
    torch.testing.assert_close(errors.square().mean(0).sqrt(), values.std(0), rtol=0.25, atol=0)


@pytest.mark.parametrize("model", [QUADRATIC, Transformer(layers=1, heads=2, width=8, activation="gelu")])
def test_the_gradient_of_a_run_is_that_of_its_objective(model):
    layer = "first" if model is QUADRATIC else "layers.0.qkv"
    done = trained({"one": (gs.Promote(f"relative_flatness@{layer}", strength=1.0),)}, model, precision="float64")
    (chunk,), flat = done._training_chunks, done.state.flat
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=flat.dtype)

    def objective(step):
        moved = flat + step * direction
        with torch.enable_grad():
            return done.objective(moved.requires_grad_(), *done.batches.at(7, chunk.rows), 7, chunk).detach()

    slope = (done._gradient(flat, 7)[1] * direction).sum(1)
    torch.testing.assert_close(slope, (objective(1e-6) - objective(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-6)


def test_every_step_layer_and_probe_has_signs_of_its_own():
    hidden = HiddenLayers(TRANSFORMER.build(SPLIT.input_spec, SPLIT.num_classes), torch.zeros(1))
    seeds = [generator.initial_seed() for step in range(20) for probe in range(5)
             for generator in hidden.generators(("layers.0.qkv", "layers.0.up"), step, probe).values()]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("model", "layer", "batch_size"), [
    (QUADRATIC, "first", None), (MLP(widths=(16, 8)), "layers.1", 10), (TRANSFORMER, "layers.0.up", 20)])
def test_another_strength_or_schedule_changes_no_bit_of_the_others(model, layer, batch_size):
    def rows(**more):
        arms = {"baseline": (), "one": held(layer, 5.0, **more), "two": held(layer, 5.0, start=25)}
        return trained(arms, model, batch_size=batch_size).state.flat

    plain, stronger, later = rows(), rows(strength=3.0), rows(start=28)
    for changed in (stronger, later):
        assert torch.equal(plain[:2], changed[:2])
        assert torch.equal(plain[4:], changed[4:])
        assert not torch.equal(plain[2:4], changed[2:4])


def test_a_baseline_is_the_same_beside_an_arm_that_holds_a_hidden_layer():
    alone = trained({"baseline": ()}, TRANSFORMER).state.flat
    beside = trained({"baseline": (), "held": held("layers.0.up", 5.0)}, TRANSFORMER).state.flat
    assert torch.equal(alone, beside[:2])


def test_a_level_relative_to_memorisation():
    done = trained({"held": held("first", 0.5, relative_to="memorisation", strength=1.0)}, steps=200)
    (reference,) = done.state.references.values()
    assert bool((reference > 0).all())
    assert "train/relative_flatness@first" not in done.measure(200)


def test_no_such_layer():
    with pytest.raises(ValueError, match=r"expected a hidden layer of the network, got 'second'; it has first"):
        trained({"held": held("second", 1.0)})
    with pytest.raises(ValueError, match="got 'second'; it has first"):
        trained({"baseline": ()}, measures=("relative_flatness@second",))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x))))


class Shared(Normed):
    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) @ self.first.weight @ self.first.weight.T)


@pytest.mark.parametrize(("make", "message"), [(Normed, "samples of a batch see each other"), (Shared, "nowhere else")])
def test_layers_of_modules_that_cannot_be_perturbed(make, message):
    network = ModuleNetwork(make, "head", InputSpec("vector", (4,)), 3)
    with pytest.raises(ValueError, match=message):
        network.check_layer("first")
