"""Dose and response: does more of a manipulation do more?"""

from typing import Any

import numpy as np
from scipy import stats

from grokscape.analysis.effects import Effect
from grokscape.analysis.frames import Array
from grokscape.analysis.manipulation import middle, settled
from grokscape.analysis.record import Record
from grokscape.analysis.targets import Target


def trend(record: Record, target: Target, found: list[Effect]) -> list[dict[str, Any]]:
    """Page's trend test per hand with at least two doses: does test accuracy fall, and the delay grow, with the
    level?

    Doses are ordered by the settled level of the measure, baseline included, the least blocked first; seeds are the
    blocks; a run that never generalised counts as slower than all that did. All are compared at the step at which the
    first of the doses ended, if one did.

    Returns:
        One entry per hand: {"hand", "arms" in order of level, "levels", "n", "p_accuracy", "p_delay", "monotone"}.
    """
    values = settled(record, target.column)
    hands: dict[str, list[str]] = {}
    ends: dict[str, list[float]] = {}
    for item in found:
        if item.check.valid and item.arm.blocks(target.column):
            hands.setdefault(item.arm.hand, []).append(item.arm.name)
            ends.setdefault(item.arm.hand, []).extend([] if item.arm.until is None else [item.arm.until])
    result = []
    for hand, names in hands.items():
        level = {name: middle(values[record.panel.rows(name)]) for name in [record.baseline.name, *names]}
        order = sorted(level, key=lambda name: record.sign(target.column) * level[name])
        if len(order) >= 3:
            result.append({"hand": hand, "arms": order, "levels": [level[name] for name in order],
                           **page(record, order, min(ends[hand], default=None))})
    return result


def page(record: Record, order: list[str], before: float | None = None) -> dict[str, Any]:
    """Page's test over arms in the given order, on test accuracy (falling) and delay (growing) before a step."""
    table = record.panel.paired(*order).T
    accuracy, observed, delay = (record.moment(name, before)[table] for name in (
        "final_accuracy", "delay_observed", "delay"))
    delay = np.where(observed == 1, delay, np.inf)
    p_accuracy, p_delay = _page(-accuracy), _page(np.where(np.isnan(delay), np.inf, delay))
    monotone = bool(len(table) and (np.diff(accuracy.mean(axis=0)) <= 0).all())
    return {"n": len(table), "p_accuracy": p_accuracy, "p_delay": p_delay, "monotone": monotone}


def _page(growing: Array) -> float | None:
    """p value that values grow from column to column; None with fewer than two seeds or a value missing."""
    if len(growing) < 2 or np.isnan(growing).any():
        return None
    ranks = stats.rankdata(growing, axis=1)
    return float(stats.page_trend_test(ranks, ranked=True).pvalue)
