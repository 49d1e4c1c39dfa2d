"""What a run writes down: columns, extra rows while an accuracy moves, early stopping, frozen replicas."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from grokscape.interventions import Promote
from grokscape.measures import MEASURES
from grokscape.models import QuadraticMLP
from grokscape.store import RunFolder
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Engine, Evaluation, OnsetRule, Plan, Replica, Run, column_table
from grokscape.training.columns import measures_of

TASK = ModularArithmetic(operation="x+y", p=7, train_fraction=0.8)
SPLITS = [TASK.split(seed) for seed in range(2)]


def plan_of(evaluation, *, steps=120, arms=None, **changes):
    arms = arms or {"baseline": (), "promoted": (Promote("relative_flatness", strength=1e-2),)}
    replicas = tuple(
        Replica(name, seed, seed, seed, SPLITS[seed], interventions, AdamW(lr=1e-2))
        for name, interventions in arms.items()
        for seed in range(2)
    )
    network = QuadraticMLP(width=32).build(SPLITS[0].input_spec, SPLITS[0].num_classes)
    return Plan(replicas, network, steps, None, evaluation, OnsetRule(), **changes)


def trajectory_of(plan, path):
    folder = RunFolder.create(path, {"name": "test"})
    Run(plan, folder).execute()
    return folder, folder.trajectory()


def test_every_split_has_its_columns_and_their_descriptions(tmp_path):
    names = ("relative_flatness", "cdnv", "nc4", "weight_norm", "head_norm")
    folder, frame = trajectory_of(plan_of(Evaluation(measures=names, points=8)), tmp_path / "run")
    columns = folder.columns()
    assert columns == column_table(names)
    assert set(frame.columns) == {"replica", "arm", "seed", "init_seed", "split_seed", "step", *columns}
    assert {"train/accuracy", "test/loss", "cross/cdnv", "params/weight_norm", "params/head_norm"} <= set(columns)
    assert not {"cross/relative_flatness", "train/weight_norm", "params/cdnv"} & set(columns)
    assert columns["train/cdnv"]["property"] == "collapse"
    assert columns["train/cdnv"]["source"] == MEASURES["cdnv"].source
    assert frame.group_by("replica").len()["len"].to_list() == [len(Evaluation(measures=(), points=8).grid(120))] * 4


def test_unknown_measures_are_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"expected names of measures, got flatnes; there are .*relative_flatness"):
        measures_of(("flatnes",), "train")


def test_moving_replicas_get_extra_rows_and_resting_ones_do_not(tmp_path):
    coarse = Evaluation(measures=("cdnv",), steps=tuple(range(0, 121, 20)))
    _, before = trajectory_of(plan_of(coarse), tmp_path / "coarse")
    _, after = trajectory_of(plan_of(coarse.model_copy(update={"refine": 4})), tmp_path / "fine")
    shared = after.filter(after["step"] % 20 == 0)
    assert shared.equals(before)
    waits = set()  # whether accuracy moved from one step of the grid to the next decides until the one after that
    for _, rows in after.sort("step").group_by("replica"):
        steps, train, test = (rows[name].to_numpy() for name in ("step", "train/accuracy", "test/accuracy"))
        before = np.zeros(2)
        for k in np.flatnonzero(steps % 20 == 0)[:-1]:
            now = np.array([train[k], test[k]])
            wait = 4 if (abs(now - before) >= 0.03).any() else 20
            assert steps[k: k + 1 + 20 // wait].tolist() == [*range(steps[k], steps[k] + 21, wait)]
            before = now
            waits.add(wait)
    assert waits == {4, 20}


def test_extra_rows_of_one_replica_depend_on_no_other(tmp_path):
    evaluation = Evaluation(measures=("cdnv",), steps=tuple(range(0, 121, 20)), refine=4)
    _, one = trajectory_of(plan_of(evaluation), tmp_path / "one")
    arms = {"baseline": (), "promoted": (Promote("relative_flatness", strength=0.3),)}
    _, other = trajectory_of(plan_of(evaluation, arms=arms), tmp_path / "other")
    assert one.filter(one["arm"] == "baseline").equals(other.filter(other["arm"] == "baseline"))
    assert not one.filter(one["arm"] == "promoted").equals(other.filter(other["arm"] == "promoted"))


def test_early_stop_ends_when_everybody_has_generalised_and_held_it(tmp_path):
    evaluation = Evaluation(measures=("cdnv",), points=60)
    full = replace(plan_of(evaluation, steps=3000), onset=OnsetRule(train_threshold=0.9, test_threshold=0.2))
    folder, frame = trajectory_of(replace(full, early_stop=True), tmp_path / "run")
    last = frame["step"].max()
    assert last < 3000
    assert folder.status["state"] == "finished"
    final = frame.filter(frame["step"] == last)
    assert (final["test/accuracy"] >= 0.2).all()
    assert (final["train/accuracy"] >= 0.9).all()


@pytest.mark.parametrize(
    ("seen", "settled"),
    [
        ([(0.5, 0.9), (0.5, 0.9), (0.5, 0.9), (0.95, 0.9)], [False, False, False, True]),  # never memorised, then so
        ([(0.95, 0.9), (0.95, 0.4), (0.95, 0.9), (0.95, 0.9)], [False, False, False, True]),  # fell back in between
        ([(0.95, 0.4), (0.8, 0.9), (0.8, 0.9)], [False, False, True]),  # memorised once
    ],
)
def test_generalisation_is_memorised_reached_and_held(seen, settled):
    onset = OnsetRule(train_threshold=0.9, test_threshold=0.5, hold=2)
    engine = Engine(replace(plan_of(Evaluation(measures=("cdnv",))), onset=onset))
    rows, found = torch.arange(len(engine.state.alive)), []
    for train, test in seen:
        values = {"train/accuracy": train, "test/accuracy": test, "train/loss": 0.1}
        engine._note({name: torch.full(rows.shape, value) for name, value in values.items()}, rows)
        found.append(engine.settled)
    assert found == settled


def test_early_stop_comes_with_a_measurement(tmp_path):
    plan = plan_of(Evaluation(measures=("cdnv",), steps=(50,)), steps=100, arms={"wild": ()})
    hot = tuple(replace(r, optimizer=AdamW(lr=1e20)) for r in plan.replicas)
    folder, _ = trajectory_of(replace(plan, replicas=hot, early_stop=True), tmp_path / "run")
    assert all(entry["diverged_at"] < 20 for entry in folder.status["replicas"])
    assert folder.status["step"] == 50


def test_a_frozen_replica_has_no_further_rows_and_its_last_good_step_is_reported(tmp_path):
    plan = plan_of(Evaluation(measures=("cdnv",), points=20), arms={"baseline": (), "wild": ()})
    hot = tuple(replace(r, optimizer=AdamW(lr=1e20)) if r.arm == "wild" else r for r in plan.replicas)
    folder, frame = trajectory_of(replace(plan, replicas=hot), tmp_path / "run")
    diverged = {entry["replica"]: entry["diverged_at"] for entry in folder.status["replicas"]}
    assert diverged[0] is None
    assert diverged[2] < 20
    last = {replica[0]: rows["step"].max() for replica, rows in frame.group_by("replica")}
    assert last[0] == 120
    assert last[2] <= diverged[2]
    assert not any(math.isnan(value) for value in frame["train/loss"])
