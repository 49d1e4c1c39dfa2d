"""What foretells generalisation: what each run had last seen, a planted predictor, and noise."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import synthetic
from grokscape.analysis.hazard import hazard, hazard_table, last_seen, moments
from synthetic import BASELINE, ArmTruth


def record_of(made, **changes):
    return made.record(made.frame.with_columns(**changes))


def test_last_seen_is_the_last_measurement_strictly_before_the_moment():
    made = synthetic.study([BASELINE, ArmTruth("other")], seeds=5, every=20)
    gaps = pl.when(pl.col("step") % 60 == 0).then(pl.col("train/cdnv")).otherwise(None)
    record = record_of(made, **{"train/cdnv": gaps})
    at = moments(record)
    found = last_seen(record, "train/cdnv", at)
    for place in np.random.default_rng(0).integers(0, len(found), 50):
        replica = record.panel.replicas["replica"][int(at.sets.run[place])]
        rows = made.frame.filter((pl.col("replica") == replica) & (pl.col("step") < at.step[place])
                                 & (pl.col("step") % 60 == 0))
        assert found[place] == np.log(rows["train/cdnv"][-1])


def test_risk_sets_hold_the_runs_of_one_arm_that_have_not_generalised():
    record = record_of(synthetic.study([BASELINE, ArmTruth("never", never=True, final_accuracy=0.5)], seeds=6))
    at = moments(record)
    assert set(record.panel.arms[at.sets.run]) == {"baseline"}
    delays = record.moment("delay")
    ends = [*at.sets.starts[1:], len(at.sets.run)]
    times = np.unique(delays[record.panel.rows("baseline")])
    for time, start, end in zip(times, at.sets.starts, ends):
        assert (delays[at.sets.run[start:end]] >= time).all()
        assert (delays[at.sets.run[start:end]][at.sets.event[start:end]] == time).all()


def test_a_planted_predictor_ranks_first_and_noise_does_not_foretell():
    made = synthetic.study([BASELINE, ArmTruth("other")], seeds=16, extra_measures=3, seed=4)
    generalised = dict(made.record().results.select("replica", "generalised").iter_rows())
    generator = np.random.default_rng(0)
    hint = [generalised[replica] * np.exp(generator.normal(0, 0.05)) for replica in made.frame["replica"]]
    keys = ["replica", "arm", "seed", "step", "train/accuracy", "test/accuracy"]
    loss = (2.0 + pl.col("train/noise_0")).alias("train/loss")
    plain = made.frame.select(*keys, *(f"train/noise_{k}" for k in range(3))).with_columns(
        loss, pl.Series("train/hint", hint))
    rows = {row["column"]: row for row in hazard_table(made.record(plain))}
    assert next(iter(rows)) == "train/hint"
    assert rows["train/hint"]["concordance"] > 0.8
    assert rows["train/hint"]["ratio"]["high"] < 1  # a later hint, a smaller hazard
    assert rows["train/hint"]["p_adjusted"] < 0.05
    assert all(rows[f"train/noise_{k}"]["p_adjusted"] > 0.05 for k in range(3))
    assert all(0.2 < rows[f"train/noise_{k}"]["concordance"] < 0.8 for k in range(3))


def test_the_p_value_goes_with_the_interval_and_minds_the_number_of_measures():
    made = synthetic.study([BASELINE], seeds=10, every=50, extra_measures=5, seed=1)
    keys = ["replica", "arm", "seed", "step", "train/accuracy", "test/accuracy", "train/loss"]

    def table(count):
        frame = made.frame.select(*keys, *(f"train/noise_{k}" for k in range(count)))
        return {row["column"]: row for row in hazard_table(made.record(frame))}
    alone = table(1)["train/noise_0"]
    low, value, high = (np.log(alone["ratio"][key]) for key in ("low", "value", "high"))
    error = (high - low) / 2 / stats.t.ppf(0.975, 9)
    assert alone["p"] == pytest.approx(2 * stats.t.sf(abs(value) / error, 9))
    single = [hazard_table(made.record(made.frame.select(*keys, f"train/noise_{k}")))[0]["p"] for k in range(5)]
    assert min(row["p"] for row in table(5).values()) == pytest.approx(min(1.0, 5 * min(single)))


def test_noise_is_called_a_predictor_at_the_level_at_most():
    wrong = tests = 0
    for seed in range(25):
        made = synthetic.study([BASELINE, ArmTruth("other")], seeds=8, every=100, extra_measures=10, seed=seed)
        kept = [name for name in made.frame.columns if "/" not in name or "noise" in name or name in (
            "train/accuracy", "test/accuracy", "train/loss")]
        record = made.record(made.frame.select(kept))
        rows = hazard_table(record)
        wrong += any(row["p_adjusted"] <= 0.05 for row in rows)
        tests += 1
        assert len(rows) == 10
    assert wrong / tests <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tests)


def test_without_a_loss_each_measure_stands_alone():
    made = synthetic.study([BASELINE], seeds=8)
    last = pl.when(pl.col("step") == 1500).then("train/rnc1").alias("train/rnc1")  # when all is over
    found = {item.id: item for item in hazard(made.record(made.frame.drop("train/loss").with_columns(last)))}
    assert found["hazard"].statement.startswith("0 of ")
    assert "hazard/train/rnc1" not in found
    assert found["hazard/train/cdnv"].p == 1.0
    assert found["hazard/train/cdnv"].verdict == "inconclusive"
    assert found["hazard/train/cdnv"].estimates["concordance"]["value"] is not None


def test_a_perfect_ranking_of_few_seeds_is_no_finding():
    def rows(seeds):
        made = synthetic.study([BASELINE], seeds=seeds, every=50, seed=3)
        delay = dict(made.record().results.select("replica", "delay").iter_rows())
        hint = pl.col("replica").replace_strict(delay, return_dtype=pl.Float64)
        record = record_of(made, **{"train/cdnv": hint, "train/loss": 1 / hint + pl.col("seed") % 2})
        return {row["column"]: row for row in hazard_table(record)}["train/cdnv"]
    for few in (rows(4), rows(5)):
        assert few["p"] == few["p_adjusted"] == 1.0
        assert few["ratio"]["value"] is not None
        assert few["ratio"]["low"] is None
    assert rows(8)["ratio"]["high"] < 1


def test_what_a_measure_adds_to_the_loss_is_asked_of_the_moments_that_have_both():
    made = synthetic.study([BASELINE, ArmTruth("other")], seeds=8, every=50, extra_measures=2, seed=2)
    values = {"train/noise_0": pl.col("train/noise_0"), "train/loss": pl.col("train/noise_1")}
    late = {name: pl.when(pl.col("step") >= 500).then(each) for name, each in values.items()}
    both, one = (record_of(made, **{**values, **each}) for each in (late, {"train/noise_0": late["train/noise_0"]}))
    expected, found = ({row["column"]: row for row in hazard_table(record)}["train/noise_0"] for record in (both, one))
    assert expected["concordance_adjusted"] == found["concordance_adjusted"]
    assert expected["concordance_loss"] != found["concordance_loss"]
    assert found["gain"] == expected["gain"] == expected["concordance_adjusted"] - expected["concordance_loss"]
