"""Trajectories summed up per arm: median and spread over replicas, single replicas where they are few.

Whatever draws a trajectory, the page or a figure file, draws from these summaries: both show the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from grokscape.report.arms import Arm
from grokscape.report.plate import Axis, Band, Line, Panel
from grokscape.report.run import Run
from grokscape.report.wording import sentence

SEEDS_SHOWN = 12
ARMS_WITH_SEEDS = 9
MOST_STEPS = 320
SPREAD = (0.1, 0.9)

DEFAULT_MEASURES = ("accuracy", "loss", "relative_flatness", "cdnv", "rnc1", "weight_norm")


@dataclass(frozen=True)
class Summary:
    """One column of one arm over the steps shown.

    Attributes:
        median: (S,) over replicas that were measured; NaN where none was.
        low: (S,) 10 % quantile.
        high: (S,) 90 % quantile.
        seeds: (R, S), empty when there are more replicas than can be told apart.
        replicas: number of replicas R.
    """

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray
    replicas: int


def shown_steps(run: Run, most: int = MOST_STEPS) -> np.ndarray:
    """Measured steps to draw: all if there are few, else half spaced evenly and half by ratio, the ends always."""
    if not run.frame.height:
        return np.zeros(0, dtype=np.int64)
    steps = np.sort(run.frame["step"].unique().to_numpy())
    if len(steps) <= most:
        return steps
    even = np.linspace(0, len(steps) - 1, most // 2)
    ratio = np.geomspace(1, len(steps), most // 2) - 1
    return steps[np.unique(np.round(np.concatenate([even, ratio])).astype(int))]


def summarise(run: Run, column: str, steps: np.ndarray, seeds_shown: int = SEEDS_SHOWN) -> dict[str, Summary]:
    """Each arm's summary of a column at the given steps; arms that never measured it are left out.

    Replicas may have been measured at different steps: between two of its own evaluations a replica's value is taken on
    the straight line, before the first and after the last it has none.
    """
    frame = run.frame.select("arm", "replica", "step", pl.col(column).cast(pl.Float64)).drop_nulls(column)
    summaries = {}
    for arm in run.arms:
        replicas = frame.filter(pl.col("arm") == arm.name).partition_by("replica", maintain_order=True)
        if not replicas:
            continue
        table = np.array([values_at(steps, rows["step"].to_numpy(), rows[column].to_numpy()) for rows in replicas])
        if np.isfinite(table).any():
            summaries[arm.name] = summary_of(table, seeds_shown)
    return summaries


def values_at(steps: np.ndarray, measured: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A replica's values at the given steps, NaN where it has none; (S,)."""
    values = np.where(np.isfinite(values), values, np.nan)
    return np.interp(steps, measured, values, left=np.nan, right=np.nan)


def summary_of(table: np.ndarray, seeds_shown: int = 0) -> Summary:
    """The summary of values (R, S); with single replicas where there are no more than `seeds_shown`."""
    quantiles = np.full((3, table.shape[1]), np.nan)
    known = np.isfinite(table).sum(axis=0)
    whole, partly = known == len(table), (known > 0) & (known < len(table))  # the usual case is many times faster
    quantiles[:, whole] = np.quantile(table[:, whole], (0.5, *SPREAD), axis=0)
    if partly.any():
        quantiles[:, partly] = np.nanquantile(table[:, partly], (0.5, *SPREAD), axis=0)
    seeds = table if len(table) <= seeds_shown else table[:0]
    return Summary(quantiles[0], quantiles[1], quantiles[2], seeds, len(table))


def is_logarithmic(summaries: Sequence[Summary]) -> bool:
    """Whether a column is better read by ratio: positive everywhere and spanning more than a factor of 20."""
    values = np.concatenate([s.median[np.isfinite(s.median)] for s in summaries]) if summaries else np.zeros(0)
    return bool(len(values)) and float(np.min(values)) > 0 and float(np.max(values)) > 20 * float(np.min(values))


def layers(arm: Arm, steps: np.ndarray, summary: Summary, *, faint: bool = False) -> list[Band | Line]:
    """An arm's band, single replicas and median, back to front. `faint` is for the split that gives context."""
    x = steps.tolist()
    if faint:
        return [Line(x, rounded(summary.median), arm.colour, arm=arm.name, dash="dot", width=1.2, opacity=0.75)]
    drawn: list[Band | Line] = []
    if summary.replicas > 2:
        drawn.append(Band(x, rounded(summary.low), rounded(summary.high), arm.colour, arm.name))
    if len(summary.seeds) > 1:
        drawn += [Line(x, rounded(row), arm.colour, arm=arm.name, width=0.5, opacity=0.3) for row in summary.seeds]
    drawn.append(Line(x, rounded(summary.median), arm.colour, arm.title, arm.name, arm.dash))
    return drawn


def panel(
    run: Run,
    measure: str,
    split: str,
    steps: np.ndarray,
    *,
    title: str = "",
    seeds_shown: int = SEEDS_SHOWN,
    arms: Sequence[Arm] | None = None,
) -> Panel | None:
    """A measure on one split over the steps, all arms or some, or None; accuracy and loss show training faintly."""
    column = f"{split}/{measure}"
    if column not in run.frame.columns:
        return None
    arms = run.arms if arms is None else arms
    summaries = summarise(run, column, steps, seeds_shown if len(arms) <= ARMS_WITH_SEEDS else 0)
    drawn: list[Band | Line] = []
    if measure in ("accuracy", "loss") and split == "test" and f"train/{measure}" in run.frame.columns:
        train = summarise(run, f"train/{measure}", steps, 0)
        drawn += [x for arm in arms if arm.name in train for x in layers(arm, steps, train[arm.name], faint=True)]
    for arm in arms:
        if arm.name in summaries:
            drawn += layers(arm, steps, summaries[arm.name])
    percent = measure == "accuracy"
    y = Axis(
        sentence(run.measure_title(measure)),
        log=not percent and is_logarithmic([summaries[arm.name] for arm in arms if arm.name in summaries]),
        percent=percent,
        limits=(-0.02, 1.02) if percent else None,
    )
    return Panel(step_axis(run), y, tuple(drawn), title)


def step_axis(run: Run) -> Axis:
    """The axis all trajectories share."""
    if run.last_step <= 200:
        return Axis("Training step")
    first = run.frame.filter(pl.col("step") > 0)["step"].to_numpy().min()
    return Axis("Training step", log=True, limits=(float(first), run.last_step * 1.06))


def arm_axis(arms: Sequence[Arm]) -> Axis:
    """An axis with a place for each arm."""
    return Axis(categories=tuple(arm.title for arm in arms), colours=tuple(arm.colour for arm in arms))


def rounded(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """Numbers to a few significant digits, None where there is none: what a screen can show."""
    return [_short(v, digits) if np.isfinite(v) else None for v in values.tolist()]


def _short(value: float, digits: int) -> float:
    shown = float(f"{value:.{digits}g}")
    return int(shown) if shown.is_integer() and abs(shown) < 1e9 else shown
