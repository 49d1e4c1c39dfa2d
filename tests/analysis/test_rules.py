"""Rules of onsets and verdicts: read from a plan, and refused where they would decide nothing."""

import pytest

from grokscape.rules import Rules


def test_rules_come_from_the_plan_and_what_it_leaves_out_from_defaults():
    rules = Rules.of({"onset": {"hold": 5}, "verdict": {"alpha": 0.01, "unknown": 3, "primary": {"collapse": "nc1"}}})
    assert (rules.hold, rules.alpha, rules.held_fraction) == (5, 0.01, 0.8)
    assert rules.primary == {"collapse": "nc1"}
    assert Rules.of({}) == Rules()


@pytest.mark.parametrize(("rule", "value", "words"), [
    ("accuracy_margin", 0, "greater than 0"),
    ("accuracy_margin", 1, "less than 1"),
    ("accuracy_margin", [0.05], "a valid number"),
    ("delay_ratio_margin", 1, "greater than 1"),
    ("alpha", 0.5, "less than 0.5"),
    ("alpha", 0, "greater than 0"),
    ("train_threshold", 1.5, "less than or equal to 1"),
    ("train_threshold", "high", "a valid number"),
    ("test_threshold", 0, "greater than 0"),
    ("hold", 0, "greater than or equal to 1"),
    ("hold", 3.5, "a valid integer"),
    ("hold", True, "neither true nor false"),
    ("held_fraction", 2, "less than or equal to 1"),
    ("held_tolerance", -0.1, "greater than or equal to 0"),
    ("held_tolerance", 1, "less than 1"),
    ("memorised_fraction", 1.01, "less than or equal to 1"),
    ("reached_fraction", float("nan"), "a finite number"),
    ("blocked_fraction", -0.5, "greater than or equal to 0"),
    ("blocked_fraction", 1.5, "less than or equal to 1"),
    ("match_factor", 0.9, "greater than or equal to 1"),
    ("beyond_factor", 0.9, "greater than or equal to 1"),
    ("moved_factor", float("inf"), "a finite number"),
    ("minimum_seeds", 1, "greater than or equal to 2"),
    ("final_evaluations", 0, "greater than or equal to 1"),
    ("rescaling_tolerance", 0, "greater than 0"),
    ("bootstrap", 199, "greater than or equal to 200"),
    ("bootstrap", 10**9, "less than or equal to 100000"),
    ("primary", "cdnv", "a valid dictionary"),
])
def test_a_rule_that_decides_nothing_is_refused(rule, value, words):
    part = "onset" if rule == "hold" or "threshold" in rule else "verdict"
    with pytest.raises(ValueError, match=rf"{words}.*; put it right in spec.json$") as caught:
        Rules.of({part: {rule: value}})
    assert rule in str(caught.value)


def test_rules_are_given_by_their_names():
    with pytest.raises(ValueError, match=r"expected rules by their names as verdict in spec.json, got 'strict'"):
        Rules.of({"verdict": "strict"})
