"""What each arm did to generalisation, against the baseline of the same seeds, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from grokscape.analysis.design import Arm
from grokscape.analysis.estimation import estimate, holm, mean_interval, share_interval, tost
from grokscape.analysis.estimation import one_sided as greater
from grokscape.analysis.manipulation import Check, check
from grokscape.analysis.record import Record
from grokscape.analysis.survival import delay_ratio, faster_than, paired_delays, slower_than

Call = Literal["harmed", "intact", "hastened", "unclear", "says nothing"]
_EXPECTED_TO_DIFFER = ("random-labels", "rescaling", "no-delay", "no-grokking")


@dataclass(frozen=True)
class Effect:
    """One arm against the baseline.

    Attributes:
        arm: the arm.
        check: its manipulation check.
        n: pairs of seeds.
        generalised: share of its seeds that generalised while it acted.
        accuracy: difference in final test accuracy, mean over seeds.
        ratio: restricted mean delay over the baseline's.
        p_harmed: p value of "neither accuracy nor delay is worse than its margin".
        p_intact: p value of "accuracy or delay is worse than its margin" (and the follow-up is long enough to tell).
        p_hastened: p value of "the delay is not shorter than the baseline's divided by the margin".
        p_tost: p value of "final accuracy differs by at least the margin", both sides.
        long_enough: whether the study went on long enough to see a delay of the margin.
        call: what the corrected p values say.
    """

    arm: Arm
    check: Check
    n: int
    generalised: dict[str, Any]
    accuracy: dict[str, Any]
    ratio: dict[str, Any]
    p_harmed: float
    p_intact: float
    p_hastened: float
    p_tost: float
    long_enough: bool
    call: Call = "unclear"

    def summary(self) -> dict[str, Any]:
        """The numbers for a figure or table."""
        arm = self.arm
        return {"arm": arm.name, "title": arm.title, "hand": arm.hand, "role": arm.role, "n": self.n, "call": self.call,
                "generalised": self.generalised, "accuracy_difference": self.accuracy,
                "delay_ratio": self.ratio, "p_harmed": self.p_harmed, "p_intact": self.p_intact,
                "p_hastened": self.p_hastened, "p_tost": self.p_tost, "reasons": list(self.check.reasons)}


def effect(record: Record, arm: Arm, *, until: float | None = None) -> Effect:
    """The effect of one arm, while it acted, before correction for the number of arms."""
    assert record.baseline is not None
    rules, results = record.rules, record.results_before(arm.until if until is None else until)
    both = results.filter(arm=arm.name).join(results.filter(arm=record.baseline.name), on="seed", suffix="_base")
    both = both.sort("seed").drop_nulls(["final_accuracy", "final_accuracy_base"])
    gaps = (both["final_accuracy"] - both["final_accuracy_base"]).to_numpy()
    own, base, limit, seen, seen_base = paired_delays(results, arm.name, record.baseline.name)
    complete = bool(seen.all() and seen_base.all())
    long_enough = bool(len(base)) and float(base.mean()) > 0 and (
        complete or limit >= rules.delay_ratio_margin * float(base.mean()))
    worse = greater(-gaps, rules.accuracy_margin)
    slower = slower_than(own, base, rules.delay_ratio_margin)
    not_worse = greater(gaps, -rules.accuracy_margin)
    not_slower = faster_than(own, base, rules.delay_ratio_margin) if long_enough else 1.0
    runs = results.filter(arm=arm.name)
    return Effect(
        arm, check(record, arm), len(gaps), share_interval(runs["generalised"].count(), len(runs), 1 - rules.alpha),
        mean_interval(gaps, 1 - rules.alpha, "difference in test accuracy"), delay_ratio(own, base, rules),
        min(1.0, 2 * min(worse, slower)), max(not_worse, not_slower),
        faster_than(own, base, 1 / rules.delay_ratio_margin), tost(gaps, rules.accuracy_margin), long_enough)


def effects(record: Record) -> list[Effect]:
    """Effects of all arms that are compared with the baseline, p values corrected by Holm over these arms.

    Each of the three questions (harmed, intact, hastened) is a family of its own: of "harmed" and "intact" at most
    one can be wrong about an arm. Arms that are expected to differ (random labels, rescaling, no delay) belong to
    none.
    """
    if record.baseline is None:
        return []
    raw = [effect(record, arm) for arm in record.arms[1:] if arm.control not in _EXPECTED_TO_DIFFER]
    valid = [item for item in raw if item.check.valid]
    corrected = _corrected(valid)
    rest = [replace(item, call="says nothing") for item in raw if not item.check.valid]
    order = {arm.name: place for place, arm in enumerate(record.arms)}
    called = [replace(item, call=_call(item, record.rules.alpha)) for item in corrected]
    return sorted([*called, *rest], key=lambda item: order[item.arm.name])


def _corrected(valid: Sequence[Effect]) -> list[Effect]:
    harmed, intact, hastened = (holm([getattr(item, name) for item in valid])
                                for name in ("p_harmed", "p_intact", "p_hastened"))
    return [replace(item, p_harmed=harmed[place], p_intact=intact[place], p_hastened=hastened[place])
            for place, item in enumerate(valid)]


def _call(item: Effect, alpha: float) -> Call:
    if item.p_harmed <= alpha:
        return "harmed"
    if item.p_hastened <= alpha:
        return "hastened"
    return "intact" if item.p_intact <= alpha else "unclear"


def worded(item: Effect) -> str:
    """The effect in words with its numbers."""
    share, gap, ratio = item.generalised, item.accuracy, item.ratio
    parts = [f"{round((share['value'] or 0) * item.check.n)} of {item.check.n} seeds generalised"]
    if gap["value"] is not None:
        parts.append(f"final test accuracy {100 * gap['value']:+.1f} points against the baseline"
                     f"{_range(gap, 100, '+.1f')}")
    if ratio["value"] is not None:
        parts.append(f"delay {ratio['value']:.2f} times the baseline's{_range(ratio, 1, '.2f')}")
    return ", ".join(parts)


def _range(item: dict[str, Any], factor: float, style: str) -> str:
    if item["low"] is None or item["high"] is None:
        return ""
    return f" (interval {format(factor * item['low'], style)} to {format(factor * item['high'], style)})"


def blank(unit: str = "") -> dict[str, Any]:
    """An estimate that does not exist."""
    return estimate(float(np.nan), unit=unit)
