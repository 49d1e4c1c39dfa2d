"""Page's trend over the doses of one hand: which arms are doses, and which way accuracy and delay go."""

import polars as pl
import pytest

import synthetic
from grokscape.analysis.dose import page, trend
from grokscape.analysis.effects import effects
from grokscape.analysis.necessity import doses, necessity
from grokscape.analysis.targets import targets
from synthetic import BASELINE, ArmTruth, clamp

FLAT = "relative_flatness"


def dose(name, level, measure=FLAT, **truth):
    return ArmTruth(name, interventions=[clamp(measure, level)], floor={FLAT: level, measure: level}, **truth)


@pytest.mark.parametrize(("factors", "grows"), [((1.5, 2.0), True), ((0.6, 0.3), False)])
def test_a_trend_is_one_of_delays_that_grow_and_of_a_run_that_never_generalised_as_the_longest(factors, grows):
    made = synthetic.study([BASELINE, dose("a", 60.0, delay_factor=factors[0]), dose("b", 120.0,
                            delay_factor=factors[1])], spread=0.05)
    stopped = (pl.col("arm") == ("b" if grows else "baseline")) & (pl.col("seed") < 3)
    short = made.frame.with_columns(pl.when(stopped).then(pl.min_horizontal("test/accuracy", 0.94)).otherwise(
        "test/accuracy").alias("test/accuracy")).filter(~stopped | (pl.col("step") < 300))
    record = made.record(short)
    (found,) = trend(record, targets(record, "block")[0], effects(record))
    assert (found["p_delay"] < 1e-3, found["p_delay"] > 0.999) == (grows, not grows)


def test_doses_are_arms_that_say_something_and_hold_this_very_measure():
    arms = [dose("a", 60.0), dose("b", 120.0), dose("lost", 200.0, memorise=False, never=True),
            dose("c", 3000.0, "relative_flatness_bound"), dose("d", 6000.0, "relative_flatness_bound")]
    record = synthetic.study([BASELINE, *arms]).record()
    (found,) = trend(record, next(one for one in targets(record, "block") if one.measure == FLAT), effects(record))
    assert found["arms"] == ["baseline", "a", "b"]


def test_doses_that_end_before_the_run_are_compared_at_the_end_of_the_first_of_them():
    """Where the hand was taken off all generalise at once: nothing of that is the doses'."""
    arms = [ArmTruth(name, interventions=[clamp(FLAT, level, until=until)], floor={FLAT: level}, delay_factor=factor)
            for name, level, until, factor in (("a", 60.0, 1000, 1.2), ("b", 120.0, 900, 1.6))]
    made = synthetic.study([BASELINE, *arms], spread=0.05, steps=2000)
    released = (pl.col("arm") != "baseline") & (pl.col("step") >= 900)
    record = made.record(made.frame.with_columns(
        pl.when(released).then(1.0).when(pl.col("arm") == "b").then(pl.min_horizontal("test/accuracy", 0.6)).when(
            pl.col("arm") == "a").then(pl.min_horizontal("test/accuracy", 0.8)).otherwise(
            pl.min_horizontal("test/accuracy", 0.97)).alias("test/accuracy")))
    target, found = targets(record, "block")[0], effects(record)
    (trend_found,) = trend(record, target, found)
    assert trend_found["arms"] == ["baseline", "a", "b"]
    assert trend_found["p_accuracy"] < 1e-3
    assert trend_found["monotone"]
    shown = {dose["arm"]: set(dose["final_accuracy_per_seed"]) for dose in doses(record, target, found)}
    assert shown == {"baseline": {0.97}, "a": {1.0}, "b": {0.6}}  # a acts for a hundred steps more


@pytest.mark.parametrize(("seeds", "tested"), [(1, False), (2, True)])
def test_one_seed_shows_no_trend(seeds, tested):
    record = synthetic.study([BASELINE, dose("a", 60.0), dose("b", 120.0)], seeds=seeds).record()
    found = page(record, ["baseline", "a", "b"])
    assert (found["p_accuracy"] is not None, found["p_delay"] is not None, found["n"]) == (tested, tested, seeds)


def test_arms_without_a_common_seed_show_no_trend():
    made = synthetic.study([BASELINE, dose("a", 60.0), dose("b", 120.0)])
    apart = (pl.col("arm") == "b") == (pl.col("seed") < 4)
    found = page(made.record(made.frame.filter(apart)), ["baseline", "a", "b"])
    assert found == {"n": 0, "p_accuracy": None, "p_delay": None, "monotone": False}


def test_dose_response_is_page_s_trend_over_one_hand():
    made = [dose(f"dose-{k}", 60.0 * 2**k, final_accuracy=0.97 - 0.1 * k) for k in range(3)]
    record = synthetic.study([BASELINE, *made]).record()
    target = targets(record, "block")[0]
    found = necessity(record, target, effects(record), [])[0]
    (found,) = found.data["trend"]
    assert found["arms"] == ["baseline", "dose-0", "dose-1", "dose-2"]
    assert found["p_accuracy"] < 1e-4
    assert found["monotone"]


def test_doses_run_from_the_least_blocked_one_though_that_blocks_less_than_the_baseline():
    push = {"kind": "suppress", "measure": FLAT}
    weak = ArmTruth("weak", interventions=[push])
    held = [ArmTruth(f"dose-{k}", interventions=[push], floor={FLAT: 60.0 * 2**k}, final_accuracy=0.97 - 0.1 * k)
            for k in range(2)]
    made = synthetic.study([BASELINE, weak, *held])
    factor = pl.when(pl.col("arm") != "weak").then(1.0).when(pl.col("step") < 300).then(2.0).otherwise(0.8)
    record = made.record(made.frame.with_columns(pl.col("train/relative_flatness") * factor))
    (found,) = necessity(record, targets(record, "block")[0], effects(record), [])[0].data["trend"]
    assert found["arms"] == ["weak", "baseline", "dose-0", "dose-1"]
    assert found["p_accuracy"] < 1e-4
