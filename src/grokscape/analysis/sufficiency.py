"""Does bringing a property about suffice for generalisation, or at least bring it forward?"""

from itertools import combinations
from typing import Any

import numpy as np

from grokscape.analysis.effects import Effect, worded
from grokscape.analysis.estimation import geometric_median, share_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import Array, latest
from grokscape.analysis.manipulation import at_memorisation, intact_rows, log_ratio, middle
from grokscape.analysis.necessity import Target
from grokscape.analysis.record import Record
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


def final_level(record: Record, column: str) -> Array:
    """Level of a measure over the last evaluations, per run."""
    return geometric_median(latest(record.series(column), record.rules.final_evaluations))


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


def sufficiency(record: Record, target: Target, found: list[Effect], failed: list[str]) -> Finding:
    """The verdict on whether the property suffices."""
    against, rules, title = counterexamples(record, target), record.rules, record.title(target.column)
    promoting = [item for item in found if item.arm.is_to("promote", target.property_name)]
    helping = [item for item in promoting if item.call == "hastened"]
    verdict, why, n, p = "inconclusive", "no arm promotes it", 0, None
    estimates = {}
    if against:
        worst = against[0]
        verdict, n = "not sufficient", worst["n"]
        why = f"in “{worst['title']}” {worst['without']} of {counted(worst['n'], 'run')} reached {title} of " \
              f"{rounded(worst['level'])}, where the baseline had {rounded(worst['wanted'])} when it generalised, " \
              f"and did not generalise"
        estimates["runs without generalisation"] = share_interval(worst["without"], n, 1 - rules.alpha)
    elif any(one.arm.apart_from(two.arm) for one, two in combinations(helping, 2)):
        verdict, n, p = "consistent with sufficient", min(item.n for item in helping), max(
            item.p_hastened for item in helping)
        why = "; ".join(f"“{item.arm.title}”: {worded(item)}" for item in helping)
    elif helping:
        n, p = helping[0].n, helping[0].p_hastened
        why = f"“{helping[0].arm.title}” brought generalisation forward ({worded(helping[0])}), but no second hand " \
              f"did, so the gain may belong to the manipulation"
    elif promoting:
        n, p = promoting[0].n, promoting[0].p_hastened
        why = "; ".join(f"“{item.arm.title}”: " + (worded(item) if item.check.valid else
                        "says nothing, " + ", ".join(item.check.reasons)) for item in promoting)
    if failed:
        verdict, why = "inconclusive", f"a control failed ({', '.join(failed)}); without it the reading would be: {why}"
    for item in promoting:
        estimates[f"{item.clock} ratio, {item.arm.name}"] = item.ratio
    return Finding(
        f"sufficiency/{target.id}", "sufficiency",
        {"property": target.property_name, "measure": target.measure, "column": target.column},
        f"{OPENINGS[verdict].format(property=target.property_name, title=title)}: {why}.", verdict,
        estimates, n, "one-sided paired t test, Holm over arms" if p is not None else None, p,
        RULE.format(held=rules.held_fraction, reached=rules.reached_fraction, accuracy=rules.accuracy_margin,
                    ratio=rules.delay_ratio_margin, alpha=rules.alpha),
        {"reason": why, "counterexamples": against, "promoting": [item.summary() for item in promoting]})
