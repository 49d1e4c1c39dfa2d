"""What counts as harm, as intact and as hastened: seeds that lost memorisation, were not followed or are not paired."""

import polars as pl
import pytest

import synthetic
from grokscape.analysis import FrameError
from grokscape.analysis.effects import effects, worded
from grokscape.analysis.frames import tidy
from grokscape.analysis.pipeline import findings_of
from grokscape.analysis.record import Record
from grokscape.analysis.survival import paired_delays
from synthetic import BASELINE, ArmTruth, clamp

FLAT = "relative_flatness"
HELD = ArmTruth("a", interventions=[clamp(FLAT, 80.0)], floor={FLAT: 80.0})
BOTH = HELD, ArmTruth("b", interventions=[clamp("relative_flatness_bound", 4000.0)],
                      floor={FLAT: 80.0, "relative_flatness_bound": 4000.0})


def made(*arms, change=None, **options):
    study = synthetic.study([BASELINE, *(arms or (HELD,))], **options)
    return study.record(change(study.frame) if change else None)


def of(arm):
    return pl.col("arm") == arm


def test_a_verdict_needs_enough_pairs_not_enough_runs():
    for harm in ({}, {"never": True, "final_accuracy": 0.6}):
        arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, **harm)
        (found,) = effects(made(arm, change=lambda f: f.filter(~of("baseline") | (pl.col("seed") < 3))))
        assert found.n == 3
        assert found.call == "says nothing"
        assert "in only 3 of its 8 seeds" in found.check.reasons[0]
    (found,) = effects(made(change=lambda f: f.filter(of("baseline"))))
    assert found.check.reasons == ("it has no runs",)


def test_what_is_written_down_of_an_effect_has_the_share_of_runs_that_generalised():
    harmed = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor)
    (found,) = effects(made(harmed, change=lambda f: f.with_columns(
        pl.when(of("a") & (pl.col("seed") < 2)).then(0.6).otherwise("test/accuracy").alias("test/accuracy"))))
    summary = found.summary()
    assert (summary["generalised"]["value"], summary["generalised"]["unit"]) == (0.75, "share of seeds")
    assert summary["generalised"]["low"] < 0.75 < summary["generalised"]["high"]
    assert summary["accuracy_difference"]["value"] == pytest.approx(-0.1, abs=0.01)


def test_seeds_whose_baseline_lost_memorisation_say_nothing_about_the_arm():
    def forget(frame):
        lost = of("baseline") & (pl.col("seed") < 2)
        return frame.with_columns(pl.when(lost).then(0.1).otherwise(pl.col(name)).alias(name)
                                  for name in ("train/accuracy", "test/accuracy"))
    (found,) = effects(made(change=forget))
    assert (found.n, found.call) == (6, "intact")
    assert found.accuracy["value"] == pytest.approx(0, abs=0.01)


def test_seeds_that_lost_memorisation_are_no_harm_and_not_intact_either():
    def forget(frame):
        lost = ~of("baseline") & (pl.col("seed") < 20)
        return frame.with_columns(pl.when(lost).then(0.1).otherwise(pl.col(name)).alias(name)
                                  for name in ("train/accuracy", "test/accuracy"))
    record = made(*BOTH, seeds=100, change=forget, every=50)
    assert [item.call for item in effects(record)] == ["unclear", "unclear"]
    assert all(item.ratio["value"] == pytest.approx(1, abs=0.2) for item in effects(record))  # of those that memorised
    found = {item.id: item for item in findings_of(record)}["necessity/flatness"]
    assert found.verdict == "inconclusive"
    assert "memorisation intact in 80" in found.statement


def test_seeds_that_lost_memorisation_later_on_are_no_harm_by_their_delay():
    def forget(frame):
        lost = ~of("baseline") & (pl.col("seed") < 12)
        train = pl.when(lost & (pl.col("step") > 300)).then(0.1).otherwise(pl.col("train/accuracy"))
        test = pl.when(lost).then(0.1).otherwise(pl.col("test/accuracy"))
        return frame.with_columns(train.alias("train/accuracy"), test.alias("test/accuracy"))
    (found,) = effects(made(change=forget, seeds=60, steps=12_000, every=100))
    assert found.ratio["low"] > 2  # all seeds; those that kept it show no harm
    assert found.call == "unclear"


@pytest.mark.parametrize("last", [300, 700])
def test_runs_that_were_followed_for_less_time_are_compared_at_that_time(last):
    record = made(*BOTH, change=lambda f: f.filter(of("baseline") | (pl.col("step") <= last)))
    assert all(item.call in ("unclear", "intact") for item in effects(record))
    assert all(abs(item.accuracy["value"]) < 0.25 for item in effects(record))


def test_the_last_evaluation_that_both_runs_of_a_pair_have_counts():
    def fall(frame):
        less = pl.when(of("a") & (pl.col("step") == 1000)).then(0.5).otherwise("test/accuracy")
        return frame.filter(of("a") | (pl.col("step") <= 1000)).with_columns(less.alias("test/accuracy"))
    (found,) = effects(made(change=fall, verdict={"final_evaluations": 1}))
    assert found.accuracy["value"] == pytest.approx(-0.5, abs=1e-3)


def test_hastened_needs_accuracy_as_well():
    fall = dict(enumerate([0.0, 0.0, 0.0, 0.0, 0.1, 0.15, 0.25, 0.3]))  # 0.1 on average: no clear harm, yet not intact

    def worse(frame):
        late = of("a") & (pl.col("step") > 700)
        less = pl.col("test/accuracy") - pl.col("seed").replace_strict(fall)
        return frame.with_columns(pl.when(late).then(less).otherwise(pl.col("test/accuracy")).alias("test/accuracy"))
    quick = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=0.2)
    assert effects(made(quick))[0].call == "hastened"
    assert effects(made(quick, change=worse))[0].call == "unclear"


@pytest.mark.parametrize(("factor", "call"), [(0.3, "hastened"), (0.7, "intact"), (1.4, "intact"), (3, "harmed")])
def test_a_delay_is_judged_by_the_margin_of_a_factor_of_two(factor, call):
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=factor)
    record = made(arm, spread=0.05, steps=2400)
    (found,) = effects(record)
    assert (found.call, found.ratio["value"]) == (call, pytest.approx(factor, rel=0.1))
    if call == "harmed":  # by its delay alone; each of the two ways to harm has half of the level
        assert found.p_harmed == pytest.approx(2 * paired_delays(record.results, "a", "baseline").slower_than(2.0))


def test_a_shorter_delay_hastens_though_the_time_from_the_start_shrinks_by_less_than_the_margin():
    train = pl.when(pl.col("step") < 300).then(0.1).otherwise("train/accuracy")  # of about 540 steps in the baseline
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=0.65)
    (found,) = effects(made(arm, spread=0.05, change=lambda f: f.with_columns(train.alias("train/accuracy"))))
    assert found.ratio["high"] < 0.5
    assert found.call == "hastened"


@pytest.mark.parametrize(("falls", "call"), [
    ([0.1] * 8, "harmed"), ([0.03] * 8, "intact"), ([-0.2] * 8, "intact"),  # better is not harm
    ([0.0, 0.0, 0.0, 0.0, 0.1, 0.15, 0.25, 0.3], "unclear")])
def test_accuracy_alone_is_judged_by_its_margin(falls, call):
    fall = pl.when(of("a")).then(pl.col("seed").replace_strict(dict(enumerate(falls)))).otherwise(0.0)
    less = pl.when(pl.col("step") > 1200).then(0.75 - fall + 1e-3 * (pl.col("seed") % 3)).otherwise("test/accuracy")
    assert effects(made(change=lambda f: f.with_columns(less.alias("test/accuracy"))))[0].call == call


def test_a_baseline_that_was_followed_for_less_time_is_compared_at_that_time_and_a_run_that_diverged_at_the_end():
    (short,) = effects(made(change=lambda f: f.filter(of("a") | (pl.col("step") <= 300))))
    assert short.accuracy["value"] == pytest.approx(0, abs=0.05)
    (gone,) = effects(made(ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, diverge=[0])))
    assert gone.accuracy["value"] == pytest.approx(-(1 - 1 / 31) / 8, abs=0.01)  # it had not generalised


@pytest.mark.parametrize(("seeds", "clock"), [(3, "delay"), (4, "time")])
def test_times_take_the_place_of_delays_where_half_of_the_baseline_s_runs_have_none(seeds, clock):
    soon = of("baseline") & (pl.col("seed") < seeds)
    record = made(change=lambda f: f.with_columns(
        pl.when(soon).then("train/accuracy").otherwise("test/accuracy").alias("test/accuracy")))
    assert effects(record)[0].clock == clock


@pytest.mark.parametrize(("steps", "call"), [(900, "unclear"), (1500, "harmed")])
def test_who_is_not_followed_for_twice_the_baseline_s_delay_is_not_intact(steps, call):
    below = pl.when(of("a")).then(pl.min_horizontal("test/accuracy", 0.94)).otherwise(pl.col("test/accuracy"))
    record = made(change=lambda f: f.with_columns(below.alias("test/accuracy")), steps=steps, spread=0.05,
                  verdict={"accuracy_margin": 0.1})
    assert effects(record)[0].call == call


@pytest.mark.parametrize(("factor", "steps", "call"), [
    (1.5, 700, "unclear"), (2.0, 950, "unclear"), (2.0, 1150, "unclear"), (9.0, 900, "unclear"), (9.0, 1500, "harmed")])
def test_accuracy_that_is_low_because_a_run_has_not_generalised_yet_is_no_harm_beside_its_delay(factor, steps, call):
    """A study that ends between the baseline's generalisation and the arm's has seen a delay."""
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=factor)
    (found,) = effects(made(arm, spread=0.15, steps=steps, seeds=12))
    assert found.accuracy["value"] < -0.05
    assert found.call == call


def test_a_baseline_that_was_stopped_once_it_had_generalised_makes_no_harm_of_an_arm_that_does_so_later():
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=1.8)
    (found,) = effects(made(arm, spread=0.15, seeds=12, change=lambda f: f.filter(of("a") | (pl.col("step") < 750))))
    assert found.generalised["value"] == 1
    assert found.accuracy["value"] < -0.5
    assert found.call == "unclear"


def test_a_study_that_ends_while_runs_of_the_baseline_generalise_has_seen_no_harm():
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=1.5)
    half = pl.when(of("baseline") & (pl.col("seed") < 6)).then(pl.min_horizontal("test/accuracy", 0.94))
    (found,) = effects(made(arm, spread=0.05, seeds=12, steps=620, change=lambda f: f.with_columns(
        half.otherwise("test/accuracy").alias("test/accuracy"))))
    assert found.accuracy["value"] < -0.5
    assert found.call == "unclear"


def test_where_there_is_no_delay_an_arm_may_be_late_by_times_from_the_start():
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=1.5)
    (found,) = effects(made(arm, spread=0.05, steps=700, change=lambda f: f.with_columns(
        pl.when(of("baseline")).then("test/accuracy").otherwise("train/accuracy").alias("train/accuracy"))))
    assert (found.clock, found.call) == ("time", "unclear")
    assert found.accuracy["value"] < -0.05


def test_where_the_baseline_does_not_generalise_either_accuracy_is_all_there_is():
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, final_accuracy=0.6)
    (found,) = effects(made(arm, change=lambda f: f.with_columns(pl.min_horizontal("test/accuracy", 0.8))))
    assert found.generalised["value"] == 0
    assert found.call == "harmed"


@pytest.mark.parametrize("arm", ["a", "baseline"])
@pytest.mark.parametrize(("change", "column", "value"), [
    (pl.col("step") < 5700, "train/accuracy", 0.1), (pl.col("step") > 400, None, None), (True, "test/accuracy", 0.3)])
def test_one_run_that_is_no_use_hides_no_harm_in_the_others(arm, change, column, value):
    """It memorises late, stops early or never generalises; the others are followed for ten of the baseline's delays."""
    never = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, never=True, final_accuracy=0.3)
    one = of(arm) & (pl.col("seed") == 0) & change
    (found,) = effects(made(never, steps=6000, every=50, change=lambda f: f.filter(~one) if column is None else
                            f.with_columns(pl.when(one).then(value).otherwise(column).alias(column))))
    assert found.call == "harmed"


@pytest.mark.parametrize(("never", "call"), [(2, "harmed"), (7, "unclear")])
def test_harm_shows_beside_a_baseline_of_which_some_runs_never_generalise(never, call):
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, never=True, final_accuracy=0.3)
    low = pl.when(of("baseline") & (pl.col("seed") < never)).then(pl.min_horizontal("test/accuracy", 0.3))
    (found,) = effects(made(arm, steps=6000, every=50, change=lambda f: f.with_columns(
        low.otherwise("test/accuracy").alias("test/accuracy"))))
    assert found.ratio["value"] > 1
    assert found.call == call


def test_one_run_that_was_not_followed_for_twice_the_baseline_s_delay_leaves_it_open():
    one = of("a") & (pl.col("seed") == 0)
    below = pl.when(one).then(pl.min_horizontal("test/accuracy", 0.94)).otherwise(pl.col("test/accuracy"))
    record = made(change=lambda f: f.filter(~one | (pl.col("step") <= 800)).with_columns(below.alias("test/accuracy")),
                  spread=0.05)
    (found,) = effects(record)
    assert found.ratio["high"] < 1.5
    assert found.call == "unclear"


def test_controls_whose_outcome_differs_by_design_are_not_compared():
    assert [item.arm.name for item in effects(synthetic.study().record())] == [
        "flatness-held-30", "bound-held-2000", "collapse-held", "loss-held"]


def test_a_delay_beyond_the_margin_is_not_intact_because_one_run_was_cut_short():
    """Times are cut where the shortest run ends, the allowed ones too: else long delays would pass for allowed ones."""
    arm = ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, delay_factor=2.1)
    cut = (pl.col("step") <= 1100) | (pl.col("seed") > 0)
    (found,) = effects(made(arm, seeds=100, steps=3000, every=20, change=lambda f: f.filter(cut)))
    assert found.ratio["high"] < 2  # of the restricted means
    assert found.call == "unclear"


def test_late_memorisation_alone_does_not_hasten():
    late = (of("a") & (pl.col("step") < 400), of("a") & (pl.col("step") >= 400))
    record = made(change=lambda f: f.with_columns(
        pl.when(late[0]).then(0.5).when(late[1]).then(1.0).otherwise(pl.col("train/accuracy")).alias("train/accuracy")),
        spread=0.05)
    (found,) = effects(record)
    assert found.ratio["high"] < 0.5  # the delay is short, yet generalisation comes when it did
    assert found.call == "intact"


def test_a_run_that_diverged_before_the_intervention_ended_stays_in_view():
    held = ArmTruth("a", interventions=[clamp(FLAT, 60.0), {"kind": "unplug", "step": 1000}], floor={FLAT: 60.0},
                    diverge=[3])
    study = synthetic.study([BASELINE, held])
    frame = study.frame.filter(pl.col("train/accuracy").is_not_nan())  # as the engine records it
    runs = study.record(frame).results_before(1000)
    gone = runs.filter((pl.col("arm") == "a") & (pl.col("seed") == 3))
    assert gone["diverged"].item()
    assert gone["followed"].item() == 990
    assert runs["diverged"].sum() == 1


def test_replicas_without_seeds_are_paired_once_and_a_seed_that_recurs_is_refused():
    frame = synthetic.study([BASELINE, HELD]).frame
    found = effects(Record.of(frame.drop("seed"), synthetic.study([BASELINE, HELD]).spec))[0]
    assert found.n == 8
    with pytest.raises(FrameError, match=r"arm 'baseline' has 8 replicas of seed 0.*Number them"):
        tidy(frame.with_columns(seed=pl.lit(0)))


@pytest.mark.parametrize(("until", "call"), [(0, "intact"), (400, "harmed")])
def test_without_a_delay_times_from_the_start_are_compared(until, call):
    def ordinary(frame):
        """Networks that generalise before they have memorised; the arm's only from a step on."""
        late = ~of("baseline") & (pl.col("step") < until)
        return frame.with_columns(
            pl.when(pl.col("test/accuracy") >= 0.95).then(1.0).otherwise(0.5).alias("train/accuracy"),
            pl.when(late).then(0.5).otherwise(pl.col("train/accuracy")).alias("test/accuracy"))
    record = made(change=ordinary)
    (found,) = effects(record)
    assert (found.call, found.clock) == (call, "time")
    assert found.ratio["value"] == pytest.approx(1 if call == "intact" else 400 / 40, rel=0.2)
    sentence = {item.id: item for item in findings_of(record)}["necessity/flatness"].statement
    assert "time to generalise" in sentence
    assert "delay" not in sentence


def test_a_difference_that_rounds_to_nothing_has_no_minus():
    (found,) = effects(made(change=lambda f: f.with_columns(
        pl.when(of("a") & (pl.col("test/accuracy") > 0.9)).then(0.9999 - 1e-5 * pl.col("seed"))
        .when(pl.col("test/accuracy") > 0.9).then(1.0).otherwise(pl.col("test/accuracy")).alias("test/accuracy"))))
    assert "+0.0 points against the baseline (interval +0.0 to +0.0)" in worded(found)
    assert "memorisation" not in worded(found)  # it is intact in all


def test_the_seeds_whose_delays_are_compared_are_those_that_memorised_in_both():
    def never(frame):
        lost = (of("a") & (pl.col("seed") == 0)) | (of("baseline") & (pl.col("seed") == 1))
        return frame.with_columns(pl.when(lost).then(0.1).otherwise("train/accuracy").alias("train/accuracy"))
    for change, words in ((never, "6 of 6 seeds that memorised in both generalised by"), (None, "8 of 8 seeds gener")):
        assert words in {item.id: item for item in findings_of(made(change=change))}["survival/a"].statement


@pytest.mark.parametrize(("truth", "change", "cut"), [
    ({"never": True, "final_accuracy": 0.6}, False, True), ({}, False, False),
    ({}, of("baseline") & (pl.col("seed") == 0), True)])  # one run, and one of the baseline's at that
def test_a_ratio_of_delays_of_which_some_have_not_ended_says_how_far_they_are_counted(truth, change, cut):
    def stop(frame):
        low = pl.min_horizontal("test/accuracy", 0.9)
        return frame.with_columns(pl.col("step") * 2001, pl.when(change).then(low).otherwise("test/accuracy").alias(
            "test/accuracy"))
    record = made(ArmTruth("a", interventions=HELD.interventions, floor=HELD.floor, **truth), change=stop)
    (found,) = effects(record)
    delays = paired_delays(record.results, "a", "baseline")
    words = f", counting at most {delays.limit:.0f} steps"
    assert found.ratio["value"] == pytest.approx(delays.own.mean() / delays.base.mean())
    assert worded(found).endswith(words) is cut
    assert found.ratio["unit"] == "times the baseline's delay" + words * cut
    survival, onset = ({item.id: item for item in findings_of(record)}[name] for name in ("survival/a", "onset/a"))
    assert (words in survival.statement) is cut
    assert survival.estimates["delay ratio"]["unit"] == found.ratio["unit"]
    assert "e+" not in survival.statement + onset.statement
