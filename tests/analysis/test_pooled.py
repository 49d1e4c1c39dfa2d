"""Pooling: more seeds of one study are joined, several testbeds are summarised with their differences."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

import synthetic
from grokscape.analysis import FrameError, analyze
from grokscape.analysis.estimation import estimate, mean_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.pooled import _error, joined, pooled, random_effects
from grokscape.analysis.record import Record


def folder_of(tmp_path, name, seed, **options):
    made = synthetic.study(seed=seed, **options)
    made.spec["name"] = name
    made.spec["testbed"] = {**made.spec["testbed"], "operation": name}
    return synthetic.write(tmp_path / name, made)


def test_random_effects_are_those_of_statsmodels():
    effects, errors = np.array([0.1, 0.5, 0.9, 0.4]), np.array([0.1, 0.2, 0.15, 0.1])
    found = random_effects(effects, errors)
    reference = combine_effects(effects, errors**2, method_re="iterated")
    assert found["value"] == pytest.approx(reference.mean_effect_re)
    assert found["tau"] ** 2 == pytest.approx(reference.tau2)
    assert found["high"] - found["value"] == pytest.approx(3.182446 * reference.sd_eff_w_re_hksj)
    weights = errors**-2
    spread = (weights * (effects - np.average(effects, weights=weights)) ** 2).sum()
    assert found["i2"] == pytest.approx(1 - 3 / spread)
    assert random_effects([0.4] * 4, errors)["i2"] == 0


def test_random_effects_interval_covers_at_its_rate_or_above():
    generator = np.random.default_rng(0)
    cover = 0
    for _ in range(1000):
        errors = generator.uniform(0.1, 0.3, 5)
        found = random_effects(generator.normal(0.4, np.sqrt(errors**2 + 0.2**2)), errors)
        cover += found["low"] <= 0.4 <= found["high"]
    assert cover / 1000 >= 0.92


@pytest.mark.parametrize(("effects", "errors", "value"), [
    ([], [], None), ([0.3], [0.1], 0.3), ([0.3, np.nan], [0.1, 0.1], 0.3), ([0.2, 0.4], [0.0, 0.0], 0.3)])
def test_too_few_testbeds_give_no_interval(effects, errors, value):
    found = random_effects(effects, errors)
    assert found["low"] is None
    assert found["value"] == (None if value is None else pytest.approx(value))


def test_the_error_of_an_estimate_is_read_back_from_its_interval():
    values, alpha = np.array([1.0, 2.0, 2.5, 4.0, 4.5, 7.0]), 0.1
    error = values.std(ddof=1) / np.sqrt(6)
    item = mean_interval(values, 1 - alpha)
    assert _error(item, 6, alpha, log=False) == pytest.approx((values.mean(), error))
    factor = estimate(*(np.exp(item[key]) for key in ("value", "low", "high")))
    assert _error(factor, 6, alpha, log=True) == pytest.approx((values.mean(), error))
    assert _error(estimate(2.0), 6, alpha, log=True) == (np.log(2.0), 0.0)  # seeds that are all alike
    for nothing, n in ((estimate(2.0), 1), (estimate(None), 6), (estimate(0.0), 6), (estimate(2.0, 0.0, 3.0), 6)):
        assert np.isnan(_error(nothing, n, alpha, log=True)).all()


def test_one_study_in_two_runs_becomes_one_with_all_seeds():
    first, second = synthetic.study(seeds=4, seed=1), synthetic.study(seeds=4, seed=2)
    apart = second.frame.with_columns(pl.col("seed") + 4)
    records = [first.record(), second.record(apart)]
    (record,) = joined(records)
    assert record.panel.rows("baseline").shape == (8,)
    assert sorted(record.panel.seeds[record.panel.rows("baseline")]) == list(range(8))
    assert record.results["generalised"].count() == sum(one.results["generalised"].count() for one in records)


def test_runs_with_another_network_optimiser_or_batch_are_not_joined_nor_are_logs_without_a_plan():
    for name, other in (("model", {"kind": "mlp"}), ("optimizer", {"kind": "sgd"}), ("testbed", {}), ("batch_size", 8)):
        first, second = synthetic.study([synthetic.BASELINE], seeds=2), synthetic.study([synthetic.BASELINE], seeds=2)
        second.spec[name] = other
        assert len(joined([first.record(), second.record()])) == 2, name
    assert len(joined([Record.of(first.frame), Record.of(first.frame)])) == 2


def test_arms_and_breakdowns_of_either_run_are_kept():
    arms = [synthetic.ArmTruth(name, diverge=[0]) for name in ("a", "b")]
    first, second = (synthetic.study([synthetic.BASELINE, arm], seeds=2) for arm in arms)
    frames = [made.frame.filter(pl.col("train/accuracy").is_not_nan()) for made in (first, second)]
    (record,) = joined([first.record(frames[0]), second.record(frames[1].with_columns(pl.col("seed") + 2))])
    assert [arm.title for arm in record.arms] == ["Baseline", "A", "B"]
    assert record.results.filter("diverged").select("arm", "seed").rows() == [("a", 0), ("b", 2)]


@pytest.mark.parametrize(("verdicts", "expected"), [
    (("not necessary", "not necessary", "inconclusive"), "not necessary"),
    (("not necessary", "inconclusive"), "inconclusive"),  # one testbed alone is no agreement
    (("inconclusive", "inconclusive"), "inconclusive"), (("not necessary", "consistent with necessary"), "mixed")])
def test_the_pooled_verdict_is_the_one_that_all_clear_verdicts_share(verdicts, expected):
    record = synthetic.study([synthetic.BASELINE], seeds=2).record()
    subject = {"property": "collapse", "measure": "cdnv"}
    doses = {f"accuracy difference, {name}": estimate(value, value - 0.1, value + 0.1)
             for name, value in (("weak", 0.2), ("strong", -0.3))}
    (found,) = pooled([(record, [Finding("necessity/collapse", "necessity", subject, "", verdict, doses, 8)])
                       for verdict in verdicts])
    assert found.verdict == expected
    assert found.estimates["accuracy difference"]["value"] == pytest.approx(-0.3)  # of the strongest dose


def test_one_testbed_without_spread_and_testbeds_all_alike_leave_an_interval():
    errors = [0.1, 0.4, 0.0]
    found = random_effects([0.3, 0.3, 0.3], errors)  # no narrower than the testbeds' own errors allow
    least = 1 / np.sqrt(sum(1 / error**2 for error in (0.1, 0.4, 0.1)))
    assert found["high"] - found["value"] == pytest.approx(stats.t.ppf(0.975, 2) * least)


def test_the_same_seed_twice_is_refused():
    made = synthetic.study(seeds=3)
    record = made.record()
    with pytest.raises(FrameError, match="seed 0 of arm 'baseline' is in two of the runs"):
        joined([record, record])


@pytest.mark.parametrize(("name", "other"), [("verdict", {"alpha": 0.01}), ("onset", {"hold": 2}), ("steps", 3000)])
def test_one_study_under_other_rules_or_for_another_length_is_refused(name, other):
    first, second = synthetic.study(seeds=3), synthetic.study(seeds=3)
    second.spec[name] = other
    apart = second.frame.with_columns(pl.col("seed") + 3)
    with pytest.raises(FrameError, match=f"differ in {name}"):
        joined([first.record(), second.record(apart)])


@pytest.mark.parametrize(("change", "what"), [
    ({"interventions": [synthetic.clamp("cdnv", 1.5)]}, "interventions"), ({"optimizer": {"lr": 1.0}}, "optimizer"),
    ({"role": "control", "control": "matched-level"}, "role, control")])
def test_one_name_for_two_arms_is_refused_and_another_title_is_not(change, what):
    arm = synthetic.ArmTruth("a", interventions=[synthetic.clamp("cdnv", 1.2)])
    first, second = (synthetic.study([synthetic.BASELINE, arm], seeds=3) for _ in range(2))
    second.spec["arms"][1] |= {"title": "Another", "optimizer": {}}
    records = [first.record(), second.record(second.frame.with_columns(pl.col("seed") + 3))]
    assert len(joined(records)[0].panel.rows("a")) == 6
    second.spec["arms"][1] |= change
    with pytest.raises(FrameError, match=rf"arm 'a' of synthetic differs from that of synthetic in {what}, so"):
        joined(records)


def test_several_testbeds_are_summarised_and_written(tmp_path):
    folders = [folder_of(tmp_path, name, seed) for seed, name in enumerate(("x+y", "x-y", "x*y"))]
    found = {item.id: item for item in analyze(folders, out=tmp_path / "pooled.json")}
    assert json.loads((tmp_path / "pooled.json").read_text())[0]["kind"] == "pooled"
    item = found["pooled/necessity/flatness"]
    assert item.verdict == "consistent with necessary"
    assert item.n == 3
    assert item.estimates["delay ratio"]["low"] > 1
    assert [row["study"] for row in item.data["testbeds"]] == ["x+y", "x-y", "x*y"]
    assert found["pooled/lead_lag/train/cdnv"].verdict == "below one"
    assert list(found["pooled/hazard/train/cdnv"].estimates) == ["hazard ratio beside the loss"]
    assert "pooled/hazard" not in found
    told = {}
    for item in (one for one in found.values() if one.kind == "pooled" and one.subject["of"] in ("lead_lag", "hazard")):
        (factor,) = item.estimates.values()
        each = [row[name]["value"] for row in item.data["testbeds"] for name in item.estimates]
        each = np.exp(each) if item.subject["of"] == "lead_lag" else each
        assert min(each) <= factor["value"] <= max(each), item.id
        told[item.verdict] = item.id
        assert item.verdict == ("above one" if factor["low"] > 1 else "below one" if factor["high"] < 1 else
                                "no clear effect"), item.id
    assert told.keys() >= {"below one", "no clear effect"}


def test_testbeds_that_differ_are_mixed(tmp_path):
    harmless = [synthetic.ArmTruth(**{**arm.__dict__, "never": False, "final_accuracy": 1.0})
                if arm.name.endswith(("30", "2000")) else arm for arm in synthetic.QUICKSTART]
    studies = [folder_of(tmp_path, "a", 0), folder_of(tmp_path, "b", 1, arms=harmless)]
    found = {item.id: item for item in analyze(studies)}
    assert found["pooled/necessity/flatness"].verdict == "mixed"


def test_one_folder_in_a_list_is_that_folder(tmp_path):
    found = analyze([folder_of(tmp_path, "x+y", 0)])
    assert found[0].id == "onset/baseline"


def test_nothing_shared_gives_nothing():
    made = synthetic.study([synthetic.BASELINE])
    assert pooled([(made.record(), [])] * 2) == []
