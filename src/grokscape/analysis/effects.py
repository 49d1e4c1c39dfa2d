"""What each arm did to generalisation, against the baseline of the same seeds, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from grokscape.analysis.design import Arm
from grokscape.analysis.estimation import holm, interval_text, mean_interval, share_interval, tost
from grokscape.analysis.estimation import one_sided as greater
from grokscape.analysis.frames import TEST_ACCURACY, Array, Flags
from grokscape.analysis.manipulation import Check, check, intact_rows
from grokscape.analysis.onsets import final
from grokscape.analysis.record import Record
from grokscape.analysis.survival import Delays, counting, paired_delays
from grokscape.plural import counted

Rows = NDArray[np.int64]
Call = Literal["harmed", "intact", "hastened", "unclear", "says nothing"]
_EXPECTED_TO_DIFFER = ("random-labels", "rescaling", "no-delay", "no-grokking")


@dataclass(frozen=True)
class Effect:
    """One arm against the baseline.

    Attributes:
        arm: the arm.
        check: its manipulation check.
        n: pairs of seeds whose baseline memorised.
        generalised: share of its seeds that generalised while it acted.
        accuracy: difference in final test accuracy, mean over seeds, each taken where both runs were still followed.
        ratio: restricted mean delay over the baseline's.
        counted_to: steps up to which delays are counted; None if every run was seen to generalise.
        clock: "delay", or "time" where the ratio is of times from the start because the baseline has no delay.
        p_harmed: p value of "neither accuracy nor delay is worse than its margin", in seeds that kept memorisation.
        p_intact: p value of "accuracy or delay is worse than its margin" (and the follow-up is long enough to tell).
        p_hastened: p value of "the delay is not shorter than the baseline's divided by the margin, generalisation comes
            no sooner, or accuracy is worse than its margin".
        p_tost: p value of "final accuracy differs by at least the margin", both sides.
        call: what the corrected p values say.
    """

    arm: Arm
    check: Check
    n: int
    generalised: dict[str, Any]
    accuracy: dict[str, Any]
    ratio: dict[str, Any]
    counted_to: float | None
    clock: Literal["delay", "time"]
    p_harmed: float
    p_intact: float
    p_hastened: float
    p_tost: float
    call: Call = "unclear"

    def summary(self) -> dict[str, Any]:
        """The numbers for a figure or table."""
        arm = self.arm
        return {"arm": arm.name, "title": arm.title, "hand": arm.hand, "role": arm.role, "n": self.n, "call": self.call,
                "generalised": self.generalised, "accuracy_difference": self.accuracy,
                "delay_ratio": self.ratio, "p_harmed": self.p_harmed, "p_intact": self.p_intact,
                "p_hastened": self.p_hastened, "p_tost": self.p_tost, "reasons": list(self.check.reasons)}


def effect(record: Record, arm: Arm) -> Effect:
    """The effect of one arm, while it acted, before correction for the number of arms.

    Seeds whose baseline lost memorisation are left out. Harm must show in the seeds in which the arm kept it as well;
    an arm is intact or hastened only with those in which it did not. Accuracy that may only be late is no harm.
    """
    rules, results = record.rules, record.results_before(arm.until)
    rows, others = record.panel.paired(arm.name, record.baseline.name)
    rows, others = (side[intact_rows(record, others, arm.until)] for side in (rows, others))
    kept = intact_rows(record, rows, arm.until)
    gaps = _accuracy_gaps(record, rows, others, arm.until)
    from_start = results.with_columns(memorised=0.0, memorised_lower=0.0,
                                      delay_observed=pl.col("generalised").is_not_null())
    clock = _clock(record)
    timed = results if clock == "delay" else from_start
    delays, margin = _delays(record, timed, rows), rules.delay_ratio_margin
    worse = greater(np.where(_waiting(record, arm, rows, others), 0.0, -gaps)[kept], rules.accuracy_margin)
    slower = _delays(record, timed, rows[kept]).slower_than(margin)
    not_worse, not_slower = greater(gaps, -rules.accuracy_margin), delays.within(margin)
    sooner, faster = _delays(record, from_start, rows).faster_than(1.0), delays.faster_than(1 / margin)
    runs = results.filter(arm=arm.name)
    return Effect(
        arm, check(record, arm), int((~np.isnan(gaps)).sum()),
        share_interval(runs["generalised"].count(), len(runs), 1 - rules.alpha),
        mean_interval(gaps, 1 - rules.alpha, "difference in test accuracy"),
        delays.ratio(rules, clock), delays.counted_to, clock, min(1.0, 2 * min(worse, slower)),
        max(not_worse, not_slower), max(faster, sooner, not_worse), tost(gaps, rules.accuracy_margin))


def _clock(record: Record) -> Literal["delay", "time"]:
    """What to compare: times from the start if half of the baseline's runs generalise no later than they memorise."""
    delays = record.moment("delay")[record.panel.rows(record.baseline.name)]
    known = delays[~np.isnan(delays)]
    return "delay" if not len(known) or np.mean(known > 0) > 0.5 else "time"


def _waiting(record: Record, arm: Arm, own: Rows, base: Rows) -> Flags:
    """Pairs that are compared before the arm's run has generalised, or was followed for the margin times the longest
    delay with which the baseline did: its accuracy may be low for want of time."""
    memorised, generalised, followed = (record.moment(name, arm.until) for name in (
        "memorised", "generalised", "followed"))
    start = memorised if _clock(record) == "delay" else np.zeros(len(memorised))
    end, delays = np.minimum(followed[own], followed[base]), (generalised - start)[base]
    longest = np.max(delays, where=~np.isnan(delays), initial=0.0)
    return ~(generalised[own] <= end) & (end - start[own] < record.rules.delay_ratio_margin * longest)


def _accuracy_gaps(record: Record, own: Rows, base: Rows, end: float | None) -> Array:
    """Differences in final test accuracy, pair by pair; a pair is followed as long as both of its runs are."""
    steps, followed = record.panel.steps, record.moment("followed")
    until = np.minimum(followed[own], followed[base])[:, None]
    finals = []
    for rows in (own, base):
        with np.errstate(invalid="ignore"):
            inside = (steps[rows] <= until) & ~(steps[rows] >= (np.inf if end is None else end))
        finals.append(final(np.where(inside, record.panel[TEST_ACCURACY][rows], np.nan),
                            record.rules.final_evaluations))
    return finals[0] - finals[1]


def _delays(record: Record, results: pl.DataFrame, rows: Rows) -> Delays:
    """Restricted delays of the runs in `rows`, all of one arm, and of the baseline's of the same seeds."""
    chosen = results.filter(pl.col("seed").is_in(record.panel.seeds[rows].tolist()))
    return paired_delays(chosen, str(record.panel.arms[rows[0]]) if len(rows) else "", record.baseline.name)


def effects(record: Record) -> list[Effect]:
    """Effects of all arms that are compared with the baseline, p values corrected by Holm over these arms.

    Each of the three questions (harmed, intact, hastened) is a family of its own: of "harmed" and "intact" at most
    one can be wrong about an arm. Arms that are expected to differ (random labels, rescaling, no delay) belong to
    none.
    """
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
    parts = [f"{round((share['value'] or 0) * item.check.n)} of {counted(item.check.n, 'seed')} generalised"
             f"{interval_text(share, '.0f', 100, ' %')}"]
    if item.check.memorised < 1:
        parts.append(f"memorisation intact in {round(item.check.memorised * item.check.n)}")
    if gap["value"] is not None:
        parts.append(f"final test accuracy {100 * gap['value']:+z.1f} points against the baseline"
                     f"{interval_text(gap, '+z.1f', 100)}")
    if ratio["value"] is not None:
        what, upto = "delay" if item.clock == "delay" else "time to generalise", counting(item.counted_to)
        parts.append(f"{what} {ratio['value']:.2f} times the baseline's{interval_text(ratio)}{upto}")
    return ", ".join(parts)
