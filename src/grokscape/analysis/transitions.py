"""When a measure changed: between its level at memorisation and its final level, on a log scale.

The transition is where the evaluations at which the measure has gone at least half the way are best parted from those
at which it has not: with the fewest on the wrong side. Noise moves it neither forth nor back, and a spike not at all (a
first evaluation that holds for some more comes late where values are noisy). A change point found by a kernel method
serves as a check that does not depend on those two levels.
Measures with values of both signs are taken as they are, without a logarithm.
"""

from dataclasses import dataclass

import numpy as np
import ruptures

from grokscape.analysis.estimation import row_median
from grokscape.analysis.frames import Array, Flags, compress, first, latest
from grokscape.analysis.record import Record


@dataclass(frozen=True)
class Transition:
    """Transitions of one measure; all (R,).

    Attributes:
        step: when; NaN for a measure that did not move.
        lower: the evaluation before.
        start: level at memorisation.
        end: final level.
        moved: whether it changed by the required factor (measures of both signs: at all), and
            by more than three times the usual difference between evaluations.
    """

    step: Array
    lower: Array
    start: Array
    end: Array
    moved: Flags


def on_log_scale(values: Array) -> tuple[Array, bool]:
    """Logarithm of a measure that is never negative, else the values; zeros become NaN; and whether it was taken."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if (values < 0).any():
            return values, False
        logs = np.log(values)
    return np.where(np.isfinite(logs), logs, np.nan), True


def transitions(record: Record, column: str, among: Flags | None = None) -> Transition:
    """Transition of a column after memorisation, per replica; `among` (R, T): the evaluations to look at, else all."""
    rules, series = record.rules, record.series(column)
    logs, taken = on_log_scale(series if among is None else np.where(among, series, np.nan))
    values, steps = compress(np.where(record.window(record.moment("memorised")), logs, np.nan), record.panel.steps)
    count = (~np.isnan(values)).sum(axis=1)
    start, end = row_median(values[:, : rules.hold]), row_median(latest(values, rules.final_evaluations))
    way = end - start
    jitter = 3 * row_median(np.abs(np.diff(values, axis=1)))
    needed = np.maximum(np.log(rules.moved_factor) if taken else 0.0, np.where(np.isnan(jitter), 0.0, jitter))
    moved = np.where(np.isnan(way), False, np.abs(way) >= needed) & (way != 0) & (count >= 2 * rules.hold)
    with np.errstate(invalid="ignore", divide="ignore"):
        met = (values - start[:, None]) / way[:, None] >= 0.5
    back = np.exp if taken else np.asarray
    return Transition(*parting(met, np.where(moved[:, None], steps, np.nan)), back(start), back(end), moved)


def parting(met: Flags, steps: Array) -> tuple[Array, Array]:
    """Where evaluations that meet a condition are best parted from earlier ones that do not, and the evaluation before.

    The place with the fewest on the wrong side; of several such places the middle between the first and the last.

    Args:
        met: (R, T) whether the condition is met.
        steps: (R, T) evaluations, measured ones first, NaN beyond.
    """
    score = np.where(met, 1, -1)
    wrong = np.where(np.isnan(steps), np.inf, score.cumsum(axis=1) - score)
    best = (wrong == wrong.min(axis=1, keepdims=True, initial=np.inf)) & ~np.isnan(steps)
    before = np.concatenate([np.full((len(steps), 1), np.nan), steps[:, :-1]], axis=1)
    step, lower = ((first(best, at) + first(best[:, ::-1], at[:, ::-1])) / 2 for at in (steps, before))
    return step, lower


def change_points(record: Record, column: str) -> Array:
    """Step of the one change point of a measure after memorisation, per replica of the baseline; NaN where there is
    none.

    Kernel change-point detection with a linear kernel (a shift of the mean) on the log of the measure; the step is
    the first evaluation after the change.
    """
    result = np.full(len(record.panel.steps), np.nan)
    logs, _ = on_log_scale(record.series(column))
    memorised = record.moment("memorised")
    for row in record.panel.rows(record.baseline.name):
        with np.errstate(invalid="ignore"):
            kept = ~np.isnan(logs[row]) & (record.panel.steps[row] >= memorised[row])
        line = logs[row, kept]
        if len(line) >= 4 and np.ptp(line) > 0:
            place = ruptures.KernelCPD(kernel="linear", min_size=2).fit(line).predict(n_bkps=1)[0]
            if place < len(line):
                result[row] = record.panel.steps[row, kept][place]
    return result
