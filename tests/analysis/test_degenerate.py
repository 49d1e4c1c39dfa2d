"""Studies in which something is missing: every one is answered with findings that go to JSON, none crashes."""

import json

import numpy as np
import polars as pl
import pytest

import synthetic
from grokscape.analysis import analyze, analyze_frame, summary_table
from grokscape.analysis.pipeline import findings_of
from grokscape.store import RunFolder
from synthetic import BASELINE, QUICKSTART, ArmTruth, clamp

HELD = ArmTruth("held", interventions=[clamp("relative_flatness", 30.0)], floor={"relative_flatness": 30.0})


def findings(study):
    """Findings by id, after a way through JSON; the summary is made as well."""
    summary_table(study.frame, study.spec, study.columns, study.status)
    found = findings_of(study.record())
    assert json.loads(json.dumps([item.to_dict() for item in found], allow_nan=False))
    assert len({item.id for item in found}) == len(found)
    return {item.id: item for item in found}


def with_columns(study, **changes):
    return synthetic.Study(study.frame.with_columns(**changes), study.columns, study.spec, study.status)


def test_nobody_generalised():
    arms = [ArmTruth("baseline", role="baseline", never=True, final_accuracy=0.3), ArmTruth(**{
        **HELD.__dict__, "never": True, "final_accuracy": 0.3})]
    found = findings(synthetic.study(arms))
    assert found["onset/baseline"].estimates["generalised"]["value"] == 0
    assert found["necessity/flatness"].verdict == "inconclusive"
    assert found["lead_lag/train/cdnv"].verdict == "no clear order"
    assert found["dispute/flatness-with-generalisation"].verdict == "undecided"
    assert found["dispute/collapse-with-memorisation"].verdict == "undecided"


def test_nobody_memorised():
    study = synthetic.study(seeds=8)
    found = findings(with_columns(study, **{"train/accuracy": pl.min_horizontal("train/accuracy", 0.97)}))
    assert found["onset/baseline"].estimates["generalised"]["value"] == 1
    for column in ("train/cdnv", "train/relative_flatness"):
        item = found[f"lead_lag/{column}"]
        assert item.verdict == "no clear order"
        assert "no run of the baseline memorised" in item.statement
    for claim in ("flatness-with-generalisation", "collapse-with-memorisation", "held-out-ratio-leads"):
        assert found[f"dispute/{claim}"].verdict == "undecided"
        assert "no baseline run memorised" in found[f"dispute/{claim}"].statement
    assert found["hazard"].statement.startswith("No run memorised")
    held = found["manipulation/flatness-held-30"]
    assert "in 8 of 8 seeds memorisation was not reached, or lost, as in all of the baseline's" in held.statement


def test_what_does_not_move_after_memorisation_is_said_of_runs_that_memorised():
    study = synthetic.study(seeds=8)
    capped = pl.when(pl.col("seed") < 2).then(pl.min_horizontal("train/accuracy", 0.97)).otherwise("train/accuracy")
    found = findings(with_columns(study, **{"train/accuracy": capped, "train/cdnv": pl.lit(1.0)}))
    assert found["lead_lag/train/cdnv"].verdict == "does not move"
    assert "after memorisation in every run that memorised" in found["lead_lag/train/cdnv"].statement


def test_everybody_at_once():
    study = synthetic.study([BASELINE, HELD], spread=0.0)
    onset = pl.when(pl.col("step") >= 300).then(1.0).otherwise(0.1)
    early = pl.when(pl.col("step") >= 50).then(1.0).otherwise(0.1)
    found = findings(with_columns(study, **{"test/accuracy": onset, "train/accuracy": early}))
    assert found["onset/baseline"].estimates["median step generalised"]["value"] == 300
    assert "nothing can be said" in found["hazard"].statement


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_give_numbers_and_no_verdict(seeds):
    found = findings(synthetic.study(QUICKSTART, seeds=seeds))
    assert found["necessity/flatness"].verdict == "inconclusive"
    assert "a verdict needs 5" in found["manipulation/flatness-held-30"].statement
    assert found["survival/collapse-held"].estimates["delay ratio"]["value"] is not None


def test_runs_that_diverged_are_counted_and_void_their_arm():
    held = ArmTruth(**{**HELD.__dict__, "diverge": (0, 1, 2)})
    study = synthetic.study([BASELINE, held])
    found = findings(study)
    assert "memorisation was lost in 3 of 8 seeds" in found["manipulation/held"].statement
    assert found["manipulation/held"].verdict == "failed"
    assert "3 diverged" in found["onset/held"].statement
    assert found["necessity/flatness"].verdict == "inconclusive"


def test_a_run_without_any_row_is_known_from_the_status():
    study = synthetic.study([BASELINE, ArmTruth(**{**HELD.__dict__, "diverge": (7,)})])
    gone = synthetic.Study(study.frame.filter(~((pl.col("arm") == "held") & (pl.col("seed") == 7))), study.columns,
                           study.spec, study.status)
    found = findings(gone)
    assert "1 diverged" in found["onset/held"].statement
    assert found["onset/held"].n == 8


def test_a_column_of_nan_and_a_measure_that_never_moves():
    study = synthetic.study([BASELINE, HELD])
    found = findings(with_columns(study, **{"train/cdnv": pl.lit(float("nan")), "test/cdnv": pl.lit(2.0),
                                            "train/rnc1": pl.lit(None, dtype=pl.Float64)}))
    assert "lead_lag/train/cdnv" not in found
    assert found["lead_lag/test/cdnv"].verdict == "does not move"
    assert found["lead_lag/test/cdnv"].p == 1


def test_a_manipulated_measure_that_was_not_logged():
    study = synthetic.study([BASELINE, HELD])
    found = findings(synthetic.Study(study.frame.drop("train/relative_flatness"), study.columns, study.spec,
                                     study.status))
    assert found["manipulation/held"].verdict == "unmeasured"
    assert found["necessity/flatness"].verdict == "inconclusive"


def test_zeros_and_negative_values():
    study = synthetic.study([BASELINE, HELD])
    found = findings(with_columns(study, **{"train/rnc1": pl.lit(0.0), "params/weight_norm": pl.col("train/cdnv") - 1,
                                            "train/loss": pl.lit(0.0)}))
    assert found["lead_lag/train/rnc1"].verdict == "does not move"


def test_no_rows_yet(tmp_path):
    study = synthetic.study(QUICKSTART)
    folder = RunFolder.create(tmp_path / "run", study.spec)
    found = {item.id: item for item in analyze(folder)}
    assert found["onset/baseline"].n == 0
    assert found["necessity/flatness"].verdict == "inconclusive"
    assert summary_table(folder.trajectory(), folder.spec)["n"].to_list() == [0] * len(QUICKSTART)


def test_the_interval_of_an_accuracy_stays_between_zero_and_one():
    study = synthetic.study(QUICKSTART, seeds=2)
    for accuracy in (0.05, 0.95):
        spread = pl.when(pl.col("seed") == 0).then(accuracy - 0.05).otherwise(accuracy + 0.05)
        frame = study.frame.with_columns(spread.alias("test/accuracy"))
        table = summary_table(frame, study.spec, study.columns, study.status)
        assert table["final_accuracy_low"].min() >= 0
        assert table["final_accuracy_high"].max() <= 1


def test_one_evaluation_only():
    study = synthetic.study(QUICKSTART)
    findings(synthetic.Study(study.frame.filter(pl.col("step") == 0), study.columns, study.spec, study.status))


def test_a_run_that_was_cut_short():
    study = synthetic.study(QUICKSTART)
    found = findings(synthetic.Study(study.frame.filter(pl.col("step") < 300), study.columns, study.spec,
                                     {"state": "interrupted"}))
    assert found["necessity/collapse"].verdict == "inconclusive"


def test_arms_with_other_seeds_than_the_baseline_have_no_pairs():
    study = synthetic.study([BASELINE, HELD])
    apart = pl.when(pl.col("arm") == "held").then(pl.col("seed") + 100).otherwise(pl.col("seed"))
    found = findings(with_columns(study, seed=apart))
    assert found["survival/held"].n == 0
    assert found["necessity/flatness"].verdict == "inconclusive"


def test_baseline_without_delay_leaves_the_ratio_out():
    study = synthetic.study([BASELINE, HELD])
    found = findings(with_columns(study, **{"test/accuracy": pl.col("train/accuracy")}))
    assert found["survival/held"].estimates["delay ratio"]["value"] is None


def test_a_frame_without_a_plan():
    frame = synthetic.study([BASELINE]).frame.select("seed", "step", "train/accuracy", "test/accuracy", "train/cdnv")
    found = {item.id for item in analyze_frame(frame)}
    assert {"onset/baseline", "lead_lag/train/cdnv"} <= found
    assert not any(name.startswith("necessity") for name in found)


def test_infinities_are_not_numbers():
    study = synthetic.study([BASELINE, HELD])
    found = findings(with_columns(study, **{"train/relative_flatness": pl.when(pl.col("step") == 100).then(np.inf)
                                            .otherwise(pl.col("train/relative_flatness"))}))
    assert found["manipulation/held"].verdict == "held"
