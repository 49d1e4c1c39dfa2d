"""What a plan says: rules by name, what each intervention aims at, which hand it is."""

import pytest

from grokscape.analysis.design import arms_of, column_of, describe
from grokscape.analysis.record import Record
from synthetic import BASELINE, COLUMNS, clamp, study


def arm(*interventions, **extra):
    planned = {"name": "a", "interventions": list(interventions), **extra}
    return arms_of({"arms": [{"name": "baseline", "role": "baseline"}, planned]}, COLUMNS, [])[1]


@pytest.mark.parametrize(("intervention", "goal", "sign"), [
    (clamp("relative_flatness", 3.0), "block", 1),  # κ small is flat, so keeping it up blocks
    (clamp("relative_flatness", at_most=3.0), "promote", -1),
    (clamp("relative_flatness", 1.0, 3.0), "other", 0),
    ({"kind": "suppress", "measure": "cdnv"}, "block", 1),
    ({"kind": "promote", "measure": "cdnv"}, "promote", -1),
    (clamp("test/ildr", at_most=2.0), "block", -1),  # here large is collapsed
    ({"kind": "suppress", "measure": "test/ildr"}, "block", -1),
    ({"kind": "promote", "measure": "test/ildr"}, "promote", 1),
    (clamp("weight_norm", 30.0), "other", 1),  # no direction is known to be good
])
def test_goal_follows_from_the_measure_s_direction(intervention, goal, sign):
    (aim,) = arm(intervention).aims
    assert (aim.goal, aim.sign) == (goal, sign)


def test_a_level_may_be_a_factor_of_the_value_at_a_moment():
    for moment in (0, 500, "memorisation"):
        aim = arm({"kind": "clamp", "measure": "cdnv", "at_least": 0.9, "relative_to": moment}).aims[0]
        assert aim.relative_to == moment


def test_unplug_ends_the_arm_s_interventions():
    both = arm(clamp("cdnv", 1.2), clamp("loss", 0.1, until=300), {"kind": "unplug", "step": 500})
    assert [aim.until for aim in both.aims] == [500, 300]
    assert both.until == 500
    assert [aim.until for aim in arm(clamp("cdnv", 1.2, until=700), {"kind": "unplug", "step": 500}).aims] == [500]
    assert arm(clamp("cdnv", 1.2)).until is None
    assert arm(clamp("cdnv", 1.2), clamp("loss", 0.1, until=300)).until is None  # one goes on


def test_hands_are_measures_caps_and_settings_but_not_doses():
    assert arm(clamp("cdnv", 1.2)).hand == arm({"kind": "suppress", "measure": "cdnv", "strength": 1e-3}).hand == "cdnv"
    assert arm({"kind": "weight_cap", "at_most": 5.0}, clamp("cdnv", 1.2)).hand == "cdnv + weight_cap"
    assert arm(optimizer={"lr": 0.1}).hand == "optimizer.lr"
    assert arm(clamp("cdnv", 1.2), {"kind": "unplug", "step": 5}).hand == "cdnv"


def test_the_baseline_comes_first_and_unplanned_arms_last():
    spec = {"arms": [{"name": "x"}, {"name": "plain", "role": "baseline"}]}
    assert [one.name for one in arms_of(spec, {}, ["plain", "x", "new"])] == ["plain", "x", "new"]
    assert [one.role for one in arms_of({}, {}, ["b", "a"])] == ["baseline", "manipulation"]
    assert arms_of({}, {}, ["b", "baseline"])[0].name == "baseline"
    assert arms_of({}, {}, []) == []


def test_columns_of_a_measure_and_what_is_known_without_a_description():
    assert column_of("cdnv", COLUMNS) == "train/cdnv"
    assert column_of("weight_norm", COLUMNS) == "params/weight_norm"
    assert column_of("test/cdnv", COLUMNS) == "test/cdnv"
    assert column_of("unknown", COLUMNS) == "train/unknown"
    assert describe("train/nc1", {})["property"] == "collapse"
    assert describe("train/whatever", {})["direction"] == "neither"


def test_a_shift_counts_by_its_size_whichever_direction_the_property_has():
    made = study([BASELINE])
    record = Record.of(made.frame, made.spec, made.columns)
    assert [record.sign(name) for name in ("train/cdnv", "test/ildr", "params/weight_norm")] == [1, -1, 1]
