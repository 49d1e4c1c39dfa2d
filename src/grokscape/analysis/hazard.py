"""Does a measure foretell generalisation, and does it do so beyond the train loss?

The clock of each run starts at its memorisation. At each moment at which a run generalises it is compared with the
runs of the same arm that have not done so by then (a Cox model stratified by arm), by the last values seen before
that moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from grokscape.analysis.cox import RiskSets, concordance, fit
from grokscape.analysis.estimation import estimate, holm, interval_text
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import TRAIN_LOSS, Array
from grokscape.analysis.record import Record
from grokscape.analysis.transitions import on_log_scale
from grokscape.plural import counted
from grokscape.rules import Rules

RULE = (
    "Cox model of the hazard of generalising, time from memorisation, stratified by arm, covariates as last seen "
    "before; hazard ratios per standard deviation of the measure (its logarithm unless it takes both signs). "
    "Intervals: jackknife over groups of seeds, Student's t; none, and no verdict, below {seeds} seeds or {runs} "
    "runs, whose order is too often perfect by chance. Concordance: share of pairs in which the run that generalises "
    "is ranked above one that has not, by coefficients of the other seeds. Foretells beyond the loss: p of the "
    "adjusted coefficient, Holm over measures, at most {alpha:g}."
)
GROUPS = 10
FEWEST = 8


@dataclass(frozen=True)
class Moments:
    """Risk sets of a study and when each of their rows is to be looked at.

    Attributes:
        sets: the risk sets, M rows.
        step: (M,) the moment in steps of the row's own run.
        group: (R,) group of seeds that is left out together.
    """

    sets: RiskSets
    step: Array
    group: NDArray[np.int64]


def moments(record: Record) -> Moments:
    """The risk sets of all arms that are at risk of generalising."""
    delay, start = record.moment("delay"), record.moment("memorised")
    observed = record.results["delay_observed"].to_numpy() & ~record.panel.diverged
    run, event, step, sizes = [], [], [], []
    for arm in record.arms:
        rows = record.panel.rows(arm.name)
        rows = rows[~np.isnan(delay[rows])]
        for time in np.unique(delay[rows[observed[rows]]]):
            at_risk = rows[delay[rows] >= time]
            run.append(at_risk)
            event.append(observed[at_risk] & (delay[at_risk] == time))
            step.append(start[at_risk] + time)
            sizes.append(len(at_risk))
    seeds = np.unique(record.panel.seeds)
    group = np.searchsorted(seeds, record.panel.seeds).astype(np.int64) % min(GROUPS, max(len(seeds), 1))
    starts = np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64) if sizes else np.array([], dtype=np.int64)
    sets = RiskSets(_joined(run, np.int64), _joined(event, np.bool_), starts)
    return Moments(sets, _joined(step, np.float64), group)


def _joined(parts: list[Any], kind: Any) -> Any:
    return np.concatenate(parts).astype(kind) if parts else np.array([], dtype=kind)


def last_seen(record: Record, column: str, at: Moments) -> Array:
    """Log of a column at its last measurement before each row's moment, (M,); NaN if there was none."""
    logs, _ = on_log_scale(record.series(column))
    place = np.where(np.isnan(logs), 0, np.arange(logs.shape[1])[None] + 1)
    latest = np.maximum.accumulate(place, axis=1)
    steps = np.where(np.isnan(record.panel.steps), np.inf, record.panel.steps)
    before = np.empty(len(at.step), dtype=np.int64)
    for run in np.unique(at.sets.run):
        mine = at.sets.run == run
        before[mine] = np.searchsorted(steps[run], at.step[mine], side="left") - 1
    index = np.where(before >= 0, latest[at.sets.run, np.maximum(before, 0)] - 1, -1)
    return np.where(index >= 0, logs[at.sets.run, np.maximum(index, 0)], np.nan)


def model(at: Moments, covariates: Sequence[Array]) -> dict[str, Any]:
    """Fit on all runs, jackknifed over groups of seeds, with the concordance of pairs of seeds left out.

    Returns:
        {"beta", "se": (p,), "df", "runs", "events", "concordance", "pairs"}; beta is NaN where nothing can be fitted.
    """
    x = np.stack(covariates, axis=1)
    sets, rows = at.sets.keep(np.array(np.isfinite(x).all(axis=1), dtype=bool))
    x, p = x[rows], x.shape[1]
    spread = x.std(axis=0) if len(x) else np.zeros(p)
    if not len(x) or not (spread > 0).all():
        nothing = np.full(p, np.nan)
        return {"beta": nothing, "se": nothing, "df": 0, "runs": 0, "events": 0, "concordance": np.nan, "pairs": 0}
    x = (x - x.mean(axis=0)) / spread
    group = at.group[sets.run]
    groups = np.unique(at.group)
    beta, left_out, g = fit(sets, x), np.full((len(groups), p), np.nan), len(groups)
    for one in groups:
        rest, kept = sets.keep(group != one)
        left_out[one] = fit(rest, x[kept])
    # Who is compared must be unseen on both sides: without two groups the coefficients move by what each moves them.
    betas = left_out[:, None] + left_out - beta
    betas[groups, groups] = left_out
    good, pairs = concordance(sets, x, group, betas)
    se = np.sqrt((g - 1) / g * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    return {"beta": beta, "se": se, "df": g - 1, "runs": len(np.unique(sets.run)),
            "events": int(sets.event.sum()), "concordance": good / pairs if pairs else np.nan, "pairs": pairs}


def _ratio(found: dict[str, Any], rules: Rules) -> tuple[dict[str, Any], float]:
    """Hazard ratio per standard deviation of the first covariate with its interval, and its p value."""
    beta, se, df = float(found["beta"][0]), float(found["se"][0]), found["df"]
    unit = "hazard ratio per standard deviation"
    if np.isnan(beta):
        return estimate(None, unit=unit), 1.0
    if np.isnan(se) or se == 0 or df < max(rules.minimum_seeds - 1, 1) or found["runs"] < FEWEST:
        return estimate(float(np.exp(beta)), unit=unit), 1.0
    reach = float(stats.t.ppf(1 - rules.alpha / 2, df)) * se
    with np.errstate(over="ignore"):
        low, high = float(np.exp(beta - reach)), float(np.exp(beta + reach))
    return estimate(float(np.exp(beta)), low, high, unit), float(2 * stats.t.sf(abs(beta) / se, df))


def hazard_table(record: Record) -> list[dict[str, Any]]:
    """One row per measured column, best first by concordance on held-out seeds beyond the loss, then alone.

    Keys: `column`, `measure`, `property`, `split`, `title`, `events`, `ratio`, `ratio_adjusted` (estimates), `p`,
    `p_adjusted` (Holm over measures), `concordance`, `concordance_adjusted`, `concordance_loss`, `gain` (over the loss
    at the moments that have both).
    """
    at = moments(record)
    loss = last_seen(record, TRAIN_LOSS, at)
    reference = model(at, [loss])["concordance"]
    rows = []
    for column in record.measured():
        values = last_seen(record, column, at)
        alone, both = model(at, [values]), model(at, [values, loss])
        seen = np.where(np.isnan(values), np.nan, loss)
        before = reference if np.array_equal(seen, loss, equal_nan=True) else model(at, [seen])["concordance"]
        ratio, p = _ratio(alone, record.rules)
        adjusted, p_adjusted = _ratio(both, record.rules)
        rows.append({"column": column, **{key: record.columns[column][key] for key in
                                          ("measure", "property", "split", "title")},
                     "events": alone["events"], "ratio": ratio, "ratio_adjusted": adjusted, "p": p,
                     "p_adjusted": p_adjusted, "concordance": alone["concordance"],
                     "concordance_adjusted": both["concordance"], "concordance_loss": reference,
                     "gain": both["concordance"] - before})
    for key in ("p", "p_adjusted"):
        for row, p in zip(rows, holm([row[key] for row in rows])):
            row[key] = p
    return sorted(rows, key=_rank)


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    return -np.nan_to_num(row["gain"], nan=-1.0), -np.nan_to_num(row["concordance"], nan=-1.0)


def hazard(record: Record) -> list[Finding]:
    """The ranking of all measures as one finding, and one finding per measure that foretells beyond the loss."""
    rows = hazard_table(record)
    if not rows:
        return []
    rule = RULE.format(alpha=record.rules.alpha, seeds=record.rules.minimum_seeds, runs=FEWEST)
    seeds = len(np.unique(record.panel.seeds))
    if np.isnan(record.moment("memorised")).all():
        text = "No run memorised, and the time to be foretold starts there"
    elif all(np.isnan(row["concordance"]) for row in rows):
        text = "No run generalised while another of its arm had not, so nothing can be said about foretelling it"
    else:
        good = [row for row in rows if row["p_adjusted"] <= record.rules.alpha]
        text = f"{len(good)} of {counted(len(rows), 'measure')} can be shown to foretell generalisation beyond " \
               "the train loss" \
               + (f" ({', '.join(row['title'] + ', ' + row['split'] for row in good[:5])})" if good else "") \
               + "".join(_best(rows, *group) for group in (
                   ("of those that see the training set alone", ("train", "params")),
                   ("of those that see held-out samples", ("test", "cross")))) \
               + f"; the train loss alone has {rows[0]['concordance_loss']:.2f} and guessing 0.50"
    ranking = Finding("hazard", "hazard", {}, text + ".", n=seeds, test="Cox model, jackknife over seeds", rule=rule,
                      data={"table": rows})
    return [ranking, *(_measure_finding(record, row, rule, seeds) for row in rows if row["events"])]


def _best(rows: list[dict[str, Any]], whose: str, splits: tuple[str, ...]) -> str:
    best = next((row for row in rows if row["split"] in splits and not np.isnan(row["concordance_adjusted"])), None)
    if best is None:
        return ""
    return f"; {whose}, {best['title']} does best on seeds left out, with a concordance of " \
           f"{best['concordance_adjusted']:.2f} beside the loss and {best['concordance']:.2f} alone"


def _measure_finding(record: Record, row: dict[str, Any], rule: str, seeds: int) -> Finding:
    verdict = "foretells beyond the loss" if row["p_adjusted"] <= record.rules.alpha else "not shown beyond the loss"
    adjusted = row["ratio_adjusted"]
    if adjusted["value"] is None:
        text, verdict = f"{row['title']} ({row['split']}) cannot be told apart from the train loss", "inconclusive"
    else:
        text = f"At equal train loss, one standard deviation more of {row['title']} ({row['split']}) multiplies " \
               f"the chance of generalising next by {adjusted['value']:.2g}{interval_text(adjusted, '.2g')}"
    return Finding(
        f"hazard/{row['column']}", "hazard", {key: row[key] for key in ("column", "measure", "property", "split")},
        text + ".", verdict,
        {"hazard ratio": row["ratio"], "hazard ratio beside the loss": adjusted,
         "concordance": estimate(row["concordance"], unit="share of pairs"),
         "concordance beside the loss": estimate(row["concordance_adjusted"], unit="share of pairs")},
        seeds, "Cox model, jackknife over seeds, Holm over measures", row["p_adjusted"], rule, {"row": row})
