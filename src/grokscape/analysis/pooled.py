"""Several runs together: more seeds of one study are joined, different testbeds are summarised by random effects."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from grokscape.analysis.estimation import estimate, interval_text
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import FrameError
from grokscape.analysis.record import Record
from grokscape.plural import rounded

RULE = (
    "Random effects over testbeds (Paule–Mandel variance, Hartung–Knapp interval with Student's t). Verdict: the one "
    "that all testbeds with a clear verdict share, if there are at least two of them; mixed if they differ; else "
    "inconclusive."
)
_SAME = ("testbed", "model", "optimizer", "batch_size")
_RULES = ("onset", "verdict", "steps")
_DONE = ("role", "control", "interventions", "optimizer", "testbed", "model")


def joined(records: Sequence[Record]) -> list[Record]:
    """Records of the same testbed, model and optimiser made one with all their seeds; the others as they are.

    Raises:
        FrameError: two runs of one study hold the same seed of the same arm, which would count it twice, were planned
            with different rules or lengths, or call two arms that do not do the same by one name.
    """
    groups: dict[str, list[Record]] = {}
    for place, record in enumerate(records):
        key = json.dumps({name: record.spec.get(name) for name in _SAME}, sort_keys=True, default=str)
        groups.setdefault(key if record.spec else f"no plan {place}", []).append(record)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: list[Record]) -> Record:
    seen: dict[tuple[str, int], str] = {}
    frames, listed, start = [], [], 0
    arms: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for record in group:
        other = [name for name in _RULES if record.spec.get(name) != group[0].spec.get(name)]
        if other:
            raise FrameError(f"{group[0].name} and {record.name} train the same network on the same task but differ in "
                             f"{', '.join(other)}; runs to be joined need the same, so analyse them one by one")
        replicas = record.panel.replicas
        for arm, seed in replicas.select("arm", "seed").iter_rows():
            if (arm, seed) in seen:
                raise FrameError(f"seed {seed} of arm {arm!r} is in two of the runs to be pooled ({seen[arm, seed]} "
                                 f"and {record.name}); give each run its own seeds, or leave one out")
            seen[arm, seed] = record.name
        numbers = {old: start + new for new, old in enumerate(replicas["replica"])}
        renumbered = pl.col("replica").replace_strict(numbers, return_dtype=pl.Int64)
        frames.append(record.panel.frame.with_columns(renumbered))
        listed += [{"replica": numbers[row["replica"]], "arm": row["arm"], "seed": row["seed"],
                    "diverged_at": -1 if row["diverged"] else None} for row in replicas.iter_rows(named=True)]
        start += len(replicas)
        for arm in record.spec.get("arms") or []:
            known = arms.setdefault(arm["name"], arm)
            apart = [name for name in _DONE if (known.get(name) or None) != (arm.get(name) or None)]
            if apart:
                raise FrameError(f"arm {arm['name']!r} of {record.name} differs from that of {group[0].name} in "
                                 f"{', '.join(apart)}, so their seeds are none of one arm; give one of them another "
                                 f"name, or analyse the runs one by one")
        columns |= record.columns
    spec = {**group[0].spec, "arms": list(arms.values())}
    return Record.of(pl.concat(frames, how="diagonal_relaxed"), spec, columns, {"replicas": listed})


def pooled(studies: Sequence[tuple[Record, list[Finding]]]) -> list[Finding]:
    """What several testbeds say together, property by property and measure by measure."""
    verdicts = _shared(studies, ("necessity", "sufficiency"))
    found: list[Finding | None] = [_pool_verdicts(studies, kind, name) for kind, name in verdicts]
    for kind, name in _shared(studies, ("lead_lag",)):
        found.append(_pool_estimate(studies, kind, name, "log lag", "transition over the moment of generalisation"))
    for kind, name in _shared(studies, ("hazard",)):
        if name != "hazard":
            found.append(_pool_estimate(studies, kind, name, "hazard ratio beside the loss", "hazard ratio"))
    return [item for item in found if item is not None]


def _shared(studies: Sequence[tuple[Record, list[Finding]]], kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Kind and id of findings that at least two studies have, in order of appearance."""
    count = Counter((item.kind, item.id) for _, found in studies for item in found if item.kind in kinds)
    return [key for key, times in count.items() if times >= 2]


def _of(studies: Sequence[tuple[Record, list[Finding]]], name: str) -> list[tuple[Record, Finding]]:
    return [(record, item) for record, found in studies for item in found if item.id == name]


def random_effects(effects: Sequence[float], errors: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean effect over testbeds with its interval, the spread between testbeds (τ) and its share I².

    Args:
        effects: one estimate per testbed.
        errors: their standard errors; a zero is taken as the smallest of the others.
        confidence: of the interval.

    Returns:
        {"value", "low", "high", "tau", "i2", "n"}; without an interval for fewer than two testbeds.
    """
    values, spread = np.asarray(effects, float), np.asarray(errors, float)
    known = np.isfinite(values) & np.isfinite(spread)
    values, spread = values[known], spread[known]
    nothing = {"low": None, "high": None, "tau": None, "i2": None, "n": len(values)}
    if len(values) < 2 or not (spread > 0).any():
        return {"value": float(values.mean()) if len(values) else None, **nothing}
    spread = np.where(spread > 0, spread, spread[spread > 0].min())
    with np.errstate(divide="ignore"):  # testbeds that are all alike, whose I² is zero
        result = combine_effects(values, spread**2, method_re="iterated")
    mean, tau2 = float(result.mean_effect_re), max(float(result.tau2), 0.0)
    weights = 1 / (spread**2 + tau2)
    error = np.sqrt((weights * (values - mean) ** 2).sum() / ((len(values) - 1) * weights.sum()))
    error = max(float(error), float(np.sqrt(1 / weights.sum())))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return {"value": mean, "low": mean - reach, "high": mean + reach, "tau": float(np.sqrt(tau2)),
            "i2": max(0.0, float(result.i2)), "n": len(values)}


def _error(item: dict[str, Any], n: int, alpha: float, log: bool) -> tuple[float, float]:
    """Value and standard error of an estimate, from its interval over `n` seeds (without spread none, and no error); of
    its log if asked."""
    if n > 1 and item.get("value") is not None and item.get("low") is None and not (log and not item["value"] > 0):
        return float(np.log(item["value"]) if log else item["value"]), 0.0
    if item.get("low") is None or item.get("high") is None or (log and not item["low"] > 0):
        return np.nan, np.nan
    change = np.log if log else float
    reach = float(stats.t.ppf(1 - alpha / 2, max(n - 1, 1)))
    return float(change(item["value"])), float(change(item["high"]) - change(item["low"])) / (2 * reach)


def _combined(items: list[tuple[Record, Finding]], pick: Any, log: bool) -> dict[str, Any]:
    """Random-effects summary of one estimate per testbed."""
    pairs = [_error(pick(item), item.n, record.rules.alpha, log) for record, item in items if pick(item)]
    return random_effects([pair[0] for pair in pairs], [pair[1] for pair in pairs], 1 - items[0][0].rules.alpha)


def _pool_verdicts(studies: Sequence[tuple[Record, list[Finding]]], kind: str, name: str) -> Finding:
    items = _of(studies, name)
    clear = [item.verdict for _, item in items if item.verdict != "inconclusive"]
    verdict = "inconclusive" if len(clear) < 2 else str(clear[0]) if len(set(clear)) == 1 else "mixed"
    counts = Counter(item.verdict for _, item in items)
    accuracy = _combined(items, lambda item: _strongest(item, "accuracy difference"), log=False)
    ratio = _combined(items, lambda item: _strongest(item, "delay ratio"), log=True)
    estimates = {"accuracy difference": _shown(accuracy, "difference in test accuracy", log=False),
                 "delay ratio": _shown(ratio, "times the baseline's delay", log=True)}
    subject = items[0][1].subject
    said = ", ".join(f"{one} in {times}" for one, times in counts.most_common())
    text = f"Over {len(items)} testbeds, {kind} of {subject['property']} ({subject['measure']}): {said}"
    if estimates["delay ratio"]["value"] is not None:
        text += f"; the arms that decide multiply the delay, as far as each testbed counts it, by " \
                f"{estimates['delay ratio']['value']:.2f}{interval_text(estimates['delay ratio'])}"
    table = [{"study": record.name, "verdict": item.verdict, "n": item.n, "p": item.p, "statement": item.statement,
              "accuracy difference": _strongest(item, "accuracy difference"),
              "delay ratio": _strongest(item, "delay ratio")} for record, item in items]
    return Finding(f"pooled/{name}", "pooled", {**subject, "of": kind}, text + ".", verdict, estimates, len(items),
                   "random effects over testbeds", rule=RULE,
                   data={"reason": text, "testbeds": table,
                         "heterogeneity": {"accuracy difference": accuracy, "delay ratio": ratio}})


def _strongest(item: Finding, what: str) -> dict[str, Any] | None:
    """The estimate of the last arm that decided: the strongest dose."""
    names = [name for name in item.estimates if name.startswith(what)]
    return item.estimates[names[-1]] if names else None


def _pool_estimate(studies: Sequence[tuple[Record, list[Finding]]], kind: str, name: str, what: str,
                   words: str) -> Finding | None:
    """One estimate of a measure over testbeds, as a factor."""
    items, log = _of(studies, name), what != "log lag"
    result = _combined(items, lambda item: item.estimates.get(what), log)
    if result["value"] is None or np.isnan(result["value"]):
        return None
    shown = _shown(result, "factor", log=True)
    verdict = "no clear effect"
    if shown["low"] is not None and (shown["low"] > 1 or shown["high"] < 1):
        verdict = "above one" if shown["low"] > 1 else "below one"
    subject = items[0][1].subject
    table = [{"study": record.name, "verdict": item.verdict, "n": item.n, what: item.estimates.get(what)}
             for record, item in items]
    text = f"Over {len(items)} testbeds, {words} of {subject['measure']} ({subject['split']}): " \
           f"{rounded(shown['value'])}{interval_text(shown)}"
    return Finding(f"pooled/{name}", "pooled", {**subject, "of": kind}, text + ".", verdict, {what: shown}, len(items),
                   "random effects over testbeds", rule=RULE,
                   data={"reason": text, "testbeds": table, "heterogeneity": result})


def _shown(result: dict[str, Any], unit: str, log: bool) -> dict[str, Any]:
    value, low, high = (result[key] for key in ("value", "low", "high"))
    if log:
        value, low, high = (None if x is None else float(np.exp(x)) for x in (value, low, high))
    return estimate(value, low, high, unit)
