"""Whether a property suffices: runs that have it and do not generalise, and hands that bring generalisation forward."""

import polars as pl
import pytest

import synthetic
from grokscape.analysis.pipeline import findings_of
from grokscape.analysis.record import Record
from grokscape.analysis.sufficiency import counterexamples
from grokscape.analysis.targets import targets
from synthetic import BASELINE, HELD, RANDOM, ArmTruth, clamp, record_of

FLAT = "relative_flatness"


def test_random_labels_with_the_property_make_it_insufficient():
    found = {item.id: item for item in findings_of(record_of(
        HELD, ArmTruth("random", never=True, geometry=True, final_accuracy=1 / 31, **RANDOM)))}
    item = found["sufficiency/collapse"]
    assert item.verdict == "not sufficient"
    assert item.data["counterexamples"][0]["arm"] == "random"
    assert item.estimates["runs without generalisation"]["value"] == 1


@pytest.mark.parametrize(("accuracy", "factor", "apart", "counts"), [
    (0.8, 1.0, 0, True), (0.93, 1.0, 0, False),  # nearer to generalisation than the margin
    (0.8, 1.08, 0, True), (0.8, 1.4, 0, False),  # 5 % of the way may be missing
    (0.8, 1.0, 2, True), (0.8, 1.0, 3, False),  # as may a fifth of the ten runs
])
def test_which_runs_have_the_property_without_generalising(accuracy, factor, apart, counts):
    more = pl.when(pl.col("seed") < apart).then(3.0).otherwise(factor)
    record = record_of(HELD, ArmTruth("a", never=True, geometry=True, final_accuracy=accuracy), seeds=10, change={
        "train/cdnv": pl.col("train/cdnv") * pl.when(pl.col("arm") == "a").then(more).otherwise(1.0)})
    (target,) = targets(record, "block")
    assert [item["arm"] for item in counterexamples(record, target)] == ["a"] * counts


@pytest.mark.parametrize(("seeds", "generalise", "fell", "broken", "forgets", "counts"), [
    (10, 2, 0, 0, 0, True), (10, 3, 0, 0, 0, False), (5, 0, 0, 0, 0, True), (4, 0, 0, 0, 0, False),
    (10, 0, 3, 0, 0, False),  # they had generalised, whatever became of it
    (5, 0, 0, 1, 0, False), (5, 0, 0, 0, 1, False),  # training broke down, or nothing was memorised: not a case
    (5, 0, 0, 0, 1300, False), (5, 0, 0, 0, 1490, True)])  # nor if it was forgotten, but for a spike
def test_which_runs_count_among_those_that_have_the_property(seeds, generalise, fell, broken, forgets, counts):
    own, seed, step = pl.col("arm") == "a", pl.col("seed"), pl.col("step")
    peak = own & ((seed < generalise) & (step > 1000) | (seed < fell) & (step > 1000) & (step < 1200))
    made = synthetic.study([BASELINE, HELD, ArmTruth("a", never=True, geometry=True, final_accuracy=0.8)], seeds=seeds)
    gone = [{**one, "diverged_at": 1490 if one["arm"] == "a" and one["seed"] < broken else None}
            for one in made.status["replicas"]]
    record = synthetic.Study(made.frame.with_columns(
        pl.when(peak).then(1.0).otherwise("test/accuracy").alias("test/accuracy"),
        pl.when(own & (seed == 0) & (step >= forgets) & (forgets > 0)).then(0.5).otherwise("train/accuracy").alias(
            "train/accuracy")),
        made.columns, made.spec, {"replicas": gone}).record()
    (target,) = targets(record, "block")
    assert [item["arm"] for item in counterexamples(record, target)] == ["a"] * counts


def test_the_level_to_reach_is_the_baseline_s_as_it_generalised_not_what_it_came_to_later():
    later = (pl.col("arm") == "baseline") & (pl.col("step") > 1000)
    record = record_of(HELD, ArmTruth("a", never=True, geometry=True, final_accuracy=0.8), change={
        "train/cdnv": pl.when(later).then(0.01).otherwise(pl.col("train/cdnv"))})
    (target,) = targets(record, "block")
    assert [item["arm"] for item in counterexamples(record, target)] == ["a"]


def test_a_property_that_goes_a_short_way_counts_as_well():
    record = record_of(HELD, ArmTruth("a", never=True, geometry=True, final_accuracy=0.8), change={
        "train/cdnv": pl.col("train/cdnv") ** 0.3})  # from memorisation on by a factor of 1.8
    (target,) = targets(record, "block")
    assert [item["arm"] for item in counterexamples(record, target)] == ["a"]


def test_a_property_that_the_baseline_loses_as_it_generalises_has_no_counterexample():
    record = record_of(HELD, ArmTruth("a", never=True, final_accuracy=0.8), seeds=10, change={
        "train/cdnv": pl.when(pl.col("arm") == "a").then(0.01).otherwise(1 / pl.col("train/cdnv"))})
    (target,) = targets(record, "block")
    assert counterexamples(record, target) == []


def test_runs_that_were_not_followed_for_long_are_no_counterexample():
    """The property is there from memorisation on, and generalisation comes a little later than the baseline's."""
    push = ArmTruth("push", interventions=[{"kind": "promote", "measure": "relative_flatness"}], delay_factor=1.2)
    made = synthetic.study([BASELINE, push], steps=500)
    flat = pl.when((pl.col("arm") == "push") & (pl.col("step") > 60)).then(0.09).otherwise("train/relative_flatness")
    record = made.record(made.frame.with_columns(flat.alias("train/relative_flatness")))
    assert record.results.filter(arm="push")["generalised"].count() < 2
    found = {item.id: item for item in findings_of(record)}["sufficiency/flatness"]
    assert found.verdict == "inconclusive"


def test_a_verdict_says_how_many_runs_it_rests_on():
    own = pl.col("arm") == "a"
    away = pl.when(own & (pl.col("seed") < 2)).then(3.0).otherwise(1.0)
    record = record_of(HELD, ArmTruth("a", never=True, geometry=True, final_accuracy=0.8), seeds=10, change={
        "train/cdnv": pl.col("train/cdnv") * away})
    found = {item.id: item for item in findings_of(record)}["sufficiency/collapse"]
    assert (found.verdict, found.n) == ("not sufficient", 8)  # two of the ten do not have the property
    assert "8 of 8 runs reached" in found.statement
    push = {"kind": "promote", "measure": "relative_flatness", "strength": 1e-3}
    for factor, words in ((0.3, "brought generalisation forward"), (1.0, "in none of the 8 seeds")):
        made = synthetic.study([BASELINE, ArmTruth("up", interventions=[push], delay_factor=factor)], seeds=10)
        few = made.record(made.frame.filter((pl.col("arm") == "baseline") | (pl.col("seed") < 8)))
        found = {item.id: item for item in findings_of(few)}["sufficiency/flatness"]
        assert words in found.statement
        assert (found.verdict, found.n) == ("inconclusive", 8)


def test_open_ended_suppression_and_promotion_are_checked_against_the_baseline():
    suppress = ArmTruth("down", interventions=[{"kind": "suppress", "measure": "cdnv", "strength": 1e-3}],
                        floor={"cdnv": 1.5})
    promote = ArmTruth("up", interventions=[{"kind": "promote", "measure": FLAT, "strength": 1e-3}], delay_factor=0.3)
    found = {item.id: item for item in findings_of(record_of(suppress, promote, seeds=12))}
    assert found["manipulation/down"].verdict == "held"
    assert found["manipulation/up"].verdict == "held"
    assert found["necessity/collapse"].verdict == "not necessary"
    assert found["sufficiency/flatness"].verdict == "inconclusive"  # one hand only
    assert "brought generalisation forward" in found["sufficiency/flatness"].statement


@pytest.mark.parametrize(("shared", "expected"), [
    ({}, "consistent with sufficient"), ({"optimizer": {"lr": 5e-3}}, "inconclusive")])
def test_two_hands_that_hasten_are_consistent_with_sufficient(shared, expected):
    first = ArmTruth("one", interventions=[clamp(FLAT, at_most=3.0)], delay_factor=0.2, extra=shared)
    push = {"kind": "promote", "measure": "relative_flatness_bound", "strength": 1e-3}
    second = ArmTruth("two", interventions=[push], delay_factor=0.2, extra=shared)
    record = record_of(first, second, seeds=12)
    frame = record.panel.frame
    held = (pl.col("arm") == "one") & (pl.col("step") > 30)
    low = pl.when(held).then(2.0).otherwise(pl.col("train/relative_flatness"))
    fewer = frame.filter((pl.col("arm") != "two") | (pl.col("seed") < 10))
    found = {item.id: item for item in findings_of(
        Record.of(fewer.with_columns(low.alias("train/relative_flatness")), record.spec, record.columns))}
    item = found["sufficiency/flatness"]
    assert item.verdict == expected
    assert shared or item.n == 10  # of the hand that has fewer
    assert shared or item.p == max(one["p_hastened"] for one in item.data["promoting"])
