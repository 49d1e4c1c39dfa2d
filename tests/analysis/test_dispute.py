"""The claims of three papers, judged on made-up studies that agree with them or do not."""

import polars as pl
import pytest

import synthetic
from grokscape.analysis.dispute import CLAIMS, _side
from grokscape.analysis.estimation import estimate
from grokscape.analysis.finding import Finding
from grokscape.analysis.pipeline import findings_of


def findings(**changes):
    made = synthetic.study(seeds=10)
    return {item.id: item for item in findings_of(made.record(made.frame.with_columns(**changes)))}


def test_each_claim_has_a_finding_with_its_source():
    found = findings()
    for claim in CLAIMS:
        item = found[f"dispute/{claim.name}"]
        assert item.subject["source"] == claim.source
        assert claim.source in item.statement
        assert item.verdict in ("agrees", "disagrees", "undecided")


def test_the_made_up_study_was_made_to_agree_with_all():
    found = findings()
    assert {claim.name: found[f"dispute/{claim.name}"].verdict for claim in CLAIMS} == {
        claim.name: "agrees" for claim in CLAIMS}
    assert all("): this study agrees; " in found[f"dispute/{claim.name}"].statement for claim in CLAIMS)


def test_collapse_that_waits_for_generalisation_disagrees():
    found = findings(**{"train/cdnv": pl.col("test/cdnv")})
    assert found["dispute/collapse-with-memorisation"].verdict == "disagrees"
    assert "): this study disagrees; " in found["dispute/collapse-with-memorisation"].statement


def test_a_held_out_ratio_that_mirrors_test_accuracy_does_not_lead():
    found = findings(**{"test/ildr": 1 + 5 * pl.col("test/accuracy")})
    assert found["dispute/held-out-ratio-leads"].verdict == "undecided"
    assert "): this study leaves it undecided; " in found["dispute/held-out-ratio-leads"].statement


def test_population_variance_that_falls_early_disagrees():
    found = findings(**{"test/rnc1": pl.col("train/rnc1")})
    assert found["dispute/population-variance"].verdict == "disagrees"


@pytest.mark.parametrize(("claim", "column"), [
    ("flatness-with-generalisation", "train/relative_flatness"), ("population-variance", "test/rnc1")])
def test_what_rises_with_generalisation_does_not_fall_with_it(claim, column):
    found = findings(**{column: 1 / pl.col(column)})
    assert found[f"dispute/{claim}"].verdict == "disagrees"
    assert "it rises after memorisation in 10 of the 10 runs" in found[f"dispute/{claim}"].statement


def test_a_claim_about_a_measure_that_was_not_taken_stays_undecided():
    made = synthetic.study(seeds=6)
    found = {item.id: item for item in findings_of(made.record(made.frame.drop("test/ildr")))}
    assert found["dispute/held-out-ratio-leads"].verdict == "undecided"
    assert "not measured" in found["dispute/held-out-ratio-leads"].statement


@pytest.mark.parametrize(("claim", "verdict", "answer"), [
    ("flatness-necessary", "consistent with necessary", "agrees"), ("flatness-necessary", "not necessary", "disagrees"),
    ("flatness-necessary", "belongs to the manipulation", "disagrees"),
    ("flatness-necessary", "inconclusive", "undecided"),
    ("collapse-not-necessary", "not necessary", "agrees"), ("collapse-not-necessary", "inconclusive", "undecided"),
    ("collapse-not-necessary", "consistent with necessary", "disagrees"),
    ("collapse-not-necessary", "belongs to the manipulation", "undecided")])  # harm that is not the level's
def test_a_claim_about_need_is_held_against_the_verdict(claim, verdict, answer):
    name = claim.split("-")[0]
    found = {f"necessity/{name}": Finding(f"necessity/{name}", "necessity", {}, "", verdict)}
    assert next(item for item in CLAIMS if item.name == claim).judge(found)[0] == answer


@pytest.mark.parametrize(("changes", "position", "expected"), [
    ({}, (0.9, 0.6, 1.2), "generalisation"), ({}, (0.9, 0.4, 1.4), "unknown"), ({}, (0.1, -0.2, 0.4), "memorisation"),
    ({}, (0.1, -0.5, 0.7), "unknown"), ({}, (0.9, None, None), "unknown"), ({"fell": 5}, (0.9, 0.6, 1.2), "neither"),
    ({"fell": 6}, (0.9, 0.6, 1.2), "generalisation"), ({"enough": False}, (0.9, 0.6, 1.2), "unknown"),
    ({"verdict": "does not move"}, (None, None, None), "memorisation")])
def test_what_falls_with_generalisation_falls_and_lies_above_one_half_interval_included(changes, position, expected):
    changes = dict(changes)
    verdict = changes.pop("verdict", "lags")
    data = {"enough": True, "judged": 10, "started": 10, "fell": 10, "moved": 10} | changes
    assert _side(Finding("", "lead_lag", {}, "", verdict, {"position": estimate(*position)}, data=data))[0] == expected


@pytest.mark.parametrize(("verdict", "answer"), [
    ("leads", "agrees"), ("lags", "disagrees"), ("no clear order", "undecided"), ("does not move", "undecided")])
def test_a_claim_about_order_is_held_against_lead_and_lag(verdict, answer):
    data = {"enough": True, "judged": 10, "started": 10, "fell": 10, "moved": 10}
    found = {"lead_lag/test/ildr": Finding("", "lead_lag", {}, "", verdict, data=data)}
    assert next(item for item in CLAIMS if item.name == "held-out-ratio-leads").judge(found)[0] == answer


def test_the_ranking_holds_all_disputed_measures_on_the_same_seeds():
    rows = findings()["dispute"].data["ranking"]
    assert {row["column"] for row in rows} == {
        "train/relative_flatness", "train/relative_flatness_bound", "train/cdnv", "test/cdnv", "train/rnc1",
        "test/rnc1", "test/ildr"}
    assert [row["concordance_adjusted"] for row in rows] == sorted(
        (row["concordance_adjusted"] for row in rows), reverse=True)
    by_column = {row["column"]: row for row in rows}
    assert by_column["train/relative_flatness"]["necessity"] == "consistent with necessary"
    assert by_column["train/rnc1"]["necessity"] is None


def test_measures_are_ranked_by_what_is_known_of_them_if_anything_is():
    told = "ranks first by how well it foretells generalisation beside the train loss"
    assert told in findings()["dispute"].statement
    together = synthetic.record_of(seeds=6)  # too few to tell who foretells
    assert "ranks first by" in {item.id: item for item in findings_of(together)}["dispute"].statement
    never = synthetic.study([synthetic.ArmTruth("baseline", role="baseline", never=True, final_accuracy=0.5)], seeds=6)
    found = {item.id: item for item in findings_of(never.record())}["dispute"]
    assert found.statement.startswith("Nothing ranks the ")
    assert "no run tells how near to generalisation they move" in found.statement
