"""The table of a study, arm by arm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from grokscape.analysis.design import Arm
from grokscape.analysis.estimation import mean_interval
from grokscape.analysis.manipulation import at_memorisation, check, middle, settled
from grokscape.analysis.record import Record
from grokscape.analysis.survival import delay_curve, onset_curve


def summary_table(frame: pl.DataFrame, spec: Mapping[str, Any] | None = None,
                  columns: Mapping[str, Mapping[str, Any]] | None = None,
                  status: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """One row per arm, baseline first.

    Args:
        frame: a trajectory (see `frames`).
        spec: the study's plan, if any.
        columns: description of the measured columns, if any.
        status: the run's status, which names replicas that diverged.

    Returns:
        Columns: `arm`, `title`, `role`; `n` seeds, `diverged`, `memorised`, `generalised` (counts); `memorised_step`,
        `generalised_step`, `delay` (Kaplan–Meier medians in steps, null if half never got there); `final_accuracy`
        with `final_accuracy_low` and `_high` (95 % interval of the mean over seeds); `measure` (the manipulated
        column, null if none), `level_at_memorisation`, `level` (settled; medians over seeds), `held` (share of seeds
        in which the goal was met), `state` (see docs/verdicts.md), `valid` (whether the arm can say anything).
    """
    return table_of(Record.of(frame, spec, columns, status))


def table_of(record: Record) -> pl.DataFrame:
    """`summary_table` of a record."""
    rows = [_row(record, arm) for arm in record.arms]
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA: dict[str, Any] = {
    "arm": pl.String, "title": pl.String, "role": pl.String, "n": pl.Int64, "diverged": pl.Int64, "memorised": pl.Int64,
    "memorised_step": pl.Float64, "generalised": pl.Int64, "generalised_step": pl.Float64, "delay": pl.Float64,
    "final_accuracy": pl.Float64, "final_accuracy_low": pl.Float64, "final_accuracy_high": pl.Float64,
    "measure": pl.String, "level_at_memorisation": pl.Float64, "level": pl.Float64, "held": pl.Float64,
    "state": pl.String, "valid": pl.Boolean,
}


def _row(record: Record, arm: Arm) -> dict[str, Any]:
    runs = record.results.filter(arm=arm.name)
    place = record.panel.rows(arm.name)
    result = check(record, arm)
    accuracy = mean_interval(record.moment("final_accuracy")[place], 1 - record.rules.alpha)
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (accuracy["low"], accuracy["high"]))
    aim = arm.aims[0] if arm.aims else None
    row = {"arm": arm.name, "title": arm.title, "role": arm.role, "n": len(runs),
           "diverged": int(runs["diverged"].sum()), "memorised": runs["memorised"].count(),
           "generalised": runs["generalised"].count(),
           "memorised_step": onset_curve(runs, "memorised")["median"],
           "generalised_step": onset_curve(runs, "generalised")["median"],
           "delay": delay_curve(runs)["median"], "final_accuracy": accuracy["value"], "final_accuracy_low": low,
           "final_accuracy_high": high, "measure": aim.column if aim else None,
           "held": None if np.isnan(result.held) else result.held, "state": result.state, "valid": result.valid,
           "level_at_memorisation": None, "level": None}
    if aim:
        level = middle(settled(record, aim.column, aim.relative_to)[place])
        early = middle(at_memorisation(record, aim.column, aim.relative_to)[place])
        row["level"], row["level_at_memorisation"] = (None if np.isnan(x) else x for x in (level, early))
    return row
