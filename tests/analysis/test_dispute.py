"""The claims of three papers, judged on made-up studies that agree with them or do not."""

import polars as pl
import pytest

import synthetic
from grokscape.analysis.dispute import CLAIMS
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
