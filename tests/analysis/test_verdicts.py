"""Verdicts on made-up studies whose truth is known, and how often they are wrong when there is nothing to find."""

import re

import numpy as np
import polars as pl
import pytest

import synthetic
from grokscape.analysis.effects import effects
from grokscape.analysis.necessity import necessity
from grokscape.analysis.pipeline import findings_of
from grokscape.analysis.targets import targets
from synthetic import BASELINE, ArmTruth, clamp

FLAT = "relative_flatness"


def arm(name, level, hand=FLAT, **truth):
    """An arm whose κ settles at a level by some hand, with the loss or bound that this hand holds."""
    floor = {FLAT: level, "relative_flatness_bound": 50 * level, "loss": 2e-2 if hand == "loss" else 0.0}
    goal = {FLAT: level, "relative_flatness_bound": 50 * level, "loss": 2e-2}[hand]
    control = {"role": "control", "control": "matched-level"} if hand == "loss" else {}
    return ArmTruth(name, interventions=[clamp(hand, goal)], floor=floor, **control, **truth)


def harmed(name, level, hand=FLAT, **truth):
    return arm(name, level, hand, never=True, final_accuracy=0.6, **truth)


def record_of(*arms, **options):
    return synthetic.study([BASELINE, *arms], **options).record()


def verdict(*arms, **options):
    found = {item.id: item for item in findings_of(record_of(*arms, **options))}
    return found["necessity/flatness"], found


def judged(*arms, **options):
    """The verdict on flatness, without the rest of the analysis."""
    record = record_of(*arms, **options)
    return necessity(record, targets(record, "block")[0], effects(record), [])[0]


def test_two_hands_that_harm_at_one_level_are_consistent_with_necessary():
    found, all_found = verdict(harmed("a", 80.0), arm("b", 80.0, "relative_flatness_bound", delay_factor=2.7))
    assert found.verdict == "consistent with necessary"
    assert all_found["convergence/flatness"].verdict == "hands agree"
    assert "two different hands, “A” and “B”, that brought it to the same level" in found.statement
    harm = {dose["arm"]: dose["effect"]["p_harmed"] for dose in found.data["doses"][1:]}
    assert min(harm.values()) < found.p == max(harm.values()) <= 0.05  # both had to harm


def test_test_loss_does_not_stand_in_for_a_train_loss_that_was_not_logged():
    made = synthetic.study([BASELINE, harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound")])
    found = findings_of(made.record(made.frame.drop("train/loss")))
    pairs = next(item.data["pairs"] for item in found if item.id == "convergence/flatness")
    assert pairs
    assert all(pair["losses"] == [None, None] and not pair["matched_loss"] for pair in pairs)


def test_another_property_that_the_same_arms_block_is_named():
    both = {FLAT: 80.0, "relative_flatness_bound": 4000.0, "cdnv": 1.5}
    arms = [ArmTruth(name, interventions=[clamp(measure, level)], floor=both, never=True, final_accuracy=0.6)
            for name, measure, level in (("a", FLAT, 80.0), ("b", "relative_flatness_bound", 4000.0))]
    collapse = ArmTruth("c", interventions=[clamp("cdnv", 1.2)], floor={"cdnv": 1.2})
    found, _ = verdict(*arms, collapse)
    assert found.verdict == "consistent with necessary"
    assert "the same arms kept collapse (CDNV) from arising as well" in found.statement
    assert found.data["also_blocked"] == ["relative_flatness_bound", "cdnv"]
    alone, _ = verdict(harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound"), collapse)
    assert "from arising as well" not in alone.statement


def test_one_hand_alone_is_not_enough_however_many_doses():
    found, all_found = verdict(harmed("a", 80.0), harmed("b", 90.0), harmed("c", 300.0))
    assert found.verdict == "inconclusive"
    assert "no second hand" in found.statement
    assert all_found["convergence/flatness"].verdict == "not tested"


def test_hands_that_share_a_part_are_not_two():
    penalty = clamp(FLAT, 80.0)
    twice = ArmTruth("b", interventions=[penalty], extra={"optimizer": {"lr": 5e-3}}, floor={FLAT: 80.0}, never=True,
                     final_accuracy=0.6)
    found, all_found = verdict(harmed("a", 80.0), twice)
    assert found.verdict == "inconclusive"
    assert "no second hand that shares nothing with it" in found.statement
    assert all_found["convergence/flatness"].verdict == "not tested"


def test_a_second_hand_of_unclear_effect_is_not_denied():
    unclear = arm("b", 80.0, "relative_flatness_bound", delay_factor=2.0)
    found, _ = verdict(harmed("a", 80.0), unclear, steps=3000)
    assert found.verdict == "inconclusive"
    assert "the effect of “B”, a second hand at the same level, is unclear" in found.statement


def test_harm_that_another_hand_does_not_do_belongs_to_the_manipulation():
    found, all_found = verdict(harmed("a", 80.0), arm("b", 85.0, "loss"))
    assert found.verdict == "belongs to the manipulation"
    assert found.p <= 0.05  # of harm by the one, of none by the other
    assert all_found["convergence/flatness"].verdict == "hands disagree"
    assert re.match(r"Relative flatness κ at (79|80)\S* by “A” and at (84|85)\S* by “B”: generalisation harmed and "
                    "intact", all_found["convergence/flatness"].statement)
    assert found.data["deciding"] == ["a", "b"]
    assert "belongs to the manipulation and not to the level" in found.statement


@pytest.mark.parametrize(("one", "two", "expected"), [
    (harmed("a", 80.0), harmed("b", 150.0, "relative_flatness_bound"), "consistent with necessary"),
    (harmed("a", 80.0), harmed("b", 175.0, "relative_flatness_bound"), "inconclusive"),  # more than a factor of two
    (harmed("a", 80.0, extra={"optimizer": {"lr": 5e-3}}), arm("b", 85.0), "belongs to the manipulation"),  # a part
    (harmed("a", 80.0), arm("b", 85.0), "inconclusive"),  # two doses of one hand
    (harmed("a", 80.0), arm("b", 85.0, "loss", delay_factor=0.3), "belongs to the manipulation")])  # better than intact
def test_what_two_arms_say_depends_on_how_near_their_levels_are_and_what_their_hands_share(one, two, expected):
    assert judged(one, two).verdict == expected


def test_a_property_that_only_one_of_the_deciding_arms_kept_from_arising_can_be_told_apart():
    one = ArmTruth("b", interventions=[clamp("relative_flatness_bound", 4000.0)], never=True, final_accuracy=0.6,
                   floor={FLAT: 80.0, "relative_flatness_bound": 4000.0, "cdnv": 1.5})
    found = judged(harmed("a", 80.0), one, ArmTruth("c", interventions=[clamp("cdnv", 1.2)], floor={"cdnv": 1.2}))
    assert found.verdict == "consistent with necessary"
    assert "from arising as well" not in found.statement


def test_a_verdict_rests_on_the_seeds_of_the_arm_that_has_the_fewest():
    made = synthetic.study([BASELINE, harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound")])
    record = made.record(made.frame.filter((pl.col("arm") != "b") | (pl.col("seed") < 6)))
    assert necessity(record, targets(record, "block")[0], effects(record), [])[0].n == 6


@pytest.mark.parametrize(("factor", "alike"), [(1.8, True), (1 / 1.8, True), (2.3, False), (1 / 2.3, False)])
def test_train_losses_are_alike_within_the_factor_of_levels(factor, alike):
    made = synthetic.study([BASELINE, harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound")], seeds=5)
    loss = pl.when(pl.col("arm") == "b").then(2e-3 * factor).otherwise(2e-3)
    record = made.record(made.frame.with_columns(loss.alias("train/loss")))
    pairs = necessity(record, targets(record, "block")[0], effects(record), [])[0].data["pairs"]
    assert {pair["matched_loss"] for pair in pairs} == {alike}


def test_an_intact_hand_far_beyond_the_level_contradicts_as_well():
    found, _ = verdict(harmed("a", 80.0), arm("b", 800.0, "loss"))
    assert found.verdict == "belongs to the manipulation"


def test_an_intact_hand_far_below_the_level_contradicts_nothing():
    found, _ = verdict(harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound"), arm("c", 4.0, "loss"))
    assert found.verdict == "consistent with necessary"


@pytest.mark.parametrize(("level", "expected"), [(75.0, "belongs to the manipulation"), (60.0, "inconclusive")])
def test_an_intact_hand_must_reach_the_level_to_contradict(level, expected):
    found, _ = verdict(harmed("a", 80.0), arm("b", level, "loss"))
    assert found.verdict == expected
    stopped = "“B”, a second hand that left it intact, stopped short of that level"
    assert (stopped in found.statement) == (expected == "inconclusive")


def test_a_hand_whose_harm_is_not_the_level_s_at_one_dose_does_not_count_at_a_higher_one():
    high = harmed("b", 1000.0), harmed("c", 1000.0, "relative_flatness_bound")
    found, all_found = verdict(harmed("a", 80.0), *high, arm("d", 85.0, "loss"))
    assert found.verdict == "belongs to the manipulation"
    assert found.data["deciding"] == ["a", "d"]
    assert re.search(r"; “[BC]” \(\S+\) and “[BC]” \(\S+\) harmed at higher levels, at which no hand left it intact",
                     found.statement)
    assert all_found["convergence/flatness"].verdict == "hands disagree"


def test_hands_may_agree_at_one_level_and_others_disagree_at_a_lower_one():
    found, all_found = verdict(harmed("a", 80.0, extra={"optimizer": {"lr": 5e-3}}), harmed("b", 1000.0),
                               harmed("c", 1000.0, "relative_flatness_bound"), arm("d", 85.0, "loss"))
    assert found.verdict == "consistent with necessary"
    assert set(found.data["deciding"]) == {"b", "c"}
    assert "the hands disagree" in found.statement
    assert "no hand of another kind" in found.statement
    assert all_found["convergence/flatness"].verdict == "hands agree at some levels"


def test_agreement_is_void_where_a_third_hand_disagrees():
    found, _ = verdict(harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound"), arm("c", 85.0, "loss"))
    assert found.verdict == "belongs to the manipulation"


def test_two_hands_do_not_agree_where_a_third_disagrees_with_the_weaker_of_them():
    found, _ = verdict(harmed("a", 100.0), harmed("b", 60.0, "relative_flatness_bound"), arm("c", 62.0, "loss"))
    assert found.verdict == "belongs to the manipulation"


@pytest.mark.parametrize(("third", "words"), [
    (62.0, "“C”, a second hand that left it intact, stopped short"), (57.0, "“B”, a second hand that harmed at the")])
def test_a_control_whose_harm_a_third_hand_contradicts_does_not_agree(third, words):
    found, all_found = verdict(harmed("a", 100.0), harmed("b", 60.0, "loss"),
                               arm("c", third, "relative_flatness_bound"))
    assert found.verdict == "inconclusive"  # the harm at 100 has no second hand, that of the control is its own
    assert words in found.statement
    assert all_found["convergence/flatness"].verdict == "hands disagree"


def test_two_controls_that_harm_do_not_make_a_property_necessary():
    other = ArmTruth("c", role="control", control="matched-level", never=True, final_accuracy=0.6, floor={FLAT: 60.0},
                     extra={"optimizer": {"lr": 0.1}})
    found = judged(arm("a", 20.0), harmed("b", 60.0, "loss"), other)
    assert [dose["arm"] for dose in found.data["doses"] if dose["aimed"]] == ["a"]
    assert [dose["effect"]["call"] for dose in found.data["doses"][1:]] == ["intact", "harmed", "harmed"]
    assert found.verdict == "not necessary"


def test_an_arm_that_stops_generalisation_by_other_means_is_no_second_hand():
    stopped = ArmTruth("dropout", extra={"model": {"dropout": 0.5}}, never=True, final_accuracy=0.6)
    found, _ = verdict(harmed("a", 60.0), stopped)
    assert {dose["arm"]: dose["blocked_share"] for dose in found.data["doses"]}["dropout"] > 0.8  # κ stays up
    assert [dose["arm"] for dose in found.data["doses"] if dose["aimed"]] == ["a"]
    assert found.verdict == "inconclusive"
    assert "no second hand" in found.statement


def test_harm_done_by_blocking_another_property_does_not_count():
    other = ArmTruth("other", interventions=[clamp("relative_flatness", 60.0)], never=True, final_accuracy=0.6,
                     floor={"cdnv": 1.5, "relative_flatness": 60.0})
    held = ArmTruth("collapse", interventions=[clamp("cdnv", 1.5)], floor={"cdnv": 1.5})
    _, found = verdict(other, held, seeds=12)
    assert found["necessity/collapse"].verdict == "not necessary"
    assert found["necessity/flatness"].verdict == "inconclusive"


def test_a_control_at_the_matched_level_can_agree():
    found, _ = verdict(harmed("a", 80.0), harmed("b", 80.0, "loss"))
    assert found.verdict == "consistent with necessary"
    assert "no hand of another kind" not in found.statement


def test_blocked_and_intact_is_not_necessary():
    found, _ = verdict(arm("a", 80.0), ArmTruth("b", interventions=[clamp(FLAT, 30.0)]), seeds=12)  # B held none
    assert found.verdict == "not necessary"
    assert found.statement.startswith("In this study generalisation does not need flatness")
    share = found.data["doses"][1]["blocked_share"]
    assert share == pytest.approx(np.log(80 / 0.1) / np.log(60 / 0.1), rel=0.05)
    assert re.search(f", which takes back {share:.0%} of the way [^“]+ \\(“A”: ", found.statement)  # nothing of “B”


@pytest.mark.parametrize("order", [1, -1])
def test_the_strongest_of_the_arms_decides_whichever_comes_first(order):
    found, _ = verdict(*(arm("weak", 80.0), arm("strong", 300.0))[::order], seeds=12)
    assert found.data["deciding"] == ["strong"]


@pytest.mark.parametrize("order", [1, -1])
def test_the_measure_that_most_arms_move_stands_for_the_property(order):
    arms = (arm("a", 80.0), arm("b", 90.0), arm("c", 80.0, "relative_flatness_bound"))
    found, _ = verdict(*arms[::order])
    assert found.subject["measure"] == FLAT


def test_a_measure_that_rises_with_its_property_is_blocked_from_above():
    low = ArmTruth("a", interventions=[clamp("test/ildr", at_most=1.5)])
    made = synthetic.study([BASELINE, low], seeds=12)
    held = pl.when(pl.col("arm") == "a").then(pl.min_horizontal("test/ildr", 1.4)).otherwise("test/ildr")
    found = {item.id: item for item in findings_of(made.record(made.frame.with_columns(held.alias("test/ildr"))))}
    assert found["necessity/collapse"].verdict == "not necessary"
    assert found["necessity/collapse"].data["doses"][1]["blocked_share"] > 0.5


def test_an_arm_that_holds_two_properties_counts_for_each_from_the_smallest_shift_on():
    both = ArmTruth("a", interventions=[clamp(FLAT, 0.17), clamp("cdnv", 0.3)], floor={FLAT: 0.17, "cdnv": 0.3})
    other = ArmTruth("b", extra={"optimizer": {"lr": 1e-3}}, floor=both.floor)  # made for something else
    _, found = verdict(both, other)  # the baseline settles at 0.1 and 0.2, less than a factor of two away
    for name in ("flatness", "collapse"):
        data = found[f"necessity/{name}"].data
        blocked = [dose["arm"] for dose in data["doses"] if dose["blocked_share"] is not None]
        assert blocked == data["deciding"] == ["a"], name


@pytest.mark.parametrize(("intervention", "words"), [
    (clamp(FLAT, 80.0), " held ≥ 80"),
    (clamp(FLAT, 2.0, 3.0, relative_to="memorisation"), " held ≥ 2 and ≤ 3 × its value at memorisation,"),
    (clamp(FLAT, 2.0, relative_to=50), " held ≥ 2 × its value at step 50,"),
    ({"kind": "suppress", "measure": FLAT}, " (suppressed)"), ({"kind": "promote", "measure": FLAT}, " (promoted)")])
def test_what_an_arm_was_to_hold_is_said_beside_where_it_settled(intervention, words):
    found = findings_of(record_of(ArmTruth("a", interventions=[intervention], floor={FLAT: 80.0})))
    statement = next(item.statement for item in found if item.id == "manipulation/a")
    assert f"A: Relative flatness κ{words} settled at " in statement


@pytest.mark.parametrize(("level", "factor", "expected"), [
    (1.8, 1.0, "inconclusive"), (3.4, 1.0, "not necessary"), (3.4, 0.3, "not necessary")])
def test_half_of_the_way_must_be_taken_back_to_speak_about_need(level, factor, expected):
    found = judged(arm("a", level, delay_factor=factor), seeds=12)  # the way is from 60 to 0.1
    assert found.verdict == expected
    assert ("too little of it was blocked" in found.statement) == (expected == "inconclusive")


def test_a_clamp_that_the_baseline_meets_by_itself_is_idle():
    found, all_found = verdict(ArmTruth("a", interventions=[clamp(FLAT, 0.05)]))
    assert all_found["manipulation/a"].verdict == "idle"
    assert found.verdict == "inconclusive"


def test_a_clamp_that_does_not_hold_says_nothing():
    found, all_found = verdict(ArmTruth("a", interventions=[clamp(FLAT, 30.0)]))
    assert all_found["manipulation/a"].verdict == "not held"
    assert found.verdict == "inconclusive"


def test_lost_memorisation_says_nothing():
    lost = ArmTruth("a", interventions=[clamp(FLAT, 80.0)], floor={FLAT: 80.0}, memorise=False, never=True)
    found, all_found = verdict(lost)
    assert all_found["manipulation/a"].verdict == "failed"
    assert found.verdict == "inconclusive"


def test_why_no_arm_says_something_is_said():
    found, _ = verdict(harmed("a", 80.0), seeds=3)
    assert found.verdict == "inconclusive"
    assert found.statement.endswith("; “A” says nothing, for it has 3 seeds, and a verdict needs 5.")


@pytest.mark.parametrize(("names", "others"), [("ab", "“B” says"), ("abc", "“B” and “C” say"),
                                               ("abcd", "3 other arms say")])
def test_a_reason_is_given_once(names, others):
    other = ArmTruth("other", interventions=[clamp("cdnv", 1.2)], floor={"cdnv": 1.2})  # of another property
    found, _ = verdict(*(harmed(name, 80.0) for name in names), other, seeds=3)
    assert found.statement.endswith(f"; “A” says nothing, for it has 3 seeds, and a verdict needs 5; {others} nothing "
                                    "for the same reason.")


def test_an_arm_that_was_unplugged_is_judged_while_it_acted():
    held = ArmTruth("a", interventions=[clamp(FLAT, 60.0), {"kind": "unplug", "step": 400}], delay_factor=1.6,
                    floor={FLAT: 60.0})
    record = record_of(held, delay=250.0)
    found = effects(record)[0]
    assert found.arm.until == 400
    assert found.generalised["value"] < 0.5  # while it acted, though all generalise in the end
    assert found.accuracy["value"] < -0.5
    assert record.results.filter(arm="a")["generalised"].count() == 8


def test_holm_is_over_all_arms_of_the_study():
    alone = effects(record_of(arm("a", 80.0)))[0].p_intact
    others = [ArmTruth(name, role="control", control=name) for name in
              ("random-labels", "rescaling", "no-delay", "no-grokking")]  # differ by design
    lost = ArmTruth("lost", interventions=[clamp(FLAT, 80.0)], memorise=False, never=True)  # says nothing
    three = effects(record_of(arm("a", 80.0), harmed("b", 1000.0), harmed("c", 80.0), lost, *others))
    assert [item.arm.name for item in three] == ["a", "b", "c", "lost"]
    assert three[0].p_intact == pytest.approx(3 * alone)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_verdicts_are_wrong_at_their_level_at_most(factor):
    """No effect: no "consistent with necessary". A delay at the margin: both claims at their level over three arms."""
    wrong = {"consistent with necessary": 0, "not necessary": 0, "harmed": 0, "intact": 0}
    draws = 500
    for seed in range(draws):
        arms = [arm("a", 80.0, delay_factor=factor), arm("b", 85.0, "relative_flatness_bound", delay_factor=factor),
                arm("c", 90.0, "loss", delay_factor=factor)]
        record = record_of(*arms, seeds=6, steps=3000, every=50, seed=seed, verdict={"bootstrap": 200})
        found = effects(record)
        for call in ("harmed", "intact"):
            wrong[call] += any(item.call == call for item in found)
        judged = necessity(record, targets(record, "block")[0], found, [])[0].verdict
        wrong[judged] = wrong.get(judged, 0) + 1
    allowed = 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert wrong["harmed"] / draws <= allowed
    assert wrong["consistent with necessary"] / draws <= allowed
    if factor == 2.0:
        assert wrong["intact"] / draws <= allowed
        assert wrong["not necessary"] / draws <= allowed
    else:
        assert wrong["not necessary"] / draws > 0.5


def test_a_training_loss_that_rounds_to_zero_matches_none():
    made = synthetic.study([BASELINE, harmed("a", 80.0), harmed("b", 80.0, "relative_flatness_bound")])
    late = (pl.col("arm") == "b") & (pl.col("step") > 200)
    loss = pl.when(late).then(0.0).otherwise(pl.col("train/loss"))
    found = {item.id: item for item in findings_of(made.record(made.frame.with_columns(loss.alias("train/loss"))))}
    assert found["necessity/flatness"].verdict == "consistent with necessary"
    assert [pair["matched_loss"] for pair in found["convergence/flatness"].data["pairs"]] == [False, False]
