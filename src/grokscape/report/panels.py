"""What the page's script needs to draw trajectories: summaries of every column, and which panels to begin with."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from grokscape.report.html import pair, summary_json
from grokscape.report.interactive import DASHES
from grokscape.report.onsets import Outcomes
from grokscape.report.plate import Missing
from grokscape.report.run import Run
from grokscape.report.trajectories import DEFAULT_MEASURES, SEEDS_SHOWN, is_logarithmic, shown_steps, summarise

SPLIT_TITLES = {
    "train": "training",
    "test": "held-out",
    "cross": "held-out around training means",
    "params": "parameters",
}


def trajectories(run: Run, found: Outcomes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template and the script need to draw trajectories."""
    steps = shown_steps(run)
    measures = run.measures() if len(steps) else {}
    order = [m for m in DEFAULT_MEASURES if m in measures] + [m for m in measures if m not in DEFAULT_MEASURES]
    columns: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for measure in order:
        summaries = {split: summarise(run, f"{split}/{measure}", steps) for split in measures[measure]}
        columns |= {
            f"{split}/{measure}": {arm: summary_json(s) for arm, s in per_arm.items()}
            for split, per_arm in summaries.items()
        }
        every = [s for per_arm in summaries.values() for s in per_arm.values()]
        described[measure] = {
            "title": run.measure_title(measure),
            "splits": measures[measure],
            "percent": measure == "accuracy",
            "log": measure != "accuracy" and is_logarithmic(every),
        }
    onsets = {
        arm.name: {"m": found.median_onset(arm.name, "memorised"), "g": found.median_onset(arm.name, "generalised")}
        for arm in run.arms
    }
    arms = [
        {"name": arm.name, "title": arm.title, "colour": pair(arm.colour), "dash": DASHES[arm.dash]} for arm in run.arms
    ]
    log_steps = run.last_step > 200
    payload = {
        "steps": steps.tolist(),
        "columns": columns,
        "measures": described,
        "arms": arms,
        "onsets": onsets,
        "splits": SPLIT_TITLES,
        "log_steps": log_steps,
    }
    return _panels(run, order, measures, len(steps), log_steps), payload


def _panels(
    run: Run, order: Sequence[str], measures: Mapping[str, Sequence[str]], steps: int, log_steps: bool
) -> dict[str, Any]:
    splits = [
        {"name": s, "title": SPLIT_TITLES[s]}
        for s in ("train", "test", "cross")
        if any(s in v for v in measures.values())
    ]
    few = (
        max((run.frame.filter(pl.col("arm") == arm.name)["replica"].n_unique() for arm in run.arms), default=0)
        <= SEEDS_SHOWN
    )
    caption = (
        "All panels share one axis of steps: point anywhere, or move the slider, to read every panel at that step; "
        "drag "
        "to zoom all, double-click to zoom out. Lines are medians over seeds, bands reach from the 10th to the 90th "
        "percentile"
        + (", thin lines are single seeds" if few else "")
        + ". Triangles on the axis mark the median onset of memorisation (hollow) and of generalisation (filled)."
    )
    panels = [
        {
            "measure": m,
            "title": run.measure_title(m),
            "shown": m in DEFAULT_MEASURES,
            "alt": f"{run.measure_title(m)} over training steps, one line per arm; the table beside it reads it",
        }
        for m in order
    ]
    missing = Missing(
        "no-trajectories",
        "Trajectories",
        "Nothing has been measured yet.",
        "Write the report again once the run has reached its first evaluation.",
    )
    return {
        "panels": panels,
        "splits": splits,
        "caption": caption,
        "last_index": max(steps - 1, 0),
        "log_steps": log_steps,
        "missing": missing,
    }
