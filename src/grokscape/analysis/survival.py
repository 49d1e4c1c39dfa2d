"""How long generalisation takes once the training set is memorised, with runs that never get there kept in.

The clock starts at memorisation. A run that had not generalised by its last step, or that diverged, is censored
there. Restricted mean delay: the mean of min(delay, τ), with τ the longest time for which every censored run was
followed; until τ nobody is lost, so it needs no model and no Kaplan–Meier estimate and is not biased by censoring.
"""

import warnings
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from grokscape.analysis.design import Rules
from grokscape.analysis.estimation import bootstrap_interval, estimate, mean_and_error, one_sided, swap_test
from grokscape.analysis.frames import Array, Flags


def kaplan_meier(times: Array, observed: Flags, confidence: float = 0.95) -> dict[str, Any]:
    """Share of runs that have not generalised, as a step function, with log-log intervals.

    Args:
        times: (n,) steps to the event or to the end of follow-up.
        observed: (n,) whether it was the event.
        confidence: of the pointwise interval.

    Returns:
        {"steps", "share", "low", "high"}, each a list that starts at step 0; {"median"}: first step at which half
        have generalised, or None; {"censored"}: steps at which runs were lost sight of.
    """
    times, observed = np.asarray(times, float), np.asarray(observed, bool)
    empty: dict[str, Any] = {"steps": [], "share": [], "low": [], "high": [], "median": None, "censored": []}
    if not len(times):
        return empty
    if not observed.any():
        return empty | {"steps": [0.0, float(np.max(times))], "share": [1.0, 1.0], "low": [None, None],
                        "high": [1.0, 1.0], "censored": sorted(times.tolist())}
    data = stats.CensoredData(uncensored=times[observed], right=times[~observed])
    curve = stats.ecdf(data).sf
    interval = _interval(curve, confidence)
    reached = curve.quantiles[curve.probabilities <= 0.5 * (1 + 1e-9)]  # a product of shares, rounded
    return {"steps": [0.0, *curve.quantiles.tolist()], "share": [1.0, *curve.probabilities.tolist()],
            "low": [1.0, *_plain(interval[0])], "high": [1.0, *_plain(interval[1])],
            "median": float(reached[0]) if len(reached) else None, "censored": sorted(times[~observed].tolist())}


def _interval(curve: Any, confidence: float) -> tuple[Array, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = curve.confidence_interval(confidence, method="log-log")
    return interval.low.probabilities, interval.high.probabilities


def _plain(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def restriction(delays: Array, observed: Flags) -> float:
    """τ: the longest time for which every run is followed, or the longest delay if none is censored; NaN if empty."""
    known = ~np.isnan(delays)
    delays, observed = delays[known], observed[known]
    if not len(delays):
        return float("nan")
    return float(np.max(delays) if observed.all() else np.min(delays[~observed]))


def paired_delays(results: pl.DataFrame, arm: str, baseline: str) -> tuple[Array, Array, float, Flags, Flags]:
    """Delays of two arms by shared seed, restricted at their common τ, seeds that memorised in both.

    A run memorised, and generalised, somewhere between two evaluations. The middles are taken: the later of the two
    would add the same steps to a short delay as to a long one, or take them off, and so bend their ratio.

    Returns:
        Delays of the arm and of the baseline, τ, and whether each ended by generalising within τ.
    """
    end = pl.when("delay_observed").then(_between("generalised")).otherwise("followed")
    results = results.with_columns(delay=(end - _between("memorised")).clip(lower_bound=0.0))
    both = results.filter(arm=arm).join(results.filter(arm=baseline), on="seed", suffix="_base").sort("seed")
    both = both.filter(pl.col("delay").is_not_null() & pl.col("delay_base").is_not_null())
    first, second = both["delay"].to_numpy(), both["delay_base"].to_numpy()
    seen, seen_base = both["delay_observed"].to_numpy(), both["delay_observed_base"].to_numpy()
    limit = restriction(np.r_[first, second], np.r_[seen, seen_base])
    return (np.minimum(first, limit), np.minimum(second, limit), limit,
            seen & (first <= limit), seen_base & (second <= limit))


def _between(moment: str) -> pl.Expr:
    """The middle between the evaluation of an onset and the one before it, if there is one."""
    return (pl.col(moment) + pl.coalesce(f"{moment}_lower", moment)) / 2


def log_ratio_of_means(first: Array, second: Array) -> tuple[Array, Array]:
    """Log ratio of the means of paired values over the last axis, and its standard error (linearised)."""
    top, bottom = first.mean(axis=-1), second.mean(axis=-1)
    shares = first / top[..., None] - second / bottom[..., None]
    return np.log(top / bottom), mean_and_error(shares)[1]


def counted_to(limit: float, *seen: Flags) -> float | None:
    """Steps up to which delays are counted; None if each of them ended by generalising."""
    return None if all(flags.all() for flags in seen) else limit


def delay_ratio(first: Array, second: Array, rules: Rules, clock: str = "delay",
                limit: float | None = None) -> dict[str, Any]:
    """Restricted mean delay of an arm over the baseline's, with a bootstrap interval over seeds; see `counted_to`."""
    unit = f"times the baseline's {clock}" + ("" if limit is None else f", counting at most {limit:g} steps")
    if len(first) == 0 or second.mean() <= 0:
        return estimate(None, unit=unit)
    if first.mean() == 0:
        return estimate(0.0, unit=unit)
    found = bootstrap_interval(log_ratio_of_means, first, second, confidence=1 - rules.alpha,
                               resamples=rules.bootstrap)
    value, low, high = (None if found[key] is None else float(np.exp(found[key])) for key in ("value", "low", "high"))
    return estimate(value, low, high, unit)


def slower_than(first: Array, second: Array, factor: float) -> float:
    """p value of "mean delay ≤ factor × baseline's mean delay" against "longer" (paired t on first − factor·second)."""
    return one_sided(first - factor * second, 0.0) if len(second) and second.mean() > 0 else 1.0


def faster_than(first: Array, second: Array, factor: float) -> float:
    """p value of "mean delay ≥ factor × baseline's mean delay" against "shorter"."""
    return one_sided(factor * second - first, 0.0) if len(second) and second.mean() > 0 else 1.0


def paired_log_rank(first: Array, second: Array, seen: Flags, seen_base: Flags) -> float:
    """Log-rank test of two arms whose replicas are paired by seed.

    Each run scores its event (1 or 0) minus the pooled Nelson–Aalen hazard up to its time; within a seed the two
    scores are swapped (O'Brien & Fleming 1987). Exact for any number of seeds, which the χ² form is not.
    """
    times, events = np.r_[first, second], np.r_[seen, seen_base].astype(float)
    if not len(first):
        return 1.0
    moments, place = np.unique(times, return_inverse=True)
    at_risk = len(times) - np.searchsorted(np.sort(times), moments, side="left")
    hazard = np.cumsum(np.bincount(place, weights=events) / at_risk)
    scores = events - hazard[place]
    return swap_test(scores[: len(first)] - scores[len(first):])
