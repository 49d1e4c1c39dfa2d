"""Whether a manipulation was one: each rule of docs/verdicts.md on both of its sides, on runs drawn by hand."""

import numpy as np
import polars as pl
import pytest

import synthetic
from grokscape.analysis.effects import effects
from grokscape.analysis.manipulation import at_memorisation, check, goal_share, manipulation_finding, settled
from grokscape.analysis.pipeline import findings_of
from grokscape.analysis.record import Record
from synthetic import BASELINE, ArmTruth, clamp

CDNV = "train/cdnv"
SUPPRESS, PROMOTE = ({"kind": kind, "measure": "cdnv"} for kind in ("suppress", "promote"))


def plan(*interventions):
    return {"arms": [{"name": "baseline", "role": "baseline"}, {"name": "a", "interventions": list(interventions)}]}


def study(*interventions, seeds=10, own=None, base=None, diverged=(), **verdict):
    """Runs that memorise at step 20 and generalise at 100, evaluated every 10 steps until 200.

    `own` and `base` replace columns of the arm and of the baseline: name → function of seed and step, of arrays.
    """
    seed, step = (each.ravel() for each in np.meshgrid(np.arange(seeds), np.arange(0, 201, 10), indexing="ij"))
    frames = []
    for place, (arm, change) in enumerate((("baseline", base), ("a", own))):
        columns = {"train/accuracy": np.where(step >= 20, 1.0, 0.1), "test/accuracy": np.where(step >= 100, 1.0, 0.1),
                   CDNV: np.where(step >= 100, 0.5, 2.0), "train/rnc1": np.ones(len(step))}
        columns |= {name: np.broadcast_to(np.asarray(of(seed, step), float), step.shape)
                    for name, of in (change or {}).items()}
        keys = {"arm": arm, "seed": seed, "replica": seed + place * seeds, "step": step}
        frames.append(pl.DataFrame(keys | columns))
    gone = [{"replica": seeds + one, "arm": "a", "seed": one, "diverged_at": 190} for one in diverged]
    return Record.of(pl.concat(frames), plan(*interventions) | {"verdict": verdict}, status={"replicas": gone})


def state(record):
    return check(record, record.arm("a")).state


@pytest.mark.parametrize(("until", "generalises", "over"), [
    (None, 100, (100, 200)), (None, 999, (20, 200)), (160, 100, (100, 150)), (60, 100, (20, 50)),
    (100, 100, (20, 90)), (110, 100, (100, 100))])
def test_a_level_settles_from_generalisation_on_or_from_memorisation_to_the_end_of_the_intervention(
        until, generalises, over):
    column = {CDNV: lambda _, step: step + 1, "test/accuracy": lambda _, step: step >= generalises}
    record = study(clamp("cdnv", 1.0, until=until), own=column, base={CDNV: column[CDNV]})
    expected = np.exp(np.median(np.log(np.arange(over[0], over[1] + 1, 10) + 1)))
    assert settled(record, CDNV)[record.panel.rows("a")] == pytest.approx(expected)
    assert settled(record, CDNV, 20)[record.panel.rows("a")] == pytest.approx(expected / 21)  # of its value at step 20
    assert settled(record, CDNV)[record.panel.rows("baseline")] == pytest.approx(151)  # nothing was done to it


def test_the_level_at_memorisation_is_the_first_measured_from_then_on_and_a_relative_one_starts_at_the_first_crossing():
    record = study(own={"train/accuracy": lambda _, step: (step == 20) | (step >= 60),
                        CDNV: lambda _, step: np.where(np.isin(step, (20, 60)), np.nan, step)})
    rows = record.panel.rows("a")
    assert at_memorisation(record, CDNV)[rows] == pytest.approx(70)
    relative = record.series(CDNV, "memorisation")[rows]
    assert relative[:, 3] == pytest.approx(1)  # step 30: the first measured after training notices
    assert relative[:, 6:8] == pytest.approx(np.array([[np.nan, 70 / 30]] * 10), nan_ok=True)


@pytest.mark.parametrize(("seeds", "lost", "speaks"), [(20, 5, True), (20, 6, False), (5, 0, True), (4, 0, False)])
def test_three_quarters_of_the_seeds_must_keep_memorisation_and_there_must_be_five(seeds, lost, speaks):
    held = {CDNV: lambda *_: 3.0}
    for how in ({"own": held | {"train/accuracy": lambda seed, step: np.where(seed < lost, 0.95, 1.0) * (step >= 20)}},
                {"own": held | {"train/accuracy": lambda seed, step: np.where((seed < lost) & (step > 90), 0.93, 1)}},
                {"own": held, "diverged": range(lost)}):
        record = study(clamp("cdnv", 3.0), seeds=seeds, held_fraction=0.5, **how)
        assert check(record, record.arm("a")).valid is speaks, how
        found = manipulation_finding(record, record.arm("a"))
        assert found.statement.endswith(f"; memorisation is intact in {seeds - lost} of {seeds} seeds.") is speaks
        assert found.estimates["memorised"]["value"] == (seeds - lost) / seeds
    slack = {"train/accuracy": lambda _, step: np.where(step > 90, 0.95, 1.0)}  # 0.04 under the threshold
    record = study(clamp("cdnv", 3.0), own=held | slack)
    assert check(record, record.arm("a")).valid


@pytest.mark.parametrize(("seeds", "own", "base", "speaks"), [
    (9, 2, 2, True), (9, 3, 3, False), (5, 0, 0, True), (5, 0, 1, False)])
def test_five_seeds_must_keep_memorisation_in_the_arm_and_in_the_baseline(seeds, own, base, speaks):
    forget = [lambda seed, _, low=low, lost=lost: np.where((low <= seed) & (seed < low + lost), 0.1, 1.0)
              for low, lost in ((0, own), (4, base))]
    record = study(clamp("cdnv", 3.0), seeds=seeds, memorised_fraction=0.6, held_fraction=0.5,
                   base={"train/accuracy": forget[1]}, own={CDNV: lambda *_: 3.0, "train/accuracy": forget[0]})
    assert check(record, record.arm("a")).valid is speaks


@pytest.mark.parametrize(("evaluations", "seeds", "expected"), [
    (8, 8, "held"), (7, 8, "not held"), (8, 7, "not held")])
@pytest.mark.parametrize("goal", [{"until": 120}, {"start": 50, "until": 150}, {"start": 110}])
def test_a_goal_is_met_at_four_fifths_of_the_evaluations_at_which_it_is_a_goal_in_four_fifths_of_the_seeds(
        goal, evaluations, seeds, expected):
    first = max(20, goal.get("start", 0))  # ten evaluations follow
    met = {CDNV: lambda seed, step: np.where(
        (seed < seeds) & (step >= first) & (step < first + 10 * evaluations), 3.0, 0.1)}
    assert state(study(clamp("cdnv", 3.0, **goal), own=met)) == expected


def test_runs_in_which_the_measure_was_not_taken_while_it_was_held_did_not_hold_it():
    taken = {CDNV: lambda seed, step: np.where((seed < 3) & (step < 120), np.nan, 3.0)}
    assert state(study(clamp("cdnv", 3.0, until=120), own=taken)) == "not held"


@pytest.mark.parametrize(("intervention", "level", "elsewhere"), [(clamp("cdnv", 3.0), 3.0, 1.0), (SUPPRESS, 3.0, 2.0)])
@pytest.mark.parametrize(("met", "expected"), [(12, "held"), (11, "not held")])
def test_whether_a_goal_was_met_is_asked_of_the_seeds_that_memorised(intervention, level, elsewhere, met, expected):
    never = {"train/accuracy": lambda seed, step: (seed < 15) & (step >= 20)}
    for beyond in (level, elsewhere):  # whatever those do that never did
        own = never | {CDNV: lambda seed, _, rest=beyond: np.where(
            seed < met, level, np.where(seed < 15, elsewhere, rest))}
        record = study(intervention, seeds=20, own=own, base={CDNV: lambda *_: 2.0})
        result = check(record, record.arm("a"))
        assert (result.state, result.held, result.memorised) == (expected, pytest.approx(met / 15), 0.75)
    assert result.valid or result.reasons == ("the goal was met in only 11 of the 15 seeds that memorised",)


@pytest.mark.parametrize("fate", ["never", "forgets", "absent"])
@pytest.mark.parametrize(("met", "expected"), [(6, "held"), (5, "not held")])
def test_a_push_is_judged_in_the_seeds_whose_baseline_memorised_and_kept_it(fate, met, expected):
    """The baseline of seeds 7 to 9 is no yardstick, whatever the arm does in them."""
    without = {"train/accuracy": lambda seed, step: np.where(
        (seed >= 7) & ((step > 30) if fate == "forgets" else True), 0.1, 1.0), CDNV: lambda *_: 1.0}
    for others in (1.0, 2.0):
        own = {CDNV: lambda seed, _, rest=others: np.where(seed < met, 2.0, np.where(seed < 7, 1.0, rest))}
        record = study(SUPPRESS, own=own, base=without)
        if fate == "absent":
            kept = record.panel.frame.filter((pl.col("arm") == "a") | (pl.col("seed") < 7))
            record = Record.of(kept, record.spec)
        result = check(record, record.arm("a"))
        assert (result.state, result.held) == (expected, pytest.approx(met / 7))
        assert result.reasons == (() if expected == "held" else (
            "the goal was met in only 5 of the 7 seeds that memorised here and in the baseline",))


@pytest.mark.parametrize(("lost", "speaks"), [(2, True), (3, False)])
def test_an_arm_has_not_lost_what_the_baseline_of_the_same_seed_had_not(lost, speaks):
    own, base = ({"train/accuracy": lambda seed, _, first=first: np.where(seed >= first, 0.1, 1.0)}
                 for first in (10 - lost, 10))
    record = study(clamp("cdnv", 3.0), seeds=16, own=own | {CDNV: lambda *_: 3.0}, base=base)
    result = check(record, record.arm("a"))
    assert (result.valid, result.memorised) == (speaks, (10 - lost) / 16)
    assert speaks or result.reasons == ("memorisation was lost in 3 of 10 seeds in which the baseline kept it",)


@pytest.mark.parametrize(("accuracy", "expected"), [
    (lambda step: (step >= 20) & ((step < 60) | (step >= 120)), "lost memorisation"),  # gone while the hand acts
    (lambda step: (step >= 20) & (step < 120), "held"),  # gone after it
    (lambda step: step >= 120, "lost memorisation"), (lambda step: step >= 90, "held")])
def test_memorisation_is_asked_of_the_time_before_an_intervention_ends(accuracy, expected):
    own = {"train/accuracy": lambda _, step: accuracy(step), CDNV: lambda *_: 3.0,
           "test/accuracy": lambda _, step: step >= 150}
    for intervention in ([clamp("cdnv", 3.0, until=120)], [SUPPRESS, {"kind": "unplug", "step": 120}]):
        record = study(*intervention, own=own)
        (effect,) = effects(record)
        assert (effect.check.state, effect.call == "says nothing") == (expected, expected != "held")


def test_seeds_that_memorised_after_an_intervention_ended_are_not_asked_whether_its_goal_was_met():
    own = {CDNV: lambda *_: 3.0, "train/accuracy": lambda seed, step: step >= np.where(seed < 8, 20, 150)}
    record = study(clamp("cdnv", 3.0, until=120), own=own)
    assert (check(record, record.arm("a")).state, check(record, record.arm("a")).held) == ("held", 1)


def test_a_run_that_diverged_after_an_intervention_ended_has_its_memorisation_until_then():
    record = study(clamp("cdnv", 3.0, until=120), own={CDNV: lambda *_: 3.0}, diverged=range(4))
    assert check(record, record.arm("a")).valid


def test_where_no_seed_memorised_nothing_is_said_of_the_goal():
    record = study(clamp("cdnv", 3.0), own={CDNV: lambda *_: 3.0, "train/accuracy": lambda *_: 0.1})
    result = check(record, record.arm("a"))
    assert (result.state, result.memorised, len(result.reasons)) == ("lost memorisation", 0, 1)
    assert np.isnan(result.held)


def test_a_clamp_is_idle_where_the_seeds_of_the_baseline_that_memorised_meet_its_goal():
    never = {f"{split}/accuracy": lambda seed, step: (seed < 15) & (step >= 20) for split in ("train", "test")}
    never[CDNV] = lambda *_: 3.0
    assert state(study(clamp("cdnv", 3.0), seeds=20, own={CDNV: lambda *_: 3.0}, base=never)) == "idle"


@pytest.mark.parametrize(("goal", "before", "after", "expected"), [
    ({"at_least": 0.5}, 2.0, 0.5, "idle"), ({"at_least": 0.55}, 2.0, 0.5, "held"),  # a goal just beyond is a goal
    ({"at_most": 1.0}, 2.0, 0.5, "held"), ({"at_most": 1.0}, 1.0, 2.0, "idle")])  # promoted: before it generalises
def test_a_clamp_is_idle_where_the_baseline_comes_to_meet_its_goal(goal, before, after, expected):
    own = {CDNV: lambda *_: next(iter(goal.values()))}
    base = {CDNV: lambda _, step: np.where(step >= 100, after, before)}
    assert state(study(clamp("cdnv", **goal), own=own, base=base)) == expected


@pytest.mark.parametrize(("seeds", "expected"), [(8, "idle"), (7, "held")])
def test_a_clamp_is_idle_where_four_fifths_of_the_baseline_s_seeds_meet_its_goal(seeds, expected):
    base = {CDNV: lambda seed, _: np.where(seed < seeds, 3.0, 0.1)}
    assert state(study(clamp("cdnv", 3.0), own={CDNV: lambda *_: 3.0}, base=base)) == expected


@pytest.mark.parametrize(("second", "expected"), [
    (clamp("rnc1", 0.9), "idle"), (clamp("rnc1", 2.0), "held"), ({"kind": "suppress", "measure": "rnc1"}, "held"),
    (clamp("nc1", 2.0), "unmeasured")])
def test_an_arm_with_two_goals_is_idle_if_both_are_and_unmeasured_if_one_is(second, expected):
    record = study(clamp("cdnv", 0.5), second, own={"train/rnc1": lambda *_: 2.0})
    assert state(record) == expected


@pytest.mark.parametrize(("push", "factor", "first", "last", "expected"), [
    (SUPPRESS, 1.3, 20, 130, "held"), (SUPPRESS, 1.2, 20, 130, "not held"), (SUPPRESS, 0.7, 20, 130, "not held"),
    (PROMOTE, 0.77, 20, 130, "held"), (PROMOTE, 0.82, 20, 130, "not held"), (SUPPRESS, 1.3, 140, 200, "held"),
    (SUPPRESS | {"until": 80}, 1.3, 20, 70, "held"), (SUPPRESS | {"until": 80}, 1.3, 80, 200, "not held")])
def test_a_push_moves_the_measure_by_a_quarter_before_or_after_the_baseline_generalises(
        push, factor, first, last, expected):
    own = {CDNV: lambda _, step: np.where((step >= first) & (step <= last), factor, 1.0),
           "test/accuracy": lambda *_: 0.1}  # whenever it does so itself
    base = {CDNV: lambda *_: 1.0, "test/accuracy": lambda _, step: step >= 140}
    assert state(study(push, own=own, base=base)) == expected


def test_levels_are_medians_over_seeds():
    record = study(clamp("cdnv", 3.0), own={CDNV: lambda seed, _: np.where(seed == 0, 1e6, 3.0)})
    assert manipulation_finding(record, record.arm("a")).estimates[f"level {CDNV}"]["value"] == pytest.approx(3)


@pytest.mark.parametrize(("held", "said"), [
    (clamp("relative_flatness", 3.0), True), ({"kind": "promote", "measure": "relative_flatness"}, False),
    (clamp("cdnv", 3.0), False)])
def test_the_samples_that_carry_a_held_mean_are_counted(held, said):
    kappa, share = "train/relative_flatness", "train/relative_flatness_participation"
    base = {kappa: lambda _, step: np.where(step >= 100, 0.5, 2.0),
            share: lambda _, step: np.where(step > 20, 0.4, 0.92)}
    own = {kappa: lambda *_: 3.0, share: lambda seed, step: np.where(step >= 100, 0.001 * seed, 0.5)}
    for columns, known in ((own, True), (own | {share: lambda *_: np.nan}, False)):
        record = study(held, own=columns, base=base)
        statement = manipulation_finding(record, record.arm("a")).statement
        words = "carried by an effective 0.5% of the samples (baseline at memorisation 92.0%)"
        assert (words in statement) is (said and known)
        assert ("carried" in statement) is (said and known)


def test_a_run_without_an_evaluation_before_the_end_of_an_intervention_keeps_its_place():
    record = study()
    late = record.panel.frame.filter((pl.col("replica") != 3) | (pl.col("step") >= 150))
    record = Record.of(late, record.spec)
    before = record.results_before(130)
    assert before["replica"].to_list() == record.panel.replicas["replica"].to_list()
    assert before.filter(replica=3).select("arm", "seed", "diverged", "memorised", "delay_observed").row(0) == (
        "baseline", 3, False, None, False)


@pytest.mark.parametrize(("until", "count"), [(120, 0), (130, 10)])
def test_what_happened_before_an_intervention_ended_needs_all_its_evaluations_before_it(until, count):
    assert study().results_before(until).filter(arm="a")["generalised"].count() == count


def test_before_the_first_evaluation_nothing_had_become_of_anybody():
    before = study(diverged=[3]).results_before(0)
    assert len(before) == 20
    assert before.select("memorised", "generalised", "followed").null_count().row(0) == (20, 20, 20)


def test_a_run_that_diverged_after_the_intervention_ended_had_not_diverged_by_then():
    record = study(diverged=[3])
    assert (record.results_before(150)["diverged"].sum(), record.results["diverged"].sum()) == (0, 1)


@pytest.mark.parametrize("moment", ["memorisation", 60])
@pytest.mark.parametrize(("share", "state"), [(0.8, "held"), (0.2, "not held")])
def test_a_level_relative_to_a_moment_is_checked_against_each_run_s_own_value(moment, share, state):
    """κ is kept at a share of what it was at the moment, seed by seed."""
    def kept(frame):
        start = pl.col("train/relative_flatness").filter(pl.col("step") >= 60).first().over("replica", order_by="step")
        held = (pl.col("arm") == "a") & (pl.col("step") > 60)
        level = pl.when(held).then(start * share).otherwise(pl.col("train/relative_flatness"))
        return frame.with_columns(level.alias("train/relative_flatness"))
    a = ArmTruth("a", interventions=[clamp("relative_flatness", 0.8, relative_to=moment)])
    made = synthetic.study([BASELINE, a])
    found = {item.id: item for item in findings_of(made.record(kept(made.frame)))}
    assert found["manipulation/a"].data["state"] == state
    when = moment if isinstance(moment, str) else f"step {moment}"
    assert f"held ≥ 0.8 × its value at {when}, settled at {share:.2g}" in found["manipulation/a"].statement
    assert found["necessity/flatness"].verdict == ("not necessary" if state == "held" else "inconclusive")


@pytest.mark.parametrize(("goal", "level", "share"), [
    ({"at_least": 10.0}, 8.1, 1), ({"at_least": 10.0}, 7.9, 0),
    ({"at_most": 10.0}, 11.9, 1), ({"at_most": 10.0}, 12.1, 0),
    ({"at_least": -10.0}, -11.9, 1), ({"at_least": -10.0}, -12.1, 0),
    ({"at_most": -10.0}, -8.1, 1), ({"at_most": -10.0}, -7.9, 0)])
def test_a_goal_may_be_missed_by_a_fifth_of_its_size_and_no_more(goal, level, share):
    held = ArmTruth("a", interventions=[clamp("cdnv", **goal)])
    made = synthetic.study([BASELINE, held])
    record = made.record(made.frame.with_columns(pl.lit(level).alias("train/cdnv")))
    (aim,) = next(arm.aims for arm in record.arms if arm.name == "a")
    assert goal_share(record, aim, record.panel.rows("a")) == pytest.approx(share)
