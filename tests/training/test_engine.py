"""The engine: replicas are independent, a batch equals each alone, interventions act, divergence is contained."""

import functools
import math
from dataclasses import replace

import pytest
import torch

from grokscape.interventions import Clamp, NormalizeFeatures, Promote, Rescale, Suppress, Unplug, WeightCap
from grokscape.models import QuadraticMLP, Transformer
from grokscape.store import RunFolder
from grokscape.studies import Arm
from grokscape.testbeds import ModularArithmetic, TensorTask
from grokscape.training import SGD, AdamW, Engine, Evaluation, OnsetRule, Plan, Replica, Run
from grokscape.training.batches import Batches
from grokscape.training.levers import ended

MEASURES = ("relative_flatness", "cdnv", "nc1", "weight_norm")
TASK = ModularArithmetic(operation="x+y", p=7, train_fraction=0.6)
SPLITS = [TASK.split(seed) for seed in (10, 11)]
ARMS = {
    "baseline": (),
    "promote": (Promote("relative_flatness", strength=1e-2),),
    "clamp": (Clamp("relative_flatness", at_least=30.0),),
    "collapse": (Clamp("cdnv", at_least=1.5, at_most=3.0, ramp=5),),
    "paper": (
        Suppress("relative_flatness_bound", strength=1e-2, temperature=2.0),
        NormalizeFeatures(),
        WeightCap(5.0),
        Unplug(30, lr=3e-3, cosine=True, weight_decay=0.1),
    ),
    "spectral": (WeightCap(1.5, norm="spectral", start=5),),
    "rescaled": (Rescale(2.0),),
    "later": (Clamp("cdnv", at_least=2.0, relative_to=10),),
}


def plan_of(arms=ARMS, *, model=None, optimizer=None, batch_size=None, precision="float64", steps=50, **changes):
    optimizer = optimizer or AdamW(lr=1e-2)
    replicas = tuple(
        Replica(name, seed, seed, seed + 10, SPLITS[seed], interventions, optimizer)
        for name, interventions in arms.items()
        for seed in range(2)
    )
    split = SPLITS[0]
    return Plan(
        replicas=replicas,
        network=(model or QuadraticMLP(width=16)).build(split.input_spec, split.num_classes),
        steps=steps,
        batch_size=batch_size,
        evaluation=Evaluation(measures=MEASURES),
        onset=OnsetRule(),
        precision=precision,
        **changes,
    )


def trained(plan, steps=50):
    engine = Engine(plan)
    with torch.no_grad():
        for step in range(steps):
            if step in (0, 10, 20, 40):
                engine.measure(step)
            engine.step(step)
    return engine


def alone(plan, index):
    return Plan(**{**vars(plan), "replicas": plan.replicas[index : index + 1]})


@pytest.mark.parametrize(
    ("model", "batch_size", "optimizer"),
    [
        (QuadraticMLP(width=16), None, AdamW(lr=1e-2)),
        (QuadraticMLP(width=16), 9, SGD(lr=0.1, weight_decay=1e-2)),
        (QuadraticMLP(width=16), None, AdamW(lr=1e-2, sam_radius=0.05)),
        (QuadraticMLP(width=16), None, AdamW(lr=1e-2, orthogonal_gradient=True)),
        (Transformer(layers=2, heads=2, width=16), 9, AdamW(lr=3e-3, warmup=10)),
    ],
    ids=["full batch", "minibatch", "sam", "orthogonal", "transformer"],
)
def test_a_replica_of_a_batched_run_equals_the_same_replica_alone(model, batch_size, optimizer):
    plan = plan_of(model=model, batch_size=batch_size, optimizer=optimizer)
    together = trained(plan)
    expected = together.measure(50)
    for index in range(len(plan.replicas)):
        single = trained(alone(plan, index))
        error = (together.state.flat[index] - single.state.flat[0]).abs().max().item()
        assert error < 1e-9, plan.replicas[index].arm
        for name, values in single.measure(50).items():
            torch.testing.assert_close(values[0], expected[name][index], rtol=1e-7, atol=1e-9, equal_nan=True)


def test_every_intervention_changes_its_arm():
    plan = plan_of()
    state = trained(plan).state
    rows = {replica.arm: state.flat[i] for i, replica in enumerate(plan.replicas) if replica.seed == 0}
    for arm, row in rows.items():
        if arm != "baseline":
            assert (row - rows["baseline"]).abs().max() > 1e-3, arm


def test_another_strength_in_one_arm_changes_no_bit_of_the_others():
    changed = {**ARMS, "clamp": (Clamp("relative_flatness", at_least=77.0, strength=0.3),)}
    first, second = (trained(plan_of(arms, precision="float32")) for arms in (ARMS, changed))
    for i, replica in enumerate(first.plan.replicas):
        same = torch.equal(first.state.flat[i], second.state.flat[i])
        assert same == (replica.arm != "clamp"), replica.arm


def test_paired_replicas_start_alike_and_seeds_differ():
    state = Engine(plan_of()).state
    assert torch.equal(state.flat[0], state.flat[2])
    assert not torch.equal(state.flat[0], state.flat[1])


def test_a_weight_cap_holds_after_every_step():
    engine = Engine(plan_of({"capped": (WeightCap(0.9),), "spectral": (WeightCap(0.3, norm="spectral"),)}))
    weight = engine.network.head[0]
    with torch.no_grad():
        for step in range(5):
            engine.step(step)
            head = engine.layout.view(engine.state.flat)[weight]
            assert (torch.linalg.matrix_norm(head[:2]) <= 0.9 + 1e-12).all()
            assert (torch.linalg.matrix_norm(head[2:], ord=2) <= 0.3 + 1e-12).all()


def test_a_weight_cap_stays_when_the_rest_is_unplugged_unless_it_ends_itself():
    caps = (Suppress("relative_flatness_bound", strength=1.0), WeightCap(1.0), Unplug(2, lr=0.05))
    engine = Engine(plan_of({"capped": caps, "ends": (*caps[:1], WeightCap(1.0, until=3), *caps[2:])}))
    for step in range(5):
        engine.step(step)
        sizes = torch.linalg.matrix_norm(engine.layout.view(engine.state.flat)[engine.network.head[0]])
        torch.testing.assert_close(sizes[:2], torch.ones_like(sizes[:2]))
        assert ((sizes[2:] > 1.01) == (step >= 3)).all()


def test_normalised_features_have_their_length_until_unplugged():
    engine = Engine(plan_of({"baseline": (), "normalised": (NormalizeFeatures(radius=2.0), Unplug(3))}))
    rows = slice(0, 4)
    inputs, labels = engine.batches.at(0, rows)
    parameters = engine.layout.view(engine.state.flat)
    before = engine.snapshot(parameters, inputs, labels, 2, rows).features.norm(dim=-1)
    after = engine.snapshot(parameters, inputs, labels, 3, rows).features.norm(dim=-1)
    torch.testing.assert_close(before[2:], torch.full_like(before[2:], 2.0))
    assert (before[:2] - 2.0).abs().max() > 0.1
    torch.testing.assert_close(after[2:], after[:2])


def test_rescaling_leaves_the_function_and_relative_flatness_but_not_the_norm_of_the_head():
    engine = Engine(plan_of({"baseline": (), "rescaled": (Rescale(3.0),)}))
    values = engine.measure(0)
    for name in ("train/loss", "test/accuracy", "train/relative_flatness", "train/cdnv"):
        torch.testing.assert_close(values[name][2:], values[name][:2])
    head = engine.layout.view(engine.state.flat)[engine.network.head[0]]
    torch.testing.assert_close(head[2:] * 3, head[:2])


def test_rescaling_a_head_that_is_used_elsewhere_is_refused():
    with pytest.raises(ValueError, match="divides the head's weight 'embedding', but this network uses it before"):
        plan_of({"baseline": (), "rescaled": (Rescale(3.0),)}, model=Transformer(layers=1, heads=1, width=8, tied=True))


@pytest.mark.parametrize(
    ("twice", "what"),
    [
        ((WeightCap(1.0), WeightCap(2.0)), "WeightCap of the frobenius norm"),
        ((NormalizeFeatures(until=3), NormalizeFeatures(start=3)), "NormalizeFeatures"),
        ((Unplug(3), Unplug(5)), "Unplug"),
    ],
)
def test_an_arm_with_two_of_what_can_be_there_once_is_refused_when_it_is_written(twice, what):
    with pytest.raises(ValueError, match=f"expected at most one {what} in an arm, got (several|2); keep the one"):
        Arm(name="twice", interventions=twice)
    Arm(name="both norms", interventions=(WeightCap(1.0), WeightCap(2.0, norm="spectral")))


def test_some_samples_of_sorted_data_are_of_all_classes():
    labels = torch.arange(10).repeat_interleave(100)
    task = TensorTask(inputs=torch.randn(1000, 3), labels=labels, test_inputs=torch.randn(1000, 3), test_labels=labels)
    replica = Replica("baseline", 0, 0, 0, task.split(0), (), AdamW())
    batches = Batches([replica], None, torch.device("cpu"), torch.float32)
    for side in ("train", "test"):
        inputs, some = batches.all(side, slice(0, 1), 100)
        assert len(some[0].unique()) == 10
        assert inputs.shape == (1, 100, 3)
    assert torch.equal(batches.all("train", slice(0, 1), 1000)[1][0], labels)


def test_a_relative_clamp_rests_until_its_moment_and_then_holds_a_multiple():
    engine = Engine(plan_of({"later": (Clamp("cdnv", at_least=2.0, relative_to=10),)}))
    assert engine.levers.empty_references()["0.0"].isnan().all()
    with torch.no_grad():
        baseline, later = trained(plan_of({"baseline": ()}), 10), trained(engine.plan, 10)
        torch.testing.assert_close(baseline.state.flat, later.state.flat)
        value = later.measure(10)["train/cdnv"]
        torch.testing.assert_close(later.state.references["0.0"], value)


def test_a_level_relative_to_a_step_is_taken_at_that_step_and_at_memorisation_when_it_is_noticed(tmp_path):
    relative = {"step": 17, "memorisation": "memorisation"}
    arms = {name: (Clamp("cdnv", at_least=0.1, relative_to=moment),) for name, moment in relative.items()}
    plan = plan_of(arms, steps=60)
    evaluation = Evaluation(measures=("cdnv",), steps=(0, 50), refine=4)
    plan = replace(plan, evaluation=evaluation, onset=OnsetRule(train_threshold=0.4))
    folder = RunFolder.create(tmp_path / "run", {"name": "test"})
    run = Run(plan, folder)
    run.execute()
    frame = folder.trajectory()
    for name in arms:
        for seed in range(2):
            rows = frame.filter((frame["arm"] == name) & (frame["seed"] == seed))
            there = rows["step"] == 17 if name == "step" else rows["train/accuracy"] >= 0.4
            first = rows.filter(there).sort("step").head(1)
            assert len(first) == 1
            assert first["step"].item() < 50
            row = [*arms].index(name) * 2 + seed
            taken = run._engine.state.references["0.0"][row].item()
            assert taken == pytest.approx(first["train/cdnv"].item(), rel=1e-9), (name, seed)


def test_an_intervention_that_rests_leaves_its_replica_alone_whatever_it_would_be():
    one_pair = torch.tensor([[0, 1], [0, 2]])
    split = replace(SPLITS[0], train_inputs=one_pair, train_labels=torch.tensor([1, 2]))
    later = Suppress("cdnv", strength=1e-3, start=40)
    arms = {"baseline": (), "resting": (later,), "lost": (replace(later, start=0),), "short": ()}
    plan = plan_of(arms)
    plan = replace(plan, replicas=tuple(replace(r, split=split) for r in plan.replicas))
    state = trained(plan, 10).state
    assert state.alive.tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert torch.equal(state.flat[2:4], state.flat[:2])


@pytest.mark.parametrize("scale", [1e-8, 1e-9, 1e-10])
def test_normalising_in_one_arm_leaves_short_features_of_another_alone(scale):
    def state_of(other):
        engine = Engine(plan_of({"baseline": (), "other": other}, precision="float32"))
        engine.layout.view(engine.state.flat)["first.weight"][:2].mul_(scale)
        with torch.no_grad():
            engine.step(0)
        return engine.state

    plain, beside = state_of(()), state_of((NormalizeFeatures(),))
    assert beside.alive[:2].all()
    assert torch.equal(beside.flat[:2], plain.flat[:2])


def test_a_replica_that_diverges_is_frozen_and_the_others_go_on_untouched():
    calm = trained(plan_of({"baseline": (), "other": ARMS["promote"]}, precision="float32"))
    plan = plan_of({"baseline": (), "wild": (), "other": ARMS["promote"]}, precision="float32")
    hot = tuple(replace(r, optimizer=AdamW(lr=1e20)) if r.arm == "wild" else r for r in plan.replicas)
    wild = trained(replace(plan, replicas=hot))
    assert wild.state.alive.tolist() == [True, True, False, False, True, True]
    assert (wild.state.last_good[2:4] < 50).all()
    assert (wild.state.last_good[:2] == 49).all()
    assert wild.state.flat.isfinite().all()
    torch.testing.assert_close(wild.state.flat[:2], calm.state.flat[:2], rtol=1e-5, atol=1e-6)


def test_a_frozen_replica_stays_frozen_whatever_its_next_batch_is():
    engine = Engine(plan_of({"baseline": ()}, batch_size=7))
    engine.state.alive[1] = False
    before = engine.state.flat.clone()
    engine.step(0)
    assert engine.state.alive.tolist() == [True, False]
    assert torch.equal(engine.state.flat[1], before[1])
    assert not torch.equal(engine.state.flat[0], before[0])


def test_unplugging_ends_what_would_go_on_and_revives_nothing_that_has_ended():
    early, late, never = (Suppress("cdnv", strength=1.0, until=until) for until in (20, 50, None))
    found = ended((early, late, never, NormalizeFeatures(start=30), WeightCap(1.0), Rescale(2.0), Unplug(30)))
    assert [(i.kind, getattr(i, "until", None)) for i in found] == [
        ("weight_cap", None), ("rescale", None), ("suppress", 20), ("suppress", 30), ("suppress", 30)]


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_a_cap_that_starts_later_leaves_a_frozen_replica_alone(norm):
    def weights(start):
        plan = plan_of({"calm": (), "wild": (WeightCap(0.1, norm=norm, start=start),)}, precision="float32")
        hot = tuple(replace(r, optimizer=AdamW(lr=1e20)) if r.arm == "wild" else r for r in plan.replicas)
        state = trained(replace(plan, replicas=hot)).state
        assert state.alive.tolist() == [True, True, False, False]
        assert (state.last_good[2:] < 30).all()
        return state.flat

    assert torch.equal(weights(30), weights(1000))


def test_minibatches_of_an_epoch_cover_it_and_are_paired_over_arms():
    engine = Engine(plan_of({"a": (), "b": ARMS["promote"]}, batch_size=7))
    steps = engine.batches.steps_per_epoch
    seen = torch.cat([engine.batches.at(step, slice(0, 4))[0] for step in range(steps)], 1)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert len({tuple(pair) for pair in seen[0].tolist()}) == steps * 7
    later = torch.cat([engine.batches.at(step, slice(0, 4))[0] for step in range(steps, 2 * steps)], 1)
    assert not torch.equal(seen, later)


def test_bf16_products_train_about_as_float32_does():
    losses = {
        precision: trained(plan_of({"baseline": ()}, precision=precision)).measure(50)["train/loss"]
        for precision in ("float32", "bf16")
    }
    assert losses["bf16"].dtype == torch.float32
    torch.testing.assert_close(losses["bf16"], losses["float32"], rtol=0.3, atol=0.1)
    assert not torch.equal(losses["bf16"], losses["float32"])


def test_evaluation_grid_is_log_spaced_and_ends_at_the_last_step():
    grid = Evaluation(measures=(), points=40).grid(10_000)
    assert grid[0] == 0
    assert grid[-1] == 10_000
    assert grid == sorted(set(grid))
    late = [math.log(b / a) for a, b in zip(grid[-11:], grid[-10:], strict=False)]
    assert max(late) / min(late) < 1.05
    assert Evaluation(measures=(), steps=(3, 5, 99)).grid(10) == [0, 3, 5, 10]
    assert set(range(0, 100, 10)) <= set(Evaluation(measures=(), points=5, every=10).grid(100))


def test_mismatched_replicas_are_refused_with_what_to_do():
    other = ModularArithmetic(operation="x+y", p=7, train_fraction=0.5).split(0)
    replicas = (
        Replica("a", 0, 0, 10, SPLITS[0], (), AdamW()),
        Replica("b", 0, 0, 10, other, (), AdamW()),
    )
    good = plan_of({"baseline": ()})
    with pytest.raises(ValueError, match=r"splits of one size in a run.*one run each"):
        Plan(**{**vars(good), "replicas": replicas})
    larger = TensorTask(inputs=TASK.table()[0], labels=TASK.table()[1], train_fraction=0.6, vocabulary=9).split(10)
    with pytest.raises(ValueError, match=r"got 7 classes of .*vocabulary=7.* and 7 classes of .*vocabulary=9"):
        Plan(**{**vars(good), "replicas": (replicas[0], Replica("b", 0, 0, 10, larger, (), AdamW()))})
    single = replace(replicas[0].split, num_classes=1)
    with pytest.raises(ValueError, match="expected a task of two classes or more, got 1; is it the right label"):
        Plan(**{**vars(good), "replicas": (replace(replicas[0], split=single),)})
    with pytest.raises(ValueError, match="one kind of optimiser in a run"):
        Plan(**{**vars(good), "replicas": (replicas[0], Replica("b", 0, 0, 10, SPLITS[0], (), SGD()))})
    with pytest.raises(ValueError, match="expected 1 ≤ batch_size ≤ 29 training samples, got 30"):
        Plan(**{**vars(good), "batch_size": 30})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own doings
@pytest.mark.parametrize("model", [QuadraticMLP(width=16), Transformer(layers=2, heads=2, width=16)])
def test_a_compiled_network_trains_as_the_plain_one_does(model):
    arms = {"baseline": (), "clamp": ARMS["clamp"]}
    plain, compiled = (
        trained(plan_of(arms, model=model, batch_size=9, compile=compile), 20).state.flat for compile in (False, True)
    )
    torch.testing.assert_close(compiled, plain, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_what_is_compiled_is_the_training_step_and_no_study_in_a_process_is_left_out(monkeypatch):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    widths = range(3, 13)
    for width in widths:
        engine = Engine(plan_of({"a": ()}, model=QuadraticMLP(width=width), batch_size=9, compile=True))
        with torch.no_grad():
            for step in range(2):
                engine.measure(step)
                engine.step(step)
    assert len(seen) == len(widths)


def test_training_replica_by_replica_gives_the_same_as_all_at_once(monkeypatch):
    plan = plan_of()
    together = trained(plan, 25)
    monkeypatch.setattr("grokscape.training.engine._CACHE", 1)
    monkeypatch.setattr("grokscape.training.engine._WIDER", 3)
    apart = trained(plan, 25)
    assert len(apart._training_chunks) == len(plan.replicas) > len(apart._measuring_chunks) > 1
    torch.testing.assert_close(apart.state.flat, together.state.flat, rtol=1e-9, atol=1e-10)
    for key, reference in together.state.references.items():
        assert reference.isfinite().all(), key
