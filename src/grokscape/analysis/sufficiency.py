"""Does bringing a property about suffice for generalisation, or at least bring it forward?"""

from itertools import combinations
from typing import Any

import numpy as np

from grokscape.analysis.controls import void
from grokscape.analysis.effects import Effect, worded
from grokscape.analysis.estimation import geometric_median, share_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import Array
from grokscape.analysis.manipulation import at_memorisation, final_level, intact_rows, log_ratio, middle
from grokscape.analysis.record import Record
from grokscape.analysis.targets import Target
from grokscape.plural import counted, rounded

RULE = (
    "Not sufficient: in some arm at least {held:.0%} of the runs that memorised and kept it end with the measure as "
    "far as the baseline had it when it generalised (at least {reached:.0%} of the way from memorisation, log scale), "
    "and at least {held:.0%} of these neither generalise nor come within {accuracy:g} of it, though followed for "
    "{ratio:g} times the baseline's mean delay. Consistent with sufficient: no such arm, and two different hands that "
    "promote the property shorten the delay by more than that factor (level {alpha:g}, Holm over arms). Else "
    "inconclusive."
)

OPENINGS = {
    "consistent with sufficient": "The data are consistent with {property} ({title}) bringing generalisation forward",
    "not sufficient": "More is needed for generalisation than {property} ({title})",
    "inconclusive": "Whether {property} ({title}) suffices for generalisation stays open",
}


def level_at_generalisation(record: Record, column: str) -> Array:
    """Level of a measure as the baseline's runs generalise: median over the evaluations of the hold, per run."""
    values, start = record.series(column), record.moment("generalised")
    inside = record.window(start) & ~np.isnan(values)
    inside &= inside.cumsum(axis=1) <= record.rules.hold
    return geometric_median(np.where(inside, values, np.nan))[record.panel.rows(record.baseline.name)]


def counterexamples(record: Record, target: Target) -> list[dict[str, Any]]:
    """Arms whose runs have the property as the generalising baseline had it, and do not generalise."""
    base, rules = record.panel.rows(record.baseline.name), record.rules
    wanted = middle(level_at_generalisation(record, target.column))
    way = log_ratio(at_memorisation(record, target.column)[base], np.full(len(base), wanted))
    sign = record.sign(target.column)
    if not sign * middle(way) > 0:
        return []
    levels, accuracy = final_level(record, target.column), record.moment("final_accuracy")
    short = (1 - rules.reached_fraction) * sign * middle(way)
    reached = sign * log_ratio(levels, np.full(len(levels), wanted)) <= short
    delay, far = record.moment("delay"), accuracy < rules.test_threshold - rules.accuracy_margin
    awaited = delay >= rules.delay_ratio_margin * float(np.nanmean(delay[base]))  # to its end, if it did not generalise
    without = np.isnan(record.moment("generalised")) & far & awaited
    result: list[dict[str, Any]] = []
    for arm in record.arms:
        rows = record.panel.rows(arm.name)
        rows = rows[intact_rows(record, rows) & ~np.isnan(levels[rows])]
        there = rows[reached[rows]]
        count = int(without[there].sum())
        if len(there) >= max(rules.minimum_seeds, rules.held_fraction * len(rows)) \
                and count >= rules.held_fraction * len(there):
            result.append({"arm": arm.name, "title": arm.title, "level": middle(levels[there]), "wanted": wanted,
                           "n": len(there), "without": count})
    return result


def _verdict(
    against: list[dict[str, Any]], promoting: list[Effect], title: str
) -> tuple[str, str, int, float | None]:
    """Verdict, the reason in words, the runs or seeds behind it, and its p value."""
    if against:
        worst = against[0]
        return "not sufficient", (
            f"in “{worst['title']}” {worst['without']} of {counted(worst['n'], 'run')} reached {title} of "
            f"{rounded(worst['level'])}, where the baseline had {rounded(worst['wanted'])} when it generalised, "
            f"and did not generalise"), worst["n"], None
    helping = [item for item in promoting if item.call == "hastened"]
    if any(one.arm.apart_from(two.arm) for one, two in combinations(helping, 2)):
        why = "; ".join(f"“{item.arm.title}”: {worded(item)}" for item in helping)
        n, p = min(item.n for item in helping), max(item.p_hastened for item in helping)
        return "consistent with sufficient", why, n, p
    if helping:
        one = helping[0]
        return "inconclusive", (
            f"“{one.arm.title}” brought generalisation forward ({worded(one)}), but no second hand "
            f"did, so the gain may belong to the manipulation"), one.n, one.p_hastened
    if promoting:
        why = "; ".join(f"“{item.arm.title}”: " + (worded(item) if item.check.valid else
                        "says nothing, " + ", ".join(item.check.reasons)) for item in promoting)
        return "inconclusive", why, promoting[0].n, promoting[0].p_hastened
    return "inconclusive", "no arm promotes it", 0, None


def sufficiency(record: Record, target: Target, found: list[Effect], failed: list[str]) -> Finding:
    """The verdict on whether the property suffices."""
    against, rules, title = counterexamples(record, target), record.rules, record.title(target.column)
    promoting = [item for item in found if item.arm.is_to("promote", target.property_name)]
    verdict, why, n, p = _verdict(against, promoting, title)
    if failed:
        verdict, why = "inconclusive", void(failed, why)
    estimates = {f"{item.clock} ratio, {item.arm.name}": item.ratio for item in promoting}
    if against:
        without = share_interval(against[0]["without"], n, 1 - rules.alpha)
        estimates = {"runs without generalisation": without, **estimates}
    return Finding(
        f"sufficiency/{target.id}", "sufficiency",
        {"property": target.property_name, "measure": target.measure, "column": target.column},
        f"{OPENINGS[verdict].format(property=target.property_name, title=title)}: {why}.", verdict,
        estimates, n, "one-sided paired t test, Holm over arms" if p is not None else None, p,
        RULE.format(held=rules.held_fraction, reached=rules.reached_fraction, accuracy=rules.accuracy_margin,
                    ratio=rules.delay_ratio_margin, alpha=rules.alpha),
        {"reason": why, "counterexamples": against, "promoting": [item.summary() for item in promoting]})
