"""Everything that computes, on a pretended accelerator: run by test_accelerator.py in a process of its own."""

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / folder) for folder in ("", "accelerator", "measures", "models", "training")]

import test_contract as contract  # noqa: E402
import test_engine as engines  # noqa: E402
import test_models_module as modules  # noqa: E402
from pretended import NAME, accelerator, waits  # noqa: E402

import grokscape as gs  # noqa: E402
import tiny  # noqa: E402
from grokscape.measures.representativeness import decompose_gap  # noqa: E402
from grokscape.models import MLP, ModuleModel, SmallCNN, Transformer  # noqa: E402
from grokscape.testbeds import Digits  # noqa: E402
from grokscape.training import SGD, AdamW, Engine, Evaluation, OnsetRule, Plan, Replica  # noqa: E402


def there(*tensors):
    return [tensor.to(NAME) for tensor in tensors]


def moved(model):
    """The model on the accelerator; `Module.to` would look for a driver."""
    model = copy.deepcopy(model)
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(NAME))
        part._buffers = {name: buffer if buffer is None else buffer.to(NAME) for name, buffer in part._buffers.items()}
    return model


def test_the_accelerator_is_strict():
    with accelerator():
        (x,) = there(torch.ones(3))
        assert [y.device.type for y in (x, x + 1, x.cpu())] == [NAME, NAME, "cpu"]
        with pytest.raises(RuntimeError, match="met one on the CPU"):
            x + torch.ones(3)
        waits.clear()
        assert (x * 2).sum() > 5
        assert waits
    with accelerator(narrow=True), pytest.raises(TypeError, match="float64"):
        there(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", contract.NAMES)
def test_measures_and_their_gradients(name):
    s, row = contract.snapshot(), contract.MEASURES[name]
    with accelerator():
        parameters = {key: value.to(NAME) for key, value in s.parameters.items()}
        value = row(gs.Snapshot(*there(s.features, s.logits, s.labels, s.weight, s.bias), parameters))
        assert value.device.type == NAME
        torch.testing.assert_close(value.cpu(), row(s), rtol=1e-9, atol=1e-12)
        if row.differentiable:
            grads = []
            for move in (there, lambda *tensors: [tensor.clone() for tensor in tensors]):
                leaves = [leaf.requires_grad_() for leaf in move(s.features, s.weight, s.bias)]
                value = row(contract.rebuilt(*leaves, *move(s.labels)))
                grads.append([g.cpu() for g in torch.autograd.grad(value, leaves, materialize_grads=True)])
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


MODELS = {
    "plain": (modules.Plain, lambda: torch.randn(40, 64)),
    "batch norm": (modules.Normed, lambda: torch.randn(40, 1, 8, 8)),
    "attention": (modules.Attending, lambda: torch.randint(11, (40, 2))),
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", MODELS)
def test_any_model_is_measured_and_penalised(case, narrow):
    torch.manual_seed(0)
    factory, inputs = MODELS[case]
    model, x, y = factory().eval(), inputs(), torch.randint(10, (40,))
    data = [(x[i : i + 20], y[i : i + 20]) for i in (0, 20)]
    with accelerator(narrow):
        far = moved(model)
        close = {"rel_tol": 1e-5, "abs_tol": 1e-7}
        ours, theirs = gs.measure(model, data), gs.measure(far, data)
        for name in ours:
            assert math.isclose(ours[name], theirs[name], **close) or math.isnan(ours[name]), name
        layers, theirs = gs.layer_flatness(model, data, probes=4), gs.layer_flatness(far, data, probes=4)
        for name, estimate in layers.items():
            assert math.isclose(estimate.value, theirs[name].value, **close), name
        for penalty in (
            gs.Clamp("relative_flatness", at_least=30.0),
            gs.Suppress("relative_flatness_bound", strength=0.1, temperature=2.0),
            gs.Clamp("cdnv", at_most=0.1),
        ):
            grads = []
            for network, (a, b) in ((model, (x, y)), (far, there(x, y))):
                with gs.Probe(network) as probe:
                    loss = F.cross_entropy(network(a), b) + penalty(probe.snapshot(b), step=3)
                found = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
                grads.append([grad.cpu() for grad in found])
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_gap_is_decomposed(narrow):
    s = contract.snapshot(dtype=torch.float32)
    arguments = s.features, s.labels, s.features + 0.1, s.labels, s.weight, s.bias
    with accelerator(narrow):
        ours, theirs = decompose_gap(*arguments), decompose_gap(*there(*arguments))
    assert math.isclose(ours.gap, theirs.gap, rel_tol=1e-9)
    assert math.isclose(ours.robustness.value, theirs.robustness.value, rel_tol=1e-9)


@pytest.mark.parametrize("narrow", [False, True])
def test_metrics_are_moved_half_way(narrow):
    try:
        from grokscape.integrations.torchmetrics import NeuralCollapse, RelativeFlatness
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchmetrics cannot be imported here: {error}")
    torch.manual_seed(0)
    head, features, labels = nn.Linear(8, 4), torch.randn(60, 8), torch.randint(4, (60,))
    with accelerator(narrow):
        found = []
        for far in (False, True):
            own = moved(head) if far else head
            flatness, collapse = RelativeFlatness(), NeuralCollapse(4, 8, head=own)
            flatness.update(features[:25], head.weight, head(features[:25]))
            collapse.update(features[:25], labels[:25])
            assert flatness.compute() > 0
            x, y = there(features[25:], labels[25:]) if far else (features[25:], labels[25:])
            for metric in (flatness, collapse):
                metric._apply(lambda tensor, far=far: tensor.to(NAME) if far else tensor)
            flatness.update(x, own.weight, own(x))
            collapse.update(x, y)
            found.append({"relative_flatness": flatness.compute(), **collapse.compute()})
        for name, value in found[0].items():
            assert found[1][name].device.type == NAME
            assert math.isclose(value, found[1][name].cpu(), rel_tol=1e-5), name
        collapse.reset()
        collapse.update(x, y)
        assert collapse.compute()["cdnv"].device.type == NAME


def plan_on(task, model, **changes):
    splits = [task.split(seed) for seed in range(2)]
    arms = {"baseline": (), "flat": (gs.Clamp("relative_flatness", at_least=3.0),)}
    replicas = tuple(
        Replica(name, seed, seed, seed, splits[seed], interventions, AdamW(lr=1e-2))
        for name, interventions in arms.items()
        for seed in range(2)
    )
    network = model.build(splits[0].input_spec, splits[0].num_classes)
    evaluation = Evaluation(measures=engines.MEASURES, refine=5)
    return Plan(replicas, network, 50, 20, evaluation, OnsetRule(), precision="float64", **changes)


of, images, vectors = engines.plan_of, Digits(inputs="image"), Digits()
PLANS = {
    "every intervention": of,
    "minibatches": lambda: of(batch_size=8),
    "sgd": lambda: of(optimizer=SGD(lr=0.05, nesterov=True, weight_decay=1e-3)),
    "sam, warm-up, cosine": lambda: of(optimizer=AdamW(lr=1e-2, sam_radius=0.05, warmup=5, schedule="cosine")),
    "orthogonal gradient": lambda: of(optimizer=AdamW(lr=1e-2, orthogonal_gradient=True)),
    "transformer": lambda: of(model=Transformer(width=16, heads=2)),
    "transformer, by sample": lambda: of(model=Transformer(width=16, heads=2, bias=True, start=True), batch_size=5),
    "mlp": lambda: of(model=MLP(widths=(16, 16))),
    "mlp, embedded": lambda: of(model=MLP(widths=(16,), embedding=8)),
    "mlp, vectors": lambda: plan_on(vectors, MLP(widths=(16,), activation="gelu")),
    "cnn": lambda: plan_on(images, SmallCNN(channels=(4, 8))),
    "module": lambda: plan_on(vectors, ModuleModel(factory=modules.Plain, head="fc")),
    "module with batch norm": lambda: plan_on(images, ModuleModel(factory=modules.Normed, head="fc")),
    "module, one by one": lambda: plan_on(vectors, ModuleModel(factory=modules.Branching, head="fc")),
}


@torch.no_grad()
def trained(plan, device, steps=12):
    engine, columns = Engine(replace(plan, device=device)), []
    for step in range(steps):
        if step % 10 == 0:
            columns.append({name: value.cpu() for name, value in engine.measure(step).items()})
            list(engine.measure_moving(step))
        engine.step(step)
    return engine.state.flat.cpu(), columns


@pytest.mark.parametrize("case", PLANS)
def test_training_is_the_same(case):
    plan = PLANS[case]()
    with accelerator():
        (ours, ours_columns), (theirs, their_columns) = trained(plan, "cpu"), trained(plan, NAME)
    torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(their_columns, ours_columns, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("case", ["every intervention", "sam, warm-up, cosine", "orthogonal gradient", "transformer"])
def test_a_step_never_waits_for_the_device(case):
    with accelerator(), torch.no_grad():
        engine = Engine(replace(PLANS[case](), device=NAME))
        for step in range(6):  # the last ramp ends
            engine.step(step)
        waits.clear()
        engine.step(6)
        assert not waits


def test_a_whole_run_in_float32(tmp_path):
    with accelerator(narrow=True):
        spec = gs.StudySpec.model_validate(tiny.study(["baseline", "since memorisation", "paper"], seeds=1, steps=24))
        ours, theirs = (gs.run(spec, out=tmp_path / device, device=device) for device in ("cpu", NAME))
    assert {"state": "finished", "device": NAME}.items() <= theirs.folder.status.items()
    assert theirs.trajectory.shape == ours.trajectory.shape
    final = [study.trajectory.group_by("replica", maintain_order=True).last() for study in (ours, theirs)]
    assert final[0]["train/loss"].to_list() == pytest.approx(final[1]["train/loss"].to_list(), rel=1e-2)
