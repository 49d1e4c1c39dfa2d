"""When each replica memorised and generalised, as the analysis sees it, and the figure that shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from grokscape.analysis import Record
from grokscape.analysis.summary import table_of
from grokscape.plural import counted
from grokscape.report.arms import Arm
from grokscape.report.plate import Missing, Panel, Plate, Points, Symbol
from grokscape.report.run import Run
from grokscape.report.trajectories import arm_axis, panel, shown_steps, step_axis
from grokscape.rules import Rules

MOST_KEY_ARMS = 8
ONSET_SYMBOLS: dict[str, Symbol] = {"memorised": "circle-open", "generalised": "circle"}


@dataclass(frozen=True)
class Outcomes:
    """Per-replica outcomes of a run, and sums over arms.

    Attributes:
        rules: thresholds and margins of the study.
        table: one row per replica; see `grokscape.analysis.onsets.outcomes`.
        summary: arm → its row of `grokscape.analysis.summary_table`.
    """

    rules: Rules
    table: pl.DataFrame
    summary: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, run: Run) -> "Outcomes":
        """Outcomes of a run; without accuracies the table is empty."""
        known = {"train/accuracy", "test/accuracy"} <= set(run.frame.columns)
        record = Record.of(run.frame if known else pl.DataFrame(), run.spec, run.columns, run.status)
        rows = table_of(record).iter_rows(named=True)
        return cls(record.rules, record.results, {row["arm"]: row for row in rows})

    def median_onset(self, arm: str, what: str) -> float | None:
        """Median step of "memorised" or "generalised" over an arm (Kaplan–Meier), None if fewer than half got there."""
        return self.summary.get(arm, {}).get(f"{what}_step")

    def rows(self, arm: str) -> pl.DataFrame:
        """The rows of one arm."""
        return self.table.filter(pl.col("arm") == arm)


def hero(run: Run, found: Outcomes) -> Plate | Missing:
    """Test accuracy over steps, and below it every replica's two onsets, arm by arm: the whole study at a glance."""
    steps = shown_steps(run)
    arms = key_arms(run)
    top = panel(run, "accuracy", "test", steps, arms=arms)
    if top is None or found.table.is_empty():
        return Missing(
            "hero",
            "Accuracy and onsets",
            "The trajectory holds no column train/accuracy and test/accuracy yet.",
            "Both are measured at every evaluation; write the report again once the run has measured.",
        )
    strip = _strip(run, found, arms)
    caption = (
        "Above: accuracy on held-out samples, median over seeds with the range from the 10th to the 90th percentile; "
        "dotted, accuracy on training samples. Below: each mark is one seed. "
        "Hollow, the step at which it had memorised; filled, the step at "
        "which it generalised; a cross at the right end, a seed that never did."
    )
    if len(arms) < len(run.arms):
        caption += f" Of {len(run.arms)} arms, the baseline and those that the verdicts turn on."
    alt = "Test accuracy over training steps by arm. " + " ".join(_sentence(found, arm) for arm in arms)
    return Plate(
        "hero",
        "",
        caption,
        alt,
        (Panel(top.x, top.y, top.layers, height=1.0), strip),
        shared_x=True,
        legend=False,
        links=(("How onsets are defined", "def-onset"),),
    )


def key_arms(run: Run) -> tuple[Arm, ...]:
    """The arms of the first figure: all if they are few; else the baseline and those that decided a verdict."""
    if len(run.arms) <= MOST_KEY_ARMS:
        return run.arms
    wanted = [arm.name for arm in run.arms if arm.role == "baseline"]
    for finding in run.of_kind("necessity"):
        wanted += finding["data"]["deciding"]
    for finding in run.of_kind("sufficiency"):
        wanted += [item["arm"] for item in finding["data"]["promoting"]]
    wanted += [arm.name for arm in run.arms if arm.role == "manipulation"]
    chosen = set(list(dict.fromkeys(wanted))[:MOST_KEY_ARMS])
    return tuple(arm for arm in run.arms if arm.name in chosen)


def _sentence(found: Outcomes, arm: Arm) -> str:
    rows = found.rows(arm.name)
    median = found.median_onset(arm.name, "generalised")
    when = f", at step {median:.0f} in the median" if median is not None else ""
    return f"{arm.title}: {rows['generalised'].count()} of {counted(rows.height, 'seed')} generalised{when}."


def _strip(run: Run, found: Outcomes, arms: Sequence[Arm]) -> Panel:
    layers: list[Points] = []
    for position, arm in enumerate(arms):
        rows = found.rows(arm.name)
        spread = np.linspace(-0.26, 0.26, rows.height) if rows.height > 1 else np.zeros(rows.height)
        for what, symbol in ONSET_SYMBOLS.items():
            here = rows[what].is_not_null().to_numpy()
            seeds = rows["seed"].to_numpy()[here]
            x = rows[what].drop_nulls().to_list()
            hover = [f"{arm.title}, seed {seed}: {what} at step {step:.0f}" for seed, step in zip(seeds, x)]
            layers.append(
                Points(x, (position + spread[here]).tolist(), arm.colour, "", arm.name, symbol, 6.5, hover=hover)
            )
        never = rows["generalised"].is_null().to_numpy()
        followed = rows["followed"].fill_null(run.last_step).to_numpy()[never]
        hover = [
            f"{arm.title}, seed {seed}: had not generalised by step {step:.0f}"
            for seed, step in zip(rows["seed"].to_numpy()[never], followed)
        ]
        layers.append(
            Points(
                followed.tolist(), (position + spread[never]).tolist(), arm.colour, "", arm.name, "x", 6.0, hover=hover
            )
        )
    return Panel(step_axis(run), arm_axis(arms), tuple(layers), height=max(0.5, 0.115 * len(arms)))
