"""Does a measure change before, with or after generalisation? Seed by seed, in the baseline arm."""

from typing import Any

import numpy as np

from grokscape.analysis.estimation import bootstrap_interval, holm, interval_text, mean_and_error, one_sided, sign_test
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import TEST_ACCURACY, Array
from grokscape.analysis.onsets import threshold_onset
from grokscape.analysis.record import Record
from grokscape.analysis.transitions import change_points, transitions
from grokscape.plural import counted

RULE = (
    "Transition: where evaluations at which the measure has gone half the way (log scale) between its level at "
    "memorisation and its final level are best parted from earlier ones at which it has not; a measure that changes by "
    "less than a factor of {moved:g} has none. Leads: the mean log ratio to the moment at which test accuracy itself "
    "has gone half its way so is below zero over seeds. "
    "Lags: that to the moment of generalisation, which comes later, is above zero (Student's t, Holm over measures, "
    "level {alpha:g}, and the bootstrap interval excludes zero as well); a sign test against generalisation stands "
    "beside it. Position: 0 is memorisation, 1 is generalisation, on a log scale of steps."
)


def lead_lag(record: Record) -> list[Finding]:
    """One finding per measured column: its transition against memorisation and generalisation."""
    rows = [_numbers(record, column) for column in record.measured()]
    for row, p in zip(rows, holm([row["p"] for row in rows])):
        row["p"] = p
    return [_finding(record, row) for row in rows]


def _seed_by_seed(record: Record, column: str) -> dict[str, Any]:
    """Arrays with a value for each run of the baseline: moments in steps, and how one lies to another."""
    rules = record.rules
    # Moments on different grids would be rounded up differently: only evaluations that saw both count.
    seen = ~np.isnan(record.series(column)) & ~np.isnan(record.panel[TEST_ACCURACY])
    found, accuracy = transitions(record, column, seen), transitions(record, TEST_ACCURACY, seen)
    generalised = threshold_onset(np.where(seen, record.panel[TEST_ACCURACY], np.nan), record.panel.steps,
                                  rules.test_threshold, rules.hold)
    moments = {
        "seeds": record.panel.seeds, "transition": found.step, "before": found.lower, "start": found.start,
        "end": found.end, "moved": found.moved, "fell": found.moved & (found.end < found.start),
        "generalised": generalised.step, "not yet": generalised.lower,
        "half_way": np.fmin(accuracy.step, generalised.step), "memorised": record.moment("memorised"),
        "followed": record.moment("followed"), "change_point": change_points(record, column),
    }
    each: dict[str, Any] = {name: values[record.panel.rows(record.baseline.name)] for name, values in moments.items()}
    moment, test, train = (each[name] for name in ("transition", "generalised", "memorised"))
    with np.errstate(divide="ignore", invalid="ignore"):
        late = np.isnan(test) & (moment < each["followed"])
        each |= {
            "lag": moment - test, "log_lag": np.log(moment / test), "log_lag_train": np.log(moment / train),
            "log_lag_half": np.log(moment / each["half_way"]),
            "position": np.log(moment / train) / np.log(test / train),
            "leads": (moment <= each["not yet"]) | late, "lags": each["before"] >= test,
        }
    return each


def _numbers(record: Record, column: str) -> dict[str, Any]:
    """Per-seed lags of one column, their counts and estimates."""
    rules, each = record.rules, _seed_by_seed(record, column)
    moment, test, train, ratio = (each[name] for name in ("transition", "generalised", "memorised", "log_lag"))
    kept, half = np.isfinite(ratio), each["log_lag_half"]
    earlier, later = one_sided(-half[kept], 0.0), one_sided(ratio[kept], 0.0)
    samples = {
        "lag": (each["lag"][kept], "steps"),
        "log lag": (ratio[kept], "log of steps"),
        "log lag to half of test accuracy": (half[kept], "log of steps"),
        "lag after memorisation": ((moment - train)[kept], "steps"),
        "log lag after memorisation": (_finite(each["log_lag_train"]), "log of steps"),
        "position": (_finite(each["position"]), "0 memorisation, 1 generalisation"),
    }
    counts = {name: int(each[name].sum()) for name in ("leads", "lags", "moved", "fell")}
    judged = int((~np.isnan(test)).sum())
    return {
        **each, **counts, "column": column, "title": record.title(column), "n": int(kept.sum()), "runs": len(test),
        "judged": judged, "enough": judged >= rules.minimum_seeds, "started": int((~np.isnan(train)).sum()),
        "sign_p": sign_test(counts["leads"], counts["lags"]), "p": min(1.0, 2 * min(earlier, later)),
        "accuracy_lag": (each["half_way"] - test)[kept],
        "check": _agreement(each["change_point"][kept], moment[kept], rules.delay_ratio_margin),
        "estimates": {name: bootstrap_interval(mean_and_error, sample, unit=unit, confidence=1 - rules.alpha,
                                               resamples=rules.bootstrap) for name, (sample, unit) in samples.items()},
    }


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _agreement(change: Array, moment: Array, factor: float) -> float | None:
    """Share of seeds in which the change-point lies within a factor of the transition."""
    return float(np.mean(np.abs(np.log(change / moment)) <= np.log(factor))) if len(moment) else None


def verdict(numbers: dict[str, Any], alpha: float) -> str:
    """"leads", "lags", "no clear order" or "does not move"."""
    if numbers["moved"] == 0 and numbers["judged"] and numbers["started"]:
        return "does not move"
    estimates = numbers["estimates"]
    behind, ahead = estimates["log lag"]["low"], estimates["log lag to half of test accuracy"]["high"]
    if numbers["p"] <= alpha and ahead is not None and ahead < 0:
        return "leads"
    return "lags" if numbers["p"] <= alpha and behind is not None and behind > 0 else "no clear order"


def _in_words(record: Record, row: dict[str, Any], found: str) -> str:
    """When the measure changes, or why that cannot be said."""
    title, runs, factor = row["title"], counted(row["runs"], "run"), record.rules.moved_factor
    if not row["judged"]:
        return f"{title} cannot be set against generalisation, for no run of the baseline generalised"
    if not row["started"]:
        return f"{title} has no level at memorisation to move from, for no run of the baseline memorised"
    if found == "does not move":
        which = "" if row["started"] == row["runs"] else " that memorised"
        return f"{title} changes by less than a factor of {factor:g} after memorisation in every run{which}"
    if row["estimates"]["lag"]["value"] is None:
        return f"{title} changes in {row['moved']} of {runs}, but none of these generalised"
    return f"{title} is half-way{_against_generalisation(row)}"


def _against_generalisation(row: dict[str, Any]) -> str:
    """By how much the half-way point lies before or after generalisation, and in how many seeds."""
    lag, place = row["estimates"]["lag"], row["estimates"]["position"]
    side = "before" if lag["value"] < 0 else "after"
    way = {row["moved"]: " down", 0: " up"}.get(row["fell"], "")
    steps = counted(f"{abs(lag['value']):.0f}", "step")
    text = f"{way} {steps} {side} generalisation on average" \
           f"{interval_text(lag, '.0f')}; before it in {row['leads']} and after it in {row['lags']} of " \
           f"{counted(row['runs'], 'seed')}"
    if row["n"] < row["runs"]:
        text += f", in {row['n']} of which it changes and generalisation is seen"
    if (row["accuracy_lag"] < 0).any():
        text += f"; test accuracy itself is half-way {-row['accuracy_lag'].mean():.0f} steps before generalisation"
    if place["value"] is not None:
        text += f"; position {place['value']:.2f} between memorisation (0) and generalisation (1)"
    return text


def _finding(record: Record, row: dict[str, Any]) -> Finding:
    found, about = verdict(row, record.rules.alpha), record.columns[row["column"]]
    keys = ("seeds", "transition", "generalised", "half_way", "memorised", "change_point", "lag", "log_lag", "position",
            "start", "end", "leads", "lags", "moved", "fell", "runs", "check", "sign_p", "judged", "started", "enough")
    return Finding(
        f"lead_lag/{row['column']}", "lead_lag",
        {"column": row["column"], **{key: about[key] for key in ("measure", "property", "split")}},
        _in_words(record, row, found) + ".", found, row["estimates"], row["n"],
        "t test of the log lag over seeds, Holm over measures", row["p"],
        RULE.format(moved=record.rules.moved_factor, alpha=record.rules.alpha), {key: row[key] for key in keys})
