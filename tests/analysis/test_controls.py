"""Controls that pass, fail or say nothing, and what their failure does to verdicts."""

import dataclasses

import polars as pl
import pytest

import synthetic
from grokscape.analysis.controls import controls, number_of_classes
from grokscape.analysis.pipeline import findings_of
from grokscape.analysis.summary import table_of
from grokscape.testbeds import Digits, ModularArithmetic, SparseParity, SymmetricGroup
from synthetic import BASELINE, HELD, RANDOM, ArmTruth, clamp, record_of

FLAT = "train/relative_flatness"


def control(record, name):
    return {item.id: item for item in controls(record)}[f"control/{name}"]


def test_random_labels_that_do_not_generalise_pass_and_show_what_happened_anyway():
    record = record_of(ArmTruth("random", never=True, geometry=True, final_accuracy=1 / 31, **RANDOM))
    found = control(record, "random")
    assert found.verdict == "passed"
    assert found.data["chance"] == 1 / 31
    assert found.data["levels"]["train/cdnv"]["control"] < 0.3  # collapsed without generalising


def test_chance_on_two_classes_is_a_half():
    record = record_of()
    record = dataclasses.replace(record, spec={**record.spec, "testbed": SparseParity().model_dump()})
    assert number_of_classes(record) == SparseParity().num_classes == 2


@pytest.mark.parametrize(("seeds", "accuracy", "expected"), [
    (8, 0.4, "failed"), (2, 0.4, "failed"), (8, 0.1, "passed"), (1, 0.4, "passed")])  # one run may have been lucky
@pytest.mark.parametrize(("testbed", "classes"), [
    (Digits(train_samples=100), 10), (SymmetricGroup(degree=3), 6), (ModularArithmetic(p=7), 7)])
def test_random_labels_that_are_all_alike_above_chance_fail_on_any_testbed(seeds, accuracy, expected, testbed, classes):
    own = pl.col("arm") == "random"
    record = record_of(ArmTruth("random", never=True, **RANDOM), seeds=seeds, change={
        "test/accuracy": pl.when(own).then(accuracy).otherwise("test/accuracy")})
    record = dataclasses.replace(record, spec={**record.spec, "testbed": testbed.model_dump()})
    assert number_of_classes(record) == testbed.num_classes == classes
    found = control(record, "random")
    assert (found.verdict, found.data["chance"]) == (expected, pytest.approx(1 / classes))
    assert f"final test accuracy {accuracy:.3f}, chance {1 / classes:.3f}" in found.statement


def test_random_labels_may_lie_above_chance_within_their_interval():
    one = pl.when(pl.col("seed") == 0).then(0.4).otherwise(0.05)  # mean 0.09, two standard errors of 0.04 below it
    record = record_of(ArmTruth("random", never=True, **RANDOM), change={
        "test/accuracy": pl.when(pl.col("arm") == "random").then(one).otherwise("test/accuracy")})
    assert control(record, "random").verdict == "passed"


def test_where_chance_is_not_known_random_labels_say_so():
    """Two classes, one with nine samples in ten: who has learnt nothing is right in four of five."""
    random = ArmTruth("random", never=True, final_accuracy=0.8, **RANDOM)
    for testbed, classes in (({"kind": "tensor", "classes": 2}, 2), ({"kind": "hub"}, None), (7, None),
                             ({"degree": "high", "classes": ["cat", "dog"]}, None)):  # the last two of somebody else
        record = dataclasses.replace(record_of(random), spec={**record_of(random).spec, "testbed": testbed})
        assert number_of_classes(record) == classes
        assert control(record, "random").verdict == "passed"
        assert "chance unknown" in control(record, "random").statement


def test_random_labels_above_chance_fail_and_void_every_verdict():
    leak = ArmTruth("random", never=True, geometry=True, final_accuracy=0.3, **RANDOM)
    record = record_of(HELD, leak, seeds=12)
    assert control(record, "random").verdict == "failed"
    found = {item.id: item for item in findings_of(record)}
    assert found["necessity/collapse"].verdict == "inconclusive"
    assert "a control failed (Random)" in found["necessity/collapse"].statement
    assert found["necessity/collapse"].data["failed_controls"] == ["Random"]
    assert found["sufficiency/collapse"].verdict == "inconclusive"
    assert "a control failed (Random); without it the reading would be: in “Random” 12 of 12 runs reached" in \
        found["sufficiency/collapse"].statement


def test_the_role_follows_from_random_labels_alone():
    record = record_of(ArmTruth("random", role="control", never=True, final_accuracy=0.03,
                                extra={"testbed": {"random_labels": True}}))
    assert control(record, "random").subject["control"] == "random-labels"


def test_rescaling_compares_the_first_evaluation_of_both():
    arm = ArmTruth("rescaled", role="control", control="rescaling", interventions=[{"kind": "rescale", "factor": 2.0}])
    same = (pl.col("step") == 0)
    equal = pl.when(same).then(0.1).otherwise(pl.col(FLAT))
    even = pl.when(same).then(0.03).otherwise(pl.col("test/accuracy"))
    good = record_of(arm, change={FLAT: equal, "test/accuracy": even})
    assert control(good, "rescaled").verdict == "passed"
    off = pl.when(same & (pl.col("arm") == "rescaled") & (pl.col("seed") == 3)).then(0.4).otherwise(equal)
    bad = record_of(arm, HELD, change={FLAT: off, "test/accuracy": even})
    assert control(bad, "rescaled").verdict == "failed"
    assert control(bad, "rescaled").estimates["largest change"]["value"] == pytest.approx(3)


def test_failed_rescaling_voids_flatness_only():
    arm = ArmTruth("rescaled", role="control", control="rescaling")
    flat = ArmTruth("flat", interventions=[clamp("relative_flatness", 80.0)], floor={"relative_flatness": 80.0})
    record = record_of(arm, flat, HELD, seeds=12, change={
        FLAT: pl.when((pl.col("step") == 0) & (pl.col("arm") == "rescaled")).then(9.0).otherwise(pl.col(FLAT))})
    found = {item.id: item for item in findings_of(record)}
    assert found["necessity/flatness"].verdict == "inconclusive"
    assert found["necessity/collapse"].verdict == "not necessary"


def test_no_delay_passes_when_the_delay_is_gone():
    quick = ArmTruth("quick", role="control", control="no-delay", delay_factor=0.1, extra={"optimizer": {"lr": 0.1}})
    slow = ArmTruth("slow", role="control", control="no-delay", extra={"optimizer": {"lr": 0.02}})
    record = record_of(quick, slow)
    assert control(record, "quick").verdict == "passed"
    assert control(record, "slow").verdict == "failed"
    assert "counting" not in control(record, "quick").statement
    assert "times the baseline's delay, counting at most 14" in control(record_of(
        dataclasses.replace(slow, never=True, final_accuracy=0.3)), "slow").statement
    assert {arm.name: arm.hand for arm in record.arms}["quick"] == "optimizer.lr"
    states = {row["arm"]: row["state"] for row in table_of(record).iter_rows(named=True)}
    assert states == {"baseline": "nothing to hold", "quick": "unmeasured", "slow": "unmeasured"}


@pytest.mark.parametrize(("kind", "accuracy", "memorised", "generalised", "expected"), [
    ("random-labels", 1 / 31, 6, 0, "passed"), ("random-labels", 1 / 31, 5, 0, "inconclusive"),
    ("random-labels", 1 / 31 + 0.04, 8, 0, "passed"), ("random-labels", 1 / 31 + 0.07, 8, 0, "failed"),
    ("random-labels", 1 / 31, 8, 1, "failed"), ("no-grokking", 0.5, 6, 0, "passed"),
    ("no-grokking", 0.5, 5, 0, "inconclusive"), ("no-grokking", 0.5, 8, 1, "failed")])
def test_runs_that_are_not_to_generalise_memorise_and_stay_at_chance(kind, accuracy, memorised, generalised, expected):
    own, seed = pl.col("arm") == "a", pl.col("seed")
    test = accuracy + 1e-3 * seed * (1.0 if accuracy < 1 / 31 + 0.05 else -1.0)
    record = record_of(ArmTruth("a", role="control", control=kind), change={
        "train/accuracy": pl.when(own & (seed >= memorised)).then(0.5).otherwise("train/accuracy"),
        "test/accuracy": pl.when(own & (seed < generalised) & (pl.col("step") < 200)).then(1.0).when(own).then(
            test).otherwise("test/accuracy")})
    assert control(record, "a").verdict == expected


@pytest.mark.parametrize(("factor", "lost", "seeds", "expected"), [
    (0.3, 0, 8, "passed"), (0.3, 3, 8, "inconclusive"), (0.7, 0, 8, "failed"), (0.3, 0, 1, "inconclusive")])
def test_a_delay_is_gone_if_it_is_shorter_by_more_than_the_margin_where_memorisation_is_intact(
        factor, lost, seeds, expected):
    quick = ArmTruth("a", role="control", control="no-delay", delay_factor=factor)
    forget = (pl.col("arm") == "a") & (pl.col("seed") < lost) & (pl.col("step") > 1000)
    record = record_of(quick, spread=0.05, seeds=seeds, change={
        "train/accuracy": pl.when(forget).then(0.5).otherwise("train/accuracy")})
    assert control(record, "a").verdict == expected


@pytest.mark.parametrize(("flat", "accuracy", "step", "expected"), [
    (1.04, 0.0, 0, "passed"), (1.06, 0.0, 0, "failed"), (1 / 1.06, 0.0, 0, "failed"), (1.0, 0.06, 0, "failed"),
    (1.06, 0.0, 10, "passed"),  # later on it may go its own way
    (1.04, 0.0, None, "passed")])  # the arm was first measured later: compared is what both were measured at
def test_rescaling_may_change_little_at_the_first_evaluation(flat, accuracy, step, expected):
    arm = ArmTruth("a", role="control", control="rescaling")
    own = (pl.col("arm") == "a") & (pl.col("seed") == 2)
    here = own & (pl.col("step") == (step or 0))
    made = synthetic.study([BASELINE, arm])
    even = made.frame.with_columns(pl.lit(0.2).alias("test/accuracy"), (1.0 + pl.col("step")).alias(FLAT))
    change = {FLAT: pl.col(FLAT) * pl.when(here).then(flat).otherwise(1.0),
              "test/accuracy": pl.col("test/accuracy") + pl.when(here).then(accuracy).otherwise(0.0)}
    record = made.record(even.with_columns(**change).filter(~own | (pl.col("step") > 0) | (step is not None)))
    assert control(record, "a").verdict == expected


def test_the_largest_change_by_rescaling_is_that_of_the_column_and_the_seed_that_change_most():
    made = synthetic.study([BASELINE, ArmTruth("a", role="control", control="rescaling")])
    own, seed = pl.col("arm") == "a", pl.col("seed")
    change = {f"{split}/relative_flatness": pl.when(own & (seed == one)).then(1 + size).otherwise(1.0)
              for split, one, size in (("train", 2, 0.03), ("test", 4, 0.02))}
    columns = made.columns | {"test/relative_flatness": made.columns[FLAT] | {"split": "test"}}
    record = dataclasses.replace(made, columns=columns).record(made.frame.with_columns(**change))
    assert control(record, "a").estimates["largest change"]["value"] == pytest.approx(0.03)


def test_a_control_that_the_baseline_matches_by_itself_is_no_failure():
    idle = ArmTruth("a", role="control", control="matched-level", interventions=[clamp("cdnv", 0.01)])
    assert control(record_of(idle), "a").verdict == "inconclusive"


def test_a_task_that_never_groks_passes():
    never = ArmTruth("hard", role="control", control="no-grokking", never=True, final_accuracy=0.5)
    assert control(record_of(never), "hard").verdict == "passed"


def test_matched_level_fails_when_it_does_not_hold():
    held = ArmTruth("held", role="control", control="matched-level", interventions=[clamp("loss", 2e-2)],
                    floor={"loss": 2e-2})
    loose = ArmTruth("loose", role="control", control="matched-level", interventions=[clamp("loss", 2e-2)])
    record = record_of(held, loose)
    assert control(record, "held").verdict == "passed"
    assert control(record, "loose").verdict == "failed"
    rows = {row["arm"]: row for row in table_of(record).iter_rows(named=True)}
    assert (rows["held"]["held"], rows["loose"]["held"], rows["loose"]["valid"]) == (1, 0, False)


def test_too_few_seeds_are_no_failure():
    held = ArmTruth("held", role="control", control="matched-level", interventions=[clamp("loss", 2e-2)],
                    floor={"loss": 2e-2})
    found = {item.id: item for item in findings_of(record_of(held, seeds=3))}
    assert found["control/held"].verdict == found["manipulation/held"].verdict == "inconclusive"
    assert "it has 3 seeds, and a verdict needs 5" in found["control/held"].statement
