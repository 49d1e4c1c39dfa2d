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


def _numbers(record: Record, column: str) -> dict[str, Any]:
    """Per-seed lags of one column and their estimates."""
    rules, rows = record.rules, record.panel.rows(record.baseline.name)
    # Moments on different grids would be rounded up differently: only evaluations that saw both count.
    seen = ~np.isnan(record.series(column)) & ~np.isnan(record.panel[TEST_ACCURACY])
    found, accuracy = transitions(record, column, seen), transitions(record, TEST_ACCURACY, seen)
    generalised = threshold_onset(np.where(seen, record.panel[TEST_ACCURACY], np.nan), record.panel.steps,
                                  rules.test_threshold, rules.hold)
    moment, before = found.step[rows], found.lower[rows]
    test, test_before = generalised.step[rows], generalised.lower[rows]
    half = np.fmin(accuracy.step[rows], test)
    train, followed = record.moment("memorised")[rows], record.moment("followed")[rows]
    lag, late = moment - test, ~np.isnan(moment) & np.isnan(test)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratio_train, ratio_half = np.log(moment / test), np.log(moment / train), np.log(moment / half)
        position = ratio_train / np.log(test / train)
        leads = (moment <= test_before) | (late & (moment < followed))
        lags = before >= test
    kept = np.isfinite(ratio)
    earlier, later = one_sided(-ratio_half[kept], 0.0), one_sided(ratio[kept], 0.0)
    samples = {
        "lag": (lag[kept], "steps"),
        "log lag": (ratio[kept], "log of steps"),
        "log lag to half of test accuracy": (ratio_half[kept], "log of steps"),
        "lag after memorisation": ((moment - train)[kept], "steps"),
        "log lag after memorisation": (ratio_train[np.isfinite(ratio_train)], "log of steps"),
        "position": (position[np.isfinite(position)], "0 memorisation, 1 generalisation"),
    }
    change = change_points(record, column)[rows]
    return {
        "column": column, "title": record.title(column), "seeds": record.panel.seeds[rows], "transition": moment,
        "generalised": test, "memorised": train, "change_point": change, "lag": lag, "log_lag": ratio,
        "position": position, "leads": int(leads.sum()), "lags": int(lags.sum()), "moved": int(found.moved[rows].sum()),
        "fell": int((found.moved & (found.end < found.start))[rows].sum()),
        "start": found.start[rows], "end": found.end[rows], "n": int(kept.sum()), "runs": len(rows),
        "judged": int((~np.isnan(test)).sum()), "enough": bool((~np.isnan(test)).sum() >= rules.minimum_seeds),
        "started": int((~np.isnan(train)).sum()),
        "sign_p": sign_test(int(leads.sum()), int(lags.sum())), "p": min(1.0, 2 * min(earlier, later)),
        "half_way": half, "accuracy_lag": (half - test)[kept],
        "check": _agreement(change[kept], moment[kept], rules.delay_ratio_margin),
        "estimates": {name: bootstrap_interval(mean_and_error, sample, unit=unit, confidence=1 - rules.alpha,
                                               resamples=rules.bootstrap) for name, (sample, unit) in samples.items()},
    }


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


def _finding(record: Record, row: dict[str, Any]) -> Finding:
    found = verdict(row, record.rules.alpha)
    lag, place = row["estimates"]["lag"], row["estimates"]["position"]
    if not row["judged"]:
        text = f"{row['title']} cannot be set against generalisation, for no run of the baseline generalised"
    elif not row["started"]:
        text = f"{row['title']} has no level at memorisation to move from, for no run of the baseline memorised"
    elif found == "does not move":
        which = "" if row["started"] == row["runs"] else " that memorised"
        text = f"{row['title']} changes by less than a factor of {record.rules.moved_factor:g} after memorisation in " \
               f"every run{which}"
    elif lag["value"] is None:
        text = f"{row['title']} changes in {row['moved']} of {counted(row['runs'], 'run')}, but none of these " \
               "generalised"
    else:
        side = "before" if lag["value"] < 0 else "after"
        way = {row["moved"]: " down", 0: " up"}.get(row["fell"], "")
        steps = counted(f"{abs(lag['value']):.0f}", "step")
        text = f"{row['title']} is half-way{way} {steps} {side} generalisation on average" \
               f"{interval_text(lag, '.0f')}; before it in {row['leads']} and after it in {row['lags']} of " \
               f"{counted(row['runs'], 'seed')}"
        if row["n"] < row["runs"]:
            text += f", in {row['n']} of which it changes and generalisation is seen"
        if (row["accuracy_lag"] < 0).any():
            text += f"; test accuracy itself is half-way {-row['accuracy_lag'].mean():.0f} steps before generalisation"
        if place["value"] is not None:
            text += f"; position {place['value']:.2f} between memorisation (0) and generalisation (1)"
    about = record.columns[row["column"]]
    keys = ("seeds", "transition", "generalised", "half_way", "memorised", "change_point", "lag", "log_lag", "position",
            "start", "end", "leads", "lags", "moved", "fell", "runs", "check", "sign_p", "judged", "started", "enough")
    return Finding(
        f"lead_lag/{row['column']}", "lead_lag",
        {"column": row["column"], "measure": about["measure"], "property": about["property"], "split": about["split"]},
        text + ".", found, row["estimates"], row["n"], "t test of the log lag over seeds, Holm over measures", row["p"],
        RULE.format(moved=record.rules.moved_factor, alpha=record.rules.alpha), {key: row[key] for key in keys})
