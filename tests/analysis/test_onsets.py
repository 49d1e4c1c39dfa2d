"""Onsets against a plain loop over evaluations, and the cases where there is none."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscape.analysis.frames import Panel
from grokscape.analysis.manipulation import intact_rows
from grokscape.analysis.onsets import final, outcomes, threshold_onset
from grokscape.analysis.record import Record
from grokscape.rules import Rules


def slow_onset(values, steps, threshold, hold):
    """First crossing, evaluation before the onset, onset, by walking through the evaluations that have a value."""
    kept = [(step, value) for step, value in zip(steps, values) if not np.isnan(value)]
    first = next((step for step, value in kept if value >= threshold), None)
    for place in range(len(kept) - hold + 1):
        if all(value >= threshold for _, value in kept[place : place + hold]):
            return first, kept[place - 1][0] if place else None, kept[place][0]
    return first, None, None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.5, 0.94, 0.95, 0.99, float("nan")]), max_size=12), st.integers(1, 4))
def test_onset_is_what_walking_through_the_evaluations_finds(values, hold):
    steps = np.arange(len(values), dtype=float)[None] * 7
    found = threshold_onset(np.array([values], dtype=float).reshape(1, -1), steps, 0.95, hold)
    got = [None if np.isnan(x[0]) else float(x[0]) for x in (found.first, found.lower, found.step)]
    assert tuple(got) == slow_onset(values, steps[0], 0.95, hold)


def test_a_spike_is_a_first_crossing_but_no_onset():
    values = np.array([[0.0, 0.96, 0.2, 0.96, 0.97, 0.98]])
    found = threshold_onset(values, np.arange(6.0)[None], 0.95, 3)
    assert (found.first[0], found.lower[0], found.step[0], found.followed[0]) == (1, 2, 3, 5)


def test_hold_below_one_is_refused():
    with pytest.raises(ValueError, match="hold must be at least 1"):
        threshold_onset(np.zeros((1, 2)), np.zeros((1, 2)), 0.5, 0)


def test_outcomes_keep_the_run_that_never_generalises_and_the_one_that_diverged():
    steps = list(range(0, 100, 10))
    frame = pl.DataFrame({
        "arm": ["baseline"] * 30, "seed": [0] * 10 + [1] * 10 + [2] * 10, "step": steps * 3,
        "train/accuracy": ([0.0, 1.0] + [1.0] * 8) * 2 + [0.0, 1.0, 1.0, 1.0] + [np.nan] * 6,
        "test/accuracy": [0.0] * 5 + [1.0] * 5 + [0.0] * 10 + [0.0, 0.0, 0.0, 0.0] + [np.nan] * 6,
    })
    table = outcomes(Panel.of(frame), Rules())
    assert table["diverged"].to_list() == [False, False, True]
    assert table["memorised"].to_list() == [10, 10, 10]
    assert table["generalised"].to_list() == [50, None, None]
    assert table["generalised_lower"].to_list() == [40, None, None]
    assert table["delay"].to_list() == [40, 80, 80]  # the diverged run counts as never generalising, to the last step
    assert table["delay_observed"].to_list() == [True, False, False]


def test_a_spike_at_the_end_takes_neither_the_final_accuracy_nor_memorisation_with_it():
    spiky = [0.0] + [1.0] * 6 + [0.6, 1.0, 1.0]
    frame = pl.DataFrame({
        "arm": ["baseline"] * 20, "seed": [0] * 10 + [1] * 10, "step": list(range(0, 100, 10)) * 2,
        "train/accuracy": spiky + [0.0] + [1.0] * 6 + [0.6] * 3, "test/accuracy": spiky + [1.0] * 10})
    panel = Panel.of(frame)
    table = outcomes(panel, Rules())
    assert table["final_accuracy"].to_list() == [1.0, 1.0]
    assert table["final_train_accuracy"].to_list() == [1.0, 0.6]  # the second run lost it for good
    record = Record.of(frame, {"arms": [{"name": "baseline", "role": "baseline"}]})
    assert intact_rows(record, np.arange(2)).tolist() == [True, False]


@pytest.mark.parametrize(("right", "there"), [(19, True), (18, False)])
def test_a_share_that_equals_the_threshold_is_there_in_float32_too(right, there):
    share = float(np.float32(right) / np.float32(20))  # 19 / 20 is 0.949999988
    assert bool(threshold_onset(np.full((1, 3), share), np.arange(3.0)[None], 0.95, 3).observed) is there


def test_the_final_value_is_the_median_of_as_many_last_measured_values_as_asked_for():
    values = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, np.nan, 2, 3, np.nan, 5, 6, np.nan, 8, np.nan]])
    assert final(values, 5).tolist() == [7, 5]
    assert final(values, 2).tolist() == [8.5, 7]
    assert np.isnan(final(np.full((1, 3), np.nan), 5)).all()
