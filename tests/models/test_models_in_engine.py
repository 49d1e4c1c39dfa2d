"""Every kind of model trains in the engine; what a module keeps beside its parameters is part of the run's state."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from grokscape.models import MLP, ModuleModel, QuadraticMLP, SmallCNN
from grokscape.testbeds import Digits, SparseParity, SymmetricGroup
from grokscape.training import AdamW, Engine, Evaluation, OnsetRule, Plan, Replica
from grokscape.training.checkpoint import pack, unpack
from probed import Normed

IMAGES = Digits(inputs="image", train_samples=100)


def engine_of(model, task, batch_size=None, refine=None):
    splits = [task.split(seed) for seed in range(3)]
    replicas = tuple(Replica("baseline", s, s, s, splits[s], (), AdamW(lr=1e-2)) for s in range(3))
    network = model.build(task.input_spec, task.num_classes)
    evaluation = Evaluation(measures=("loss", "relative_flatness", "cdnv"), refine=refine)
    return Engine(Plan(replicas, network, 40, batch_size, evaluation, OnsetRule()))


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (QuadraticMLP(width=32), SparseParity(bits=12, train_samples=100)),
        (MLP(widths=(32, 32)), SymmetricGroup(degree=3)),
        (MLP(widths=(32,), init_scale=2.0), Digits()),
        (SmallCNN(channels=(8, 16)), IMAGES),
        (ModuleModel(factory=Normed, head="fc"), IMAGES),
    ],
)
def test_training_lowers_the_loss(model, task):
    engine = engine_of(model, task)
    before = engine.measure(0)
    for step in range(40):
        engine.step(step)
    after = engine.measure(40)
    assert bool((after["train/loss"] < 0.96 * before["train/loss"]).all())
    assert bool(torch.stack([*after.values()]).isfinite().all())


def test_training_is_the_plain_loop_with_decay_on_biases_as_on_weights():
    engine = engine_of(MLP(widths=(16,)), Digits())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    names = ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    with torch.no_grad():
        for name, parameter in zip(names, plain.parameters(), strict=True):
            parameter.copy_(engine.layout.view(engine.state.flat)[name][1])
    split, optimizer = Digits().split(1), torch.optim.AdamW(plain.parameters(), 1e-2, (0.9, 0.98), weight_decay=1.0)
    for step in range(15):
        engine.step(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(split.train_inputs), split.train_labels).backward()
        optimizer.step()
    for name, parameter in zip(names, plain.parameters(), strict=True):
        found = engine.layout.view(engine.state.flat)[name][1]
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-3, atol=1e-4, msg=name)


def test_running_statistics_survive_a_checkpoint():
    model = ModuleModel(factory=Normed, head="fc")
    whole, first, second = (engine_of(model, IMAGES, batch_size=32) for _ in range(3))
    for step in range(20):
        whole.step(step)
    for step in range(10):
        first.step(step)
    saved = {name: tensor.clone() for name, tensor in pack(first.state).items()}
    assert {name for name in saved if name.startswith("buffers/")} == {
        "buffers/norm.running_mean",
        "buffers/norm.running_var",
        "buffers/norm.num_batches_tracked",
    }
    unpack(saved, second.state)
    for step in range(10, 20):
        second.step(step)
    for name, tensor in pack(whole.state).items():
        assert torch.equal(tensor, pack(second.state)[name]), name


def test_a_sharpness_aware_arm_leaves_the_running_statistics_of_others_alone():
    def trained(radius):
        engine = engine_of(ModuleModel(factory=Normed, head="fc"), IMAGES, batch_size=32)
        optimizers = [AdamW(lr=1e-2), AdamW(lr=1e-2, sam_radius=radius), AdamW(lr=1e-2)]
        replicas = [replace(r, optimizer=o) for r, o in zip(engine.plan.replicas, optimizers, strict=True)]
        engine = Engine(replace(engine.plan, replicas=replicas))
        for step in range(5):
            engine.step(step)
        return pack(engine.state)

    plain, beside = trained(0.0), trained(0.1)
    assert not torch.equal(plain["flat"][1], beside["flat"][1])
    for name, tensor in plain.items():
        if name.startswith(("flat", "buffers/")):
            assert torch.equal(tensor[::2], beside[name][::2]), name
    assert (beside["buffers/norm.num_batches_tracked"] == 5).all()


def test_a_replica_that_diverged_keeps_its_running_statistics_too():
    engine = engine_of(ModuleModel(factory=Normed, head="fc"), IMAGES, batch_size=32)
    for step in range(5):
        if step == 2:
            engine.state.flat[1, -1] = torch.nan
            before = {name: buffer.clone() for name, buffer in engine.state.buffers.items()}
        engine.step(step)
    assert engine.state.alive.tolist() == [True, False, True]
    for name, buffer in engine.state.buffers.items():
        assert torch.equal(buffer[1], before[name][1]), name
        assert not torch.equal(buffer[0], before[name][0]), name


def test_measuring_moving_replicas_is_measuring_them_among_all():
    engine = engine_of(ModuleModel(factory=Normed, head="fc"), IMAGES, refine=5)
    for step in range(5):
        engine.step(step)
    everybody, before = engine.measure(5), {k: v.clone() for k, v in pack(engine.state).items()}
    engine.state.moving[:] = torch.arange(len(engine.state.moving)) == 1
    measured = list(engine.measure_moving(5))
    assert [rows for rows, _ in measured] == [[1]]
    for name, value in measured[0][1].items():
        torch.testing.assert_close(value[0], everybody[name][1], rtol=1e-4, atol=1e-6)
    for name in before:
        if name.startswith("buffers/"):
            assert torch.equal(before[name], pack(engine.state)[name])
