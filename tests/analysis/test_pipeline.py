"""From run folder to findings: what was put in comes out."""

import pytest

import synthetic
from grokscape.analysis import analyze, summary_table
from grokscape.analysis.pipeline import findings_of
from synthetic import HELD, ArmTruth, clamp, record_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("runs") / "quickstart", synthetic.study())


@pytest.fixture(scope="module")
def findings(folder):
    return {item.id: item for item in analyze(folder)}


def test_findings_are_written_beside_the_run(folder, findings):
    assert [item["id"] for item in folder.findings] == list(findings)


def test_flatness_needs_two_hands_and_has_them(findings):
    item = findings["necessity/flatness"]
    assert item.verdict == "consistent with necessary"
    assert set(item.data["deciding"]) == {"flatness-held-30", "bound-held-2000"}
    assert item.p < 0.01
    assert item.n == 8


def test_collapse_that_is_blocked_without_harm_is_not_necessary(findings):
    assert findings["necessity/collapse"].verdict == "not necessary"


def test_summary_counts_what_the_arms_did(folder):
    table = summary_table(folder.trajectory(), folder.spec, folder.columns(), folder.status)
    rows = {row["arm"]: row for row in table.iter_rows(named=True)}
    assert next(iter(rows)) == "baseline"
    assert rows["baseline"]["generalised"] == 8
    assert rows["baseline"]["delay"] == pytest.approx(500, rel=0.3)
    assert rows["flatness-held-30"]["generalised"] == 0
    assert rows["flatness-held-30"]["generalised_step"] is None
    assert rows["flatness-held-30"]["state"] == "held"
    assert rows["flatness-held-30"]["level"] >= 30
    assert rows["flatness-held-30"]["delay"] is None  # half never got there
    assert rows["loss-held"]["level_at_memorisation"] > 2 * rows["loss-held"]["level"]  # it falls until it is held
    assert rows["baseline"]["measure"] is None
    assert rows["baseline"]["valid"]


@pytest.mark.parametrize(("arms", "asked"), [
    (["both"], {"flatness", "collapse"}),
    (["held", "both"], {"collapse"}),  # flatness is a condition of "both"
    (["held", "flat", "both"], {"flatness", "collapse"}),
])
def test_what_is_held_only_beside_what_others_hold_alone_gets_no_verdict(arms, asked):
    flat, collapse = clamp("relative_flatness", 30.0), clamp("cdnv", 1.5)
    both = {"cdnv": 1.5, "relative_flatness": 30.0}
    known = {"held": HELD, "flat": ArmTruth("flat", interventions=[flat], floor={"relative_flatness": 30.0}),
             "both": ArmTruth("both", interventions=[flat, collapse], floor=both)}
    found = findings_of(record_of(*(known[name] for name in arms)))
    for kind in ("necessity", "sufficiency"):
        assert {item.id.split("/")[1] for item in found if item.kind == kind} == asked


def test_what_an_arm_that_harms_holds_besides_is_told_though_no_verdict_is_due_on_it():
    both = ArmTruth("both", interventions=[clamp("cdnv", 3.0), clamp("relative_flatness", 30.0)], never=True,
                    final_accuracy=0.6, floor={"cdnv": 3.0, "relative_flatness": 30.0})
    found = {item.id: item for item in findings_of(record_of(HELD, both))}
    assert found["necessity/collapse"].data["deciding"] == ["both"]
    assert found["necessity/collapse"].data["also_blocked"] == ["relative_flatness"]
    assert "kept flatness (Relative flatness κ) from arising as well" in found["necessity/collapse"].statement
    assert "necessity/flatness" not in found
