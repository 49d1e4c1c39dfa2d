"""When a run memorised and when it generalised.

An onset is the first evaluation at or above a threshold that then holds for some evaluations in a row; the first
crossing is kept beside it. The true moment lies between the evaluation before and this one (interval-censored); a run
that never gets there is right-censored at the last step it was followed to, and stays in every count.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from grokscape.analysis.estimation import row_median
from grokscape.analysis.frames import TEST_ACCURACY, TRAIN_ACCURACY, Array, Panel, compress, first, latest
from grokscape.rules import Rules

_ROUNDING = 2e-7  # accuracies are measured in float32, where 95 % is a little less than 0.95


@dataclass(frozen=True)
class Onset:
    """Onsets of R replicas, in steps; all (R,).

    Attributes:
        first: first evaluation that meets the condition, NaN if none.
        lower: last evaluation before the onset (NaN if none came before, or if there is no onset).
        step: the onset: first evaluation from which the condition holds, NaN if none.
        followed: last evaluation.
    """

    first: Array
    lower: Array
    step: Array
    followed: Array

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Whether there was an onset."""
        return ~np.isnan(self.step)


def onset(met: NDArray[np.bool_], steps: Array, hold: int) -> Onset:
    """Onset of a condition that holds for `hold` evaluations in a row.

    Args:
        met: (R, T) whether the condition is met; False where nothing was measured.
        steps: (R, T) evaluations, measured ones first, NaN beyond.
        hold: how many evaluations in a row it must be met, the first included; at least 1.
    """
    if hold < 1:
        raise ValueError(f"hold must be at least 1 evaluation, got {hold}")
    count = met.shape[1]
    held = met.copy() if hold <= count else np.zeros_like(met)
    for ahead in range(1, min(hold, count)):
        held[:, : count - ahead] &= met[:, ahead:]
        held[:, count - ahead:] = False
    before = np.concatenate([np.full((len(steps), 1), np.nan), steps], axis=1)
    backwards = steps[:, ::-1]
    followed = first(~np.isnan(backwards), backwards)
    return Onset(first(met, steps), first(held, before[:, :-1]), first(held, steps), followed)


def threshold_onset(values: Array, steps: Array, threshold: float, hold: int) -> Onset:
    """Onset of `values` at or above `threshold`; evaluations without a value are passed over. Arrays (R, T)."""
    values, steps = compress(values, steps)
    with np.errstate(invalid="ignore"):
        return onset(values >= threshold - _ROUNDING, steps, hold)


def outcomes(panel: Panel, rules: Rules) -> pl.DataFrame:
    """What became of each replica: one row each, in the panel's order.

    Columns: `replica`, `arm`, `seed`, `diverged`; `memorised_first`, `memorised_lower`, `memorised`; the same for
    `generalised` (steps, null if never); `followed` (last step; the study's last for a replica that diverged, which
    will never generalise); `delay` (steps from memorisation to generalisation or to the end, null if it never
    memorised), `delay_observed` (whether generalisation ended it), `final_accuracy` (median of the last test
    accuracies), `final_train_accuracy`.
    """
    train = threshold_onset(panel[TRAIN_ACCURACY], panel.steps, rules.train_threshold, rules.hold)
    test = threshold_onset(panel[TEST_ACCURACY], panel.steps, rules.test_threshold, rules.hold)
    followed = np.where(panel.diverged, panel.horizon, test.followed)
    end = np.where(test.observed, test.step, followed)
    columns = {
        "memorised_first": train.first, "memorised_lower": train.lower, "memorised": train.step,
        "generalised_first": test.first, "generalised_lower": test.lower, "generalised": test.step,
        "followed": followed, "delay": np.maximum(end - train.step, 0.0),
        "final_accuracy": final(panel[TEST_ACCURACY], rules.final_evaluations),
        "final_train_accuracy": final(panel[TRAIN_ACCURACY], rules.final_evaluations),
    }
    table = panel.replicas.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    table = table.with_columns(delay_observed=pl.Series(test.observed & train.observed))
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def final(values: Array, evaluations: int) -> Array:
    """Median of the last `evaluations` measured values of each row, (R,); NaN where nothing was measured.

    A median, because a late spike of the loss takes one evaluation or two with it.
    """
    return row_median(latest(values, evaluations))
