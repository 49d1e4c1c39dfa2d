"""The tables of the page: arms × outcomes, and one row per replica."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from grokscape.plural import counted
from grokscape.report import wording
from grokscape.report.onsets import Outcomes
from grokscape.report.run import Run
from grokscape.report.trajectories import DEFAULT_MEASURES


def outcome_table(run: Run, found: Outcomes) -> dict[str, Any]:
    """Arms × outcomes."""
    measures = [m for m in DEFAULT_MEASURES if m not in ("accuracy",) and m in run.measures()]
    titled = [
        ("Arm", None),
        ("Held?", "def-held"),
        ("Memorised", "def-onset"),
        ("Generalised", "def-onset"),
        ("Median delay", "def-delay"),
        ("Final test accuracy", "def-final-accuracy"),
        *((wording.sentence(f"{run.measure_short(m)} at the end"), f"def-{m}") for m in measures),
    ]
    heads = [{"text": text, "link": link} for text, link in titled]
    rows = [
        {"arm": arm.name, "title": arm.title, "done": arm.done, "cells": _outcome_cells(run, found, arm.name, measures)}
        for arm in run.arms
    ]
    caption = (
        "Counts are seeds; below them, the median step. Measures are medians over seeds on training samples at the "
        "last evaluation. Press an underlined heading for its definition."
    )
    return {"heads": heads, "rows": rows, "caption": caption}


def _outcome_cells(run: Run, found: Outcomes, arm: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    row = found.summary.get(arm)
    if row is None:
        return [_text("–") for _ in range(5 + len(measures))]
    cells = [_held(run, row)]
    for what in ("memorised", "generalised"):
        step = row[f"{what}_step"]
        cells.append(_text(f"{row[what]} of {row['n']}", "no median" if step is None else f"step {step:.0f}"))
    cells.append(_text("–" if row["delay"] is None else f"{row['delay']:.0f}"))
    accuracy, low, high = (row[f"final_accuracy{end}"] for end in ("", "_low", "_high"))
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    cells.append(_text("–" if accuracy is None else f"{100 * accuracy:.1f} %", interval))
    cells += [_text(wording.number(_final_value(run, arm, measure))) for measure in measures]
    return cells


def _text(text: str, small: str = "") -> dict[str, Any]:
    return {"text": text, "small": small}


def _held(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    if row["measure"] is None:
        return _text("–")
    measure = run.measure_short(str(row["measure"]).rpartition("/")[2])
    level = "" if row["level"] is None else f"{measure} {wording.number(row['level'])}"
    return _text(str(row["state"]), wording.sentence(level))


def _final_value(run: Run, arm: str, measure: str) -> float | None:
    splits = run.measures()[measure]
    split = "train" if "train" in splits else splits[0]
    rows = run.frame.filter(pl.col("arm") == arm).drop_nulls(f"{split}/{measure}").group_by("replica").last()
    return rows.select(pl.median(f"{split}/{measure}")).item()


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
        "caption": f"{counted(len(rows), 'replica')}. Press a heading to sort by it; “–” means that it never happened.",
    }


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4g}"
    return "–" if value is None else str(value)
