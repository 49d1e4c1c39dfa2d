"""The tables of the page: arms × outcomes, and one row per replica."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from grokscape.report import wording
from grokscape.report.onsets import Outcomes
from grokscape.report.run import Run
from grokscape.report.trajectories import DEFAULT_MEASURES


def outcome_table(run: Run, found: Outcomes) -> dict[str, Any]:
    """Arms × outcomes."""
    measures = [m for m in DEFAULT_MEASURES if m not in ("accuracy",) and m in run.measures()]
    heads = [
        {"text": "Arm", "link": None, "words": False},
        {"text": "What was done", "link": None, "words": True},
        {"text": "Memorised", "link": "def-onset", "words": False},
        {"text": "Generalised", "link": "def-onset", "words": False},
        {"text": "Final test accuracy", "link": "def-final-accuracy", "words": False},
        *({"text": f"{run.measure_short(m)} at the end", "link": f"def-{m}", "words": False} for m in measures),
    ]
    rows = [
        {"arm": arm.name, "title": arm.title, "cells": _outcome_cells(run, found, arm.name, measures)}
        for arm in run.arms
    ]
    caption = (
        "Counts are seeds; below them, the median step. Measures are medians over seeds on training samples at the "
        "last evaluation."
    )
    return {"heads": heads, "rows": rows, "caption": caption}


def _outcome_cells(run: Run, found: Outcomes, arm: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    rows = found.rows(arm)
    cells = [{"text": run.arm_by_name[arm].done or "nothing", "small": "", "words": True}]
    for what in ("memorised", "generalised"):
        median = found.median_onset(arm, what)
        small = f"step {median:.0f}" if median is not None else "no median"
        cells.append(
            {"text": f"{rows[what].count()} of {rows.height}", "small": small if rows.height else "", "words": False}
        )
    final = rows["final_accuracy"].median() if rows.height else None
    cells.append({"text": "–" if final is None else f"{final:.1%}", "small": "", "words": False})
    for measure in measures:
        value = _final_value(run, arm, measure)
        cells.append({"text": wording.number(value), "small": "", "words": False})
    return cells


def _final_value(run: Run, arm: str, measure: str) -> float | None:
    split = "train" if "train" in run.measures()[measure] else run.measures()[measure][0]
    rows = run.frame.filter(pl.col("arm") == arm).drop_nulls(f"{split}/{measure}").group_by("replica").last()
    return rows[f"{split}/{measure}"].median() if rows.height else None  # pyright: ignore[reportReturnType]


def replica_table(run: Run, found: Outcomes) -> dict[str, Any]:
    """One row per replica, for sorting."""
    names = {
        "replica": "Replica",
        "arm": "Arm",
        "seed": "Seed",
        "memorised": "Memorised at step",
        "generalised": "Generalised at step",
        "delay": "Delay",
        "final_train_accuracy": "Final train accuracy",
        "final_accuracy": "Final test accuracy",
        "diverged": "Diverged",
    }
    rows = []
    for row in found.table.iter_rows(named=True):
        cells = []
        for name in names:
            value = row[name]
            text = run.title_of(value) if name == "arm" else _cell(value)
            cells.append({"text": text, "value": text if name == "arm" else "" if value is None else value})
        rows.append(cells)
    return {
        "heads": [{"text": title} for title in names.values()],
        "rows": rows,
        "caption": f"{len(rows)} replicas. Press a heading to sort by it; “–” means that it never happened.",
    }


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4g}"
    return "–" if value is None else str(value)
