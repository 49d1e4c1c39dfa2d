"""From a run folder, or any training log, to findings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.analysis.effects import effects
from grokscape.analysis.estimation import estimate, plain, share_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.manipulation import manipulation_finding
from grokscape.analysis.necessity import necessity, targets
from grokscape.analysis.record import Record
from grokscape.analysis.survival import delay_ratio, kaplan_meier, paired_delays, paired_log_rank
from grokscape.store import RunFolder


def analyze(source: RunFolder | str | Path) -> list[Finding]:
    """Analyse a run folder and write its findings.json.

    Raises:
        RunFolderError: there is no run folder at this place.
    """
    folder = source if isinstance(source, RunFolder) else RunFolder.open(source)
    found = findings_of(Record.read(folder))
    folder.write_findings([item.to_dict() for item in found])
    return found


def analyze_frame(frame: pl.DataFrame, spec: Mapping[str, Any] | None = None,
                  columns: Mapping[str, Mapping[str, Any]] | None = None) -> list[Finding]:
    """Analyse anybody's training log; see `frames` for the columns it needs.

    Raises:
        FrameError: a needed column is missing or not numeric.
    """
    return findings_of(Record.of(frame, spec, columns))


def findings_of(record: Record) -> list[Finding]:
    """All findings of one study."""
    found: list[Finding] = [onset_finding(record, arm.name) for arm in record.arms]
    if record.baseline is None:
        return found
    found += [survival_finding(record, arm.name) for arm in record.arms[1:]]
    found += [manipulation_finding(record, arm) for arm in record.arms if arm.aims]
    compared = effects(record)
    for target in targets(record):
        found += necessity(record, target, compared, [])
    return [Finding(**plain(item.to_dict())) for item in found]


def onset_finding(record: Record, name: str) -> Finding:
    """When the runs of an arm memorised and generalised."""
    runs, rules = record.results.filter(arm=name), record.rules
    n, title = len(runs), record.arm(name).title
    curves = {}
    for event in ("memorised", "generalised"):
        known = runs.drop_nulls("followed")
        times = known.select(pl.coalesce(event, "followed").alias("time"))["time"].to_numpy()
        curves[event] = kaplan_meier(times, known[event].is_not_null().to_numpy(), 1 - rules.alpha)
    counts = {event: runs[event].count() for event in curves}
    text = " and ".join(
        f"{counts[event]} of {n} {event}" + (f" (median step {curves[event]['median']:g})" if curves[event]["median"] else "")
        for event in curves)
    diverged = int(runs["diverged"].sum())
    return Finding(
        f"onset/{name}", "onset", {"arm": name}, f"{title}: {text}{f'; {diverged} diverged' if diverged else ''}.",
        estimates={event: share_interval(counts[event], n, 1 - rules.alpha) for event in curves}
        | {f"median step {event}": estimate(curves[event]["median"], unit="steps") for event in curves},
        n=n, rule=f"Onset: first evaluation with train accuracy ≥ {rules.train_threshold:g} (memorised) or test accuracy ≥ "
                  f"{rules.test_threshold:g} (generalised) that holds for {rules.hold} evaluations; a run that never gets "
                  f"there is censored, not dropped.",
        data={"per_seed": runs.drop("replica").to_dicts(), "kaplan_meier": curves, "horizon": record.panel.horizon})


def survival_finding(record: Record, name: str) -> Finding:
    """Delay of an arm against the baseline's: Kaplan–Meier curves, log-rank test, ratio of restricted means."""
    assert record.baseline is not None
    results, rules, base = record.results_before(record.arm(name).until), record.rules, record.baseline.name
    first, second, limit, seen, seen_base = paired_delays(results, name, base)
    ratio = delay_ratio(first, second, rules)
    p = paired_log_rank(first, second, seen, seen_base)
    curves = {}
    for arm in (base, name):
        runs = results.filter(arm=arm).drop_nulls("delay")
        curves[arm] = kaplan_meier(runs["delay"].to_numpy(), runs["delay_observed"].to_numpy(), 1 - rules.alpha)
    title = record.arm(name).title
    if ratio["value"] is None:
        text = f"{title}: the delay cannot be compared with the baseline's"
    else:
        span = "" if ratio["low"] is None else f" (interval {ratio['low']:.2f} to {ratio['high']:.2f})"
        text = f"{title}: from memorisation to generalisation it takes {ratio['value']:.2f} times as long as the baseline" \
               f"{span}, counting at most {limit:g} steps; {int(seen.sum())} of {len(seen)} seeds generalised within these, " \
               f"and {int(seen_base.sum())} of {len(seen)} in the baseline"
    return Finding(
        f"survival/{name}", "survival", {"arm": name, "baseline": base}, text + ".",
        estimates={"delay ratio": ratio,
                   "restricted mean delay": estimate(first.mean() if len(first) else None, unit="steps"),
                   "restricted mean delay, baseline": estimate(second.mean() if len(second) else None, unit="steps")},
        n=len(first), test="log-rank, paired by seed (swap test)", p=p,
        rule="Ratio of mean min(delay, τ), τ the longest time for which every censored run was followed; interval: "
             "bootstrap over seeds; p for this arm alone, not corrected.",
        data={"kaplan_meier": curves, "restriction": limit, "delays": first, "delays_baseline": second})
