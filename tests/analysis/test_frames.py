"""Anybody's training log: what it needs, what is filled in, and what is said when something is missing."""

import numpy as np
import polars as pl
import pytest

from grokscape.analysis import FrameError, analyze_frame, summary_table
from grokscape.analysis.frames import Panel, tidy

MINIMAL = {"step": [0, 10, 20, 30, 40], "train/accuracy": [0.1, 1.0, 1.0, 1.0, 1.0],
           "test/accuracy": [0.1, 0.2, 0.96, 0.97, 0.98]}


def test_three_columns_are_enough():
    found = {item.id: item for item in analyze_frame(pl.DataFrame(MINIMAL))}
    assert found["onset/baseline"].estimates["median step generalised"]["value"] == 20


def test_a_csv_of_two_arms_without_a_plan(tmp_path):
    generator = np.random.default_rng(0)
    rows = ["arm,seed,step,train/accuracy,test/accuracy,train/cdnv"]
    for arm, delay in (("plain", 100), ("dropout", 300)):
        for seed in range(6):
            turn = delay + int(generator.integers(0, 40))
            rows += [f"{arm},{seed},{step},{float(step >= 20)},{float(step >= turn)},{2.0 if step < turn else 0.1}"
                     for step in range(0, 500, 10)]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    frame = pl.read_csv(tmp_path / "log.csv")
    table = summary_table(frame)
    assert table["arm"].to_list() == ["plain", "dropout"]
    assert table["generalised"].to_list() == [6, 6]
    found = {item.id: item for item in analyze_frame(frame)}
    assert found["survival/dropout"].estimates["delay ratio"]["low"] > 2
    assert found["lead_lag/train/cdnv"].subject["property"] == "collapse"


@pytest.mark.parametrize("column", ["step", "train/accuracy", "test/accuracy"])
def test_a_missing_column_is_named(column):
    with pytest.raises(FrameError, match=rf"it lacks {column} and has .*Rename yours"):
        tidy(pl.DataFrame({name: values for name, values in MINIMAL.items() if name != column}))


def test_a_measure_that_is_no_number_is_named():
    with pytest.raises(FrameError, match="train/cdnv hold String"):
        tidy(pl.DataFrame(MINIMAL | {"train/cdnv": ["low"] * 5}))


def test_a_repeated_evaluation_counts_once_and_the_later_row_wins():
    frame = pl.DataFrame({"step": [0, 10, 10], "train/accuracy": [0.0, 0.5, 1.0], "test/accuracy": [0.0, 0.0, 0.3]})
    assert tidy(frame)["train/accuracy"].to_list() == [0.0, 1.0]


def test_rows_come_in_any_order_and_runs_may_be_of_any_length():
    frame = pl.DataFrame({"arm": ["b", "a", "a", "b", "b"], "step": [20, 0, 10, 0, 10],
                          "train/accuracy": [3.0, 1.0, 2.0, 1.0, 2.0], "test/accuracy": [0.0] * 5})
    panel = Panel.of(frame)
    assert panel["train/accuracy"][panel.rows("b")[0]].tolist() == [1, 2, 3]
    assert panel["train/accuracy"][panel.rows("a")[0]][:2].tolist() == [1, 2]
    assert np.isnan(panel["train/accuracy"][panel.rows("a")[0]][2])


def test_integers_and_nulls_become_floats_and_gaps():
    panel = Panel.of(pl.DataFrame(MINIMAL | {"train/cdnv": [1, None, 3, 4, 5]}))
    assert np.isnan(panel["train/cdnv"][0, 1])
    assert panel["train/cdnv"][0, 2] == 3


def test_text_columns_without_a_split_are_left_alone():
    assert analyze_frame(pl.DataFrame(MINIMAL | {"note": ["x"] * 5}))


@pytest.mark.parametrize(("column", "values", "broken"), [
    ("train/loss", [1.0, 1.0, 1.0, 1.0, np.nan], True), ("train/accuracy", [0.1, 1.0, 1.0, 1.0, np.nan], True),
    ("train/loss", [np.inf, 1.0, 1.0, 1.0, 1.0], False), ("train/loss", [1.0, 1.0, 1.0, 1.0, None], False),
    ("test/accuracy", [0.1, 0.2, 0.96, 0.97, np.nan], False)])
def test_a_run_broke_down_if_its_last_training_loss_or_accuracy_is_not_finite(column, values, broken):
    assert Panel.of(pl.DataFrame(MINIMAL | {column: values})).diverged.tolist() == [broken]


def test_a_run_diverged_from_step_zero_on_and_one_that_is_listed_without_rows_did_only_if_it_says_so():
    listed = [{"replica": 0, "diverged_at": 0}, {"replica": 1, "seed": 1, "diverged_at": None},
              {"replica": 2, "seed": 2, "diverged_at": 5}]
    panel = Panel.of(pl.DataFrame(MINIMAL), {"replicas": listed})
    assert panel.replicas.select("seed", "diverged").rows() == [(0, True), (2, True)]


def test_runs_without_a_seed_are_paired_in_the_order_of_their_replica_and_runs_are_told_by_seed():
    frame = pl.DataFrame({"arm": ["a", "a", "b", "b"], "replica": [7, 3, 5, 9], "step": [0] * 4,
                          "train/accuracy": [0.7, 0.3, 0.5, 0.9], "test/accuracy": [0.0] * 4})
    panel = Panel.of(frame)
    assert panel["train/accuracy"][panel.paired("a", "b")][:, :, 0].tolist() == [[0.3, 0.7], [0.5, 0.9]]
    panel = Panel.of(frame.with_columns(seed=pl.Series([1, 2, 2, 1])))
    assert panel["train/accuracy"][panel.rows("a")][:, 0].tolist() == [0.7, 0.3]


def test_pairs_are_the_seeds_that_both_arms_have():
    frame = pl.DataFrame({"arm": ["a", "a", "b", "b"], "seed": [1, 2, 2, 3], "step": [0] * 4,
                          "train/accuracy": [0.0] * 4, "test/accuracy": [0.0] * 4})
    panel = Panel.of(frame)
    own, base = panel.paired("a", "b")
    assert panel.seeds[own].tolist() == panel.seeds[base].tolist() == [2]
