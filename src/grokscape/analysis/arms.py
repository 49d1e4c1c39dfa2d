"""What became of each arm: when its runs memorised and generalised, and how their delay compares to the baseline."""

from grokscape.analysis.estimation import estimate, interval_text, share_interval
from grokscape.analysis.finding import Finding
from grokscape.analysis.record import Record
from grokscape.analysis.survival import counting, delay_curve, onset_curve, paired_delays, paired_log_rank
from grokscape.plural import counted

ONSET_RULE = (
    "Onset: first evaluation with train accuracy ≥ {train:g} (memorised) or test accuracy ≥ {test:g} (generalised) "
    "that holds for {hold}; a run that never gets there is censored, not dropped."
)


def onset_finding(record: Record, name: str) -> Finding:
    """When the runs of an arm memorised and generalised."""
    runs, rules = record.results.filter(arm=name), record.rules
    n, title = len(runs), record.arm(name).title
    curves = {event: onset_curve(runs, event, 1 - rules.alpha) for event in ("memorised", "generalised")}
    counts = {event: runs[event].count() for event in curves}
    medians = {event: curve["median"] for event, curve in curves.items()}
    text = " and ".join(f"{counts[event]} of {n} {event}{_step(medians[event])}" for event in curves)
    diverged = int(runs["diverged"].sum())
    return Finding(
        f"onset/{name}", "onset", {"arm": name}, f"{title}: {text}{f'; {diverged} diverged' if diverged else ''}.",
        estimates={event: share_interval(counts[event], n, 1 - rules.alpha) for event in curves}
        | {f"median step {event}": estimate(medians[event], unit="steps") for event in curves},
        n=n, rule=ONSET_RULE.format(
            train=rules.train_threshold, test=rules.test_threshold, hold=counted(rules.hold, "evaluation")),
        data={"per_seed": runs.drop("replica").to_dicts(), "kaplan_meier": curves, "horizon": record.panel.horizon})


def survival_finding(record: Record, name: str) -> Finding:
    """Delay of an arm against the baseline's: Kaplan–Meier curves, log-rank test, ratio of restricted means."""
    results, rules, base = record.results_before(record.arm(name).until), record.rules, record.baseline.name
    delays = paired_delays(results, name, base)
    first, second, upto, ratio = delays.own, delays.base, counting(delays.counted_to), delays.ratio(rules)
    p = paired_log_rank(first, second, delays.seen, delays.seen_base)
    curves = {arm: delay_curve(results.filter(arm=arm), 1 - rules.alpha) for arm in (base, name)}
    title, n = record.arm(name).title, len(first)
    whose = "" if n == len(record.panel.rows(name)) else " that memorised in both"
    if ratio["value"] is None:
        text = f"{title}: the delay cannot be compared with the baseline's"
    else:
        text = f"{title}: from memorisation to generalisation it takes {ratio['value']:.2f} times as long as the " \
               f"baseline{interval_text(ratio)}{upto}; {int(delays.seen.sum())} of {counted(n, 'seed')}{whose} " \
               f"generalised by then, and {int(delays.seen_base.sum())} of {n} in the baseline"
    return Finding(
        f"survival/{name}", "survival", {"arm": name, "baseline": base}, text + ".",
        estimates={"delay ratio": ratio,
                   "restricted mean delay": estimate(first.mean() if len(first) else None, unit="steps"),
                   "restricted mean delay, baseline": estimate(second.mean() if len(second) else None, unit="steps")},
        n=len(first), test="log-rank, paired by seed (swap test)", p=p,
        rule="Ratio of mean min(delay, τ), τ the longest time for which every censored run was followed; interval: "
             "bootstrap over seeds; p for this arm alone, not corrected.",
        data={"kaplan_meier": curves, "restriction": delays.limit, "delays": first, "delays_baseline": second})


def _step(median: float | None) -> str:
    return "" if median is None else f" (median step {median:.0f})"
