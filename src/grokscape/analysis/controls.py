"""Controls of a study: arms whose outcome is known beforehand. One that fails says that something else is wrong."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from grokscape.analysis.design import Arm
from grokscape.analysis.estimation import estimate, mean_interval, share_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import TEST_ACCURACY, first
from grokscape.analysis.manipulation import check, final_level, log_ratio, middle
from grokscape.analysis.record import Record
from grokscape.analysis.survival import paired_delays
from grokscape.plural import counted

INVARIANT = "relative_flatness"
VOIDS_ALL = ("random-labels",)
RULES = {
    "random-labels": "Passes if at least {held:.0%} of the runs memorise, none generalises, and their mean test "
                     "accuracy does not lie above chance, where that is known, by more than {accuracy:g}, interval "
                     "included. If it fails, test labels leak and no verdict stands.",
    "no-grokking": "Passes if at least {held:.0%} of the runs memorise and none generalises.",
    "no-delay": "Passes if the delay is shorter than the baseline's by more than a factor of {ratio:g}, fails if it is "
                "not (level {alpha:g} each).",
    "rescaling": "Passes if relative flatness and accuracy are within {rescaling:.0%} of the same seed's baseline at "
                 "the first evaluation at which both are measured. If it fails, no verdict on flatness stands.",
    "matched-level": "Passes if what it holds was held and memorisation is intact; then it serves as another hand.",
}
Judged = tuple[str, str, dict[str, dict[str, Any]], dict[str, Any]]


def controls(record: Record) -> list[Finding]:
    """One finding per control arm, "passed", "failed" or "inconclusive"."""
    return [_finding(record, arm) for arm in record.arms[1:] if arm.role == "control"]


def failures(found: list[Finding], property_name: str) -> list[str]:
    """Titles of the failed controls that make a verdict on this property void."""
    voids = VOIDS_ALL + (("rescaling",) if property_name == "flatness" else ())
    return [item.subject["title"] for item in found
            if item.verdict == "failed" and item.subject.get("control") in voids]


def void(failed: list[str], why: str) -> str:
    """The reason of a verdict that failed controls make void, in words."""
    return f"a control failed ({', '.join(failed)}); without it the reading would be: {why}"


def _finding(record: Record, arm: Arm) -> Finding:
    rules = record.rules
    judges = {"random-labels": _no_generalisation, "no-grokking": _no_generalisation, "no-delay": _no_delay,
              "rescaling": _rescaling}
    verdict, text, estimates, data = judges.get(arm.control, _matched)(record, arm)
    kind = arm.control or "matched-level"
    rule = RULES.get(kind, RULES["matched-level"]).format(
        held=rules.memorised_fraction, accuracy=rules.accuracy_margin, ratio=rules.delay_ratio_margin,
        alpha=rules.alpha, rescaling=rules.rescaling_tolerance)
    return Finding(f"control/{arm.name}", "control", {"arm": arm.name, "title": arm.title, "control": kind},
                   f"Control “{arm.title}” {verdict}: {text}.", verdict, estimates, len(record.panel.rows(arm.name)),
                   rule=rule, data=data)


def number_of_classes(record: Record) -> int | None:
    """K from the spec, if it says so or names a testbed that has no choice."""
    testbed = _testbed(record)
    kind, degree = testbed.get("kind"), testbed.get("degree")
    if kind == "symmetric_group" and isinstance(degree, int):
        return math.factorial(degree)
    given = (testbed.get(name) for name in ("num_classes", "p", "classes"))
    return next((one for one in given if isinstance(one, int)), {"digits": 10, "sparse_parity": 2}.get(str(kind)))


def _testbed(record: Record) -> Mapping[str, Any]:
    """The testbed's settings, as far as somebody else's spec has them in our form."""
    testbed = record.spec.get("testbed")
    return testbed if isinstance(testbed, Mapping) else {}


def _no_generalisation(record: Record, arm: Arm) -> Judged:
    rules, rows = record.rules, record.panel.rows(arm.name)
    runs, classes = record.results.filter(arm=arm.name), number_of_classes(record)
    memorised, generalised = runs["memorised"].count(), runs["generalised"].count()
    accuracy = mean_interval(record.moment("final_accuracy")[rows], 1 - rules.alpha, "test accuracy")
    alike = "classes" not in _testbed(record)  # those of people's own data may differ in frequency
    chance = 1 / classes if classes and alike and arm.control == "random-labels" else None
    sure = accuracy["low"] if accuracy["low"] is not None or len(rows) < 2 else accuracy["value"]  # all alike
    high = chance is not None and sure is not None and sure > chance + rules.accuracy_margin
    text = f"{memorised} of {counted(len(runs), 'run')} memorise, {generalised} generalise"
    if accuracy["value"] is not None:
        text += f"; final test accuracy {accuracy['value']:.3f}"
    if arm.control == "random-labels":
        text += ", chance unknown" if chance is None else f", chance {chance:.3f}"
    levels = {column: {"control": middle(final_level(record, column)[rows]), "baseline": middle(
        final_level(record, column)[record.panel.rows(record.baseline.name)])} for column in record.measured()}
    share = share_interval(generalised, len(runs), 1 - rules.alpha)
    estimates = {"final test accuracy": accuracy, "generalised": share}
    if generalised or high:
        verdict = "failed"
    else:
        verdict = "passed" if len(runs) and memorised >= rules.memorised_fraction * len(runs) else "inconclusive"
    return verdict, text, estimates, {"levels": levels, "chance": chance}


def _no_delay(record: Record, arm: Arm) -> Judged:
    rules, results = record.rules, record.results_before(arm.until)
    delays = paired_delays(results, arm.name, record.baseline.name)
    ratio = delays.ratio(rules)
    if ratio["value"] is None or check(record, arm).memorised < rules.memorised_fraction:
        return "inconclusive", "the delay cannot be compared with the baseline's", {"delay ratio": ratio}, {}
    p, p_slower = (test(1 / rules.delay_ratio_margin) for test in (delays.faster_than, delays.slower_than))
    verdict = "passed" if p <= rules.alpha else "failed" if p_slower <= rules.alpha else "inconclusive"
    return verdict, f"it takes {ratio['value']:.2f} {ratio['unit']}", {"delay ratio": ratio}, {"p": p}


def _rescaling(record: Record, arm: Arm) -> Judged:
    own, base = record.panel.paired(arm.name, record.baseline.name)
    shifts = {}
    for column in [name for name in record.columns if record.columns[name]["measure"] == INVARIANT] + [TEST_ACCURACY]:
        values = record.series(column)
        both = ~np.isnan(values[own]) & ~np.isnan(values[base]) & (record.panel.steps[own] == record.panel.steps[base])
        pairs = first(both, values[own]), first(both, values[base])
        shifts[column] = np.abs(pairs[0] - pairs[1]) if column == TEST_ACCURACY else np.abs(np.expm1(log_ratio(*pairs)))
    worst = {column: float(np.nanmax(shift)) if np.isfinite(shift).any() else np.nan
             for column, shift in shifts.items()}
    known = [value for column, value in worst.items() if column != TEST_ACCURACY and not np.isnan(value)]
    if not known:
        return "inconclusive", "relative flatness was not measured in both", {}, {"shift": worst}
    good = all(not value > record.rules.rescaling_tolerance for value in worst.values())
    text = f"relative flatness differs from the baseline's by {100 * max(known):.2g} % at most at the first evaluation"
    estimates = {"largest change": estimate(max(known), unit="relative")}
    return "passed" if good else "failed", text, estimates, {"shift": worst}


def _matched(record: Record, arm: Arm) -> Judged:
    found = check(record, arm)
    if found.valid:
        return "passed", f"it held what it was to hold ({found.state}), and memorisation is intact", {}, {}
    verdict = "failed" if found.state in ("not held", "lost memorisation") else "inconclusive"
    return verdict, ", ".join(found.reasons), {}, {}
