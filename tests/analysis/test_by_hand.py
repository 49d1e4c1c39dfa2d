"""Studies of every ill-behaved kind, through a run folder: the analysis says what the rules say, run by run."""

import math

import numpy as np
import polars as pl
import pytest

import by_hand
from grokscape.analysis.effects import effects
from grokscape.analysis.manipulation import check
from grokscape.analysis.necessity import levels, necessity
from grokscape.analysis.record import Record
from grokscape.analysis.targets import targets
from grokscape.store import RunFolder
from synthetic import COLUMNS, clamp

LEVELS = {"relative_flatness": (3.0, 60.0), "relative_flatness_bound": (100.0, 2500.0), "cdnv": (0.5, 2.0),
          "rnc1": (0.3, 0.6)}


def plan(draw, seeds):
    """Arms that hold, push and promote, alone and by two hands, for all of the time or a part of it."""
    arms = [{"name": "baseline", "role": "baseline", "interventions": []}]
    for place in range(draw.integers(2, 6)):
        measure = str(draw.choice(list(LEVELS)))
        level, until = float(draw.choice(LEVELS[measure])), [None, None, 500][draw.integers(3)]
        one = [clamp(measure, level, until=until, start=int(draw.choice([0, 100]))), clamp(measure, at_most=level),
               clamp(measure, 0.3, relative_to=["memorisation", 60][draw.integers(2)]),
               {"kind": "suppress", "measure": measure, "until": until}, {"kind": "promote", "measure": measure},
               clamp("test/ildr", at_most=2.0)][draw.integers(6)]
        more = [[], [], [], [{"kind": "unplug", "step": 700}], [clamp("cdnv", 2.0)]][draw.integers(5)]
        arms.append({"name": f"a{place}", "role": "manipulation", "interventions": [one, *more],
                     "optimizer": [{}, {}, {"lr": 0.1}][draw.integers(3)]})
    arms.append({"name": "loss", "role": "control", "control": "matched-level", "interventions": [clamp("loss", 0.02)]})
    arms.append({"name": "none", "role": "control", "control": "random-labels", "testbed": {"random_labels": True},
                 "interventions": []})
    return {"name": "drawn", "testbed": {"p": 31}, "arms": arms, "seeds": seeds, "steps": 1200,
            "onset": {"hold": int(draw.choice([1, 3]))}, "verdict": {"minimum_seeds": int(draw.choice([3, 5]))}}


def run(draw, arm, kind):
    """One run: columns by step. It may memorise late or never, miss, stop early, spike, forget or diverge."""
    step = np.arange(0, 1201, kind["every"])
    step = step if draw.random() < 0.7 else np.unique(np.r_[0, draw.integers(1, 1201, 40)])
    step = step[step <= draw.choice([1200, 1200, 1200, 800])]
    slow = draw.choice([1, 6, np.inf], p=[0.9, 0.1 - kind["hard"], kind["hard"]])
    memorised = slow * 40 * np.exp(draw.normal(0, 0.2))
    late = kind["delay"] * kind["factor"] * np.exp(draw.normal(0, kind["spread"]))
    never = arm["name"] == "none" or draw.random() < kind["never"]
    train, test = step >= memorised, (step >= min(memorised, 100) + late) & (not never)
    floor = {one["measure"]: one["at_least"] * (100 if one["relative_to"] else 1) for one in arm["interventions"]
             if one["kind"] == "clamp" and one.get("at_least") and draw.random() < 0.9}
    floor |= {one["measure"]: LEVELS[one["measure"]][1] for one in arm["interventions"] if one["kind"] == "suppress"}
    shapes = {"relative_flatness": 0.1 + 60 * train * ~test, "relative_flatness_bound": 5 + 3000 * train * ~test,
              "cdnv": 0.2 + 3 * np.exp(-step / 100), "rnc1": 0.1 + 0.8 * np.exp(-step / 60), "ildr": 1.0 + 5 * test,
              "loss": np.where(train, 2e-3, 2.0) * np.where(test, 0.01, 1)}
    columns = {"train/accuracy": np.where(train, 1.0, 0.3), "test/accuracy": np.where(test, 1.0, 0.03 + step / 2000)}
    for name, values in shapes.items():
        values = np.maximum(values, floor.get(name, 0)) * np.exp(draw.normal(0, 0.05, len(step)))
        gaps = draw.random(len(step)) < (0 if name == "loss" else draw.choice([0, 0, 0.3]))
        columns["test/ildr" if name == "ildr" else f"train/{name}"] = np.where(gaps, np.nan, values)
    if draw.random() < 0.3:
        spike = draw.random(len(step)) < 0.05
        columns = {name: np.where(spike, 0.5 * values, values) for name, values in columns.items()}
    if draw.random() < kind["forget"]:
        columns["train/accuracy"][(step > 300) & (step < draw.choice([800, 2000]))] = 0.5
    gone = int(draw.integers(50, 1200)) if draw.random() < kind["diverge"] else None
    kept = step <= (1200 if gone is None else gone)
    return {"step": step[kept]} | {name: values[kept] for name, values in columns.items()}, gone


def study(path, number):
    """A run folder with a drawn study."""
    draw = np.random.default_rng(number)
    seeds = int(draw.integers(5, 10))
    spec, frames, replicas = plan(draw, seeds), [], []
    common = {"delay": draw.choice([0.0, 150.0, 450.0]), "spread": draw.choice([0.0, 0.2, 0.5]),
              "every": int(draw.choice([10, 25, 100]))}
    for arm in spec["arms"]:
        kind = common | {"factor": draw.choice([1.0, 1.0, 1.4, 3.0, 0.3]), "never": draw.choice([0, 0, 0.2, 1]),
                         "hard": draw.choice([0, 0, 0.1]), "forget": draw.choice([0, 0, 0.2]),
                         "diverge": draw.choice([0, 0, 0.1])}
        for seed in (one for one in range(seeds) if draw.random() < 0.95):
            columns, gone = run(draw, arm, kind)
            who = {"replica": len(replicas), "arm": arm["name"], "seed": seed, "init_seed": seed, "split_seed": seed}
            frames.append(pl.DataFrame(who | columns))
            replicas.append(who | {"diverged_at": gone})
    frame, folder = pl.concat(frames).sort("step"), RunFolder.create(path, spec)
    for rows in (frame.filter(pl.col("step") < 600), frame.filter(pl.col("step") >= 600)):
        folder.append(rows.to_dict(as_series=False), {name: COLUMNS[name] for name in frame.columns if "/" in name})
    folder.write_status(state="finished", step=1200, replicas=replicas)
    return folder


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_every_number_and_verdict_is_what_the_rules_give_run_by_run(tmp_path, first):
    for number in range(first, first + 4):
        folder = study(tmp_path / str(number), number)
        record, plain = Record.read(folder), by_hand.read(folder.path)
        found, expected = effects(record), plain.effects()
        assert [item.arm.name for item in found] == list(expected)
        for item in found:
            name, result = f"study {number}, {item.arm.name}", check(record, item.arm)
            state, held, valid = plain.check(item.arm.name)
            assert (result.state, result.valid) == (state, valid), name
            assert result.held == pytest.approx(held, nan_ok=True), name
            numbers = expected[item.arm.name]
            assert item.call == numbers["call"], name
            for key in ("p_harmed", "p_intact", "p_hastened"):
                assert getattr(item, key) == pytest.approx(numbers[key], rel=1e-6, abs=1e-12), (name, key)
            assert (math.nan if item.ratio["value"] is None else item.ratio["value"]) == pytest.approx(
                numbers["ratio"], nan_ok=True), name
        for target in targets(record, "block"):
            shown = [(level.effect.arm.name, level.blocked) for level in levels(record, target, found)]
            by_rule = plain.levels(target.column, target.property_name, expected)
            assert shown == [(one["arm"], pytest.approx(one["shift"])) for one in by_rule], number
            verdict = necessity(record, target, found, [])[0].verdict
            assert verdict == plain.verdict(target.column, target.property_name, expected), (number, target)
