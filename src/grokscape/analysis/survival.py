"""How long generalisation takes once the training set is memorised, with runs that never get there kept in.

The clock starts at memorisation. A run that had not generalised by its last step, or that diverged, is censored
there. Restricted mean delay: the mean of min(delay, τ), with τ the longest time for which every censored run was
followed; until τ nobody is lost, so it needs no model and no Kaplan–Meier estimate and is not biased by censoring.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from grokscape.analysis.estimation import bootstrap_interval, estimate, mean_and_error, one_sided, swap_test
from grokscape.analysis.frames import Array, Flags
from grokscape.plural import counted
from grokscape.rules import Rules

_TIED = 0.8  # share of the seeds between the same two evaluations; simulated tests keep their level up to about 0.85


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


def onset_curve(runs: pl.DataFrame, event: str, confidence: float = 0.95) -> dict[str, Any]:
    """`kaplan_meier` of an onset, "memorised" or "generalised", over the steps of training."""
    known = runs.drop_nulls("followed")
    times = known.select(pl.coalesce(event, "followed"))[event].to_numpy()
    return kaplan_meier(times, known[event].is_not_null().to_numpy(), confidence)


def delay_curve(runs: pl.DataFrame, confidence: float = 0.95) -> dict[str, Any]:
    """`kaplan_meier` of the delay from memorisation to generalisation, of the runs that memorised."""
    known = runs.drop_nulls("delay")
    return kaplan_meier(known["delay"].to_numpy(), known["delay_observed"].to_numpy(), confidence)


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


def counting(limit: float | None) -> str:
    """Up to where delays are counted, in words; "" where each is known to its end.

    >>> counting(1435.5)
    ', counting at most 1436 steps'
    """
    return "" if limit is None else f", counting at most {counted(f'{limit:.0f}', 'step')}"


@dataclass(frozen=True)
class Delays:
    """Delays of an arm and of its baseline by seed, (n,) each, restricted at their common τ (`limit`).

    Attributes:
        own: the arm's.
        base: the baseline's.
        own_ends: the shortest and the longest that the evaluations allow where they are too coarse to tell, (2, n).
        base_ends: the baseline's.
        limit: τ; NaN without seeds.
        seen: whether the arm's ended by generalising within τ.
        seen_base: whether the baseline's did.
    """

    own: Array
    base: Array
    own_ends: Array
    base_ends: Array
    limit: float
    seen: Flags
    seen_base: Flags

    @property
    def counted_to(self) -> float | None:
        """Steps up to which delays are counted; None if each of them ended by generalising."""
        return None if self.seen.all() and self.seen_base.all() else self.limit

    def ratio(self, rules: Rules, clock: str = "delay") -> dict[str, Any]:
        """Restricted mean delay of the arm over the baseline's, with a bootstrap interval over seeds.

        Where evaluations are too coarse its ends move as far as the ratio does from one end to the other.
        """
        unit = f"times the baseline's {clock}{counting(self.counted_to)}"
        if not len(self.base) or self.base.mean() <= 0:
            return estimate(None, unit=unit)
        value = float(self.own.mean() / self.base.mean())
        if value == 0 or self.base_ends[0].mean() <= 0:  # the baseline may have no delay: no end to the ratio
            return estimate(value, unit=unit)
        least, most = (float(own.mean() / base.mean()) for own, base in zip(self.own_ends, self.base_ends[::-1]))
        found = bootstrap_interval(log_ratio_of_means, self.own, self.base, confidence=1 - rules.alpha,
                                   resamples=rules.bootstrap)
        if found["low"] is None:
            return estimate(value, unit=unit)
        return estimate(value, float(np.exp(found["low"])) * least / value, float(np.exp(found["high"])) * most / value,
                        unit)

    def slower_than(self, factor: float) -> float:
        """p value of "mean delay ≤ factor × baseline's mean delay" against "longer" (paired t test).

        Where runs are censored both sides are cut at factor × τ: beyond it the baseline's count no more either.
        """
        return self._greater(np.minimum(self.own_ends[0], factor * self._cut) - factor * self.base_ends[1])

    def faster_than(self, factor: float) -> float:
        """p value of "mean delay ≥ factor × baseline's mean delay" against "shorter"."""
        return self._greater(factor * self.base_ends[0] - self.own_ends[1])

    def within(self, factor: float) -> float:
        """p value of "mean delay ≥ factor × baseline's", cut at τ as the arm's are; 1 if τ is too early to tell."""
        if len(self.base) and self._cut < factor * self.base.mean():
            return 1.0
        return self._greater(np.minimum(factor * self.base_ends[0], self._cut) - self.own_ends[1])

    @property
    def _cut(self) -> float:
        return np.inf if self.counted_to is None else self.limit

    def _greater(self, differences: Array) -> float:
        return one_sided(differences, 0.0) if len(self.base) and self.base.mean() > 0 else 1.0


def paired_delays(results: pl.DataFrame, arm: str, baseline: str) -> Delays:
    """Delays of two arms by shared seed, of the seeds that memorised in both.

    A run memorised, and generalised, somewhere between two evaluations. The middles are taken: the later of the two
    would add the same steps to a short delay as to a long one, or take them off, and so bend their ratio. Over seeds
    that are spread over several evaluations the middles' errors cancel. Where more than `_TIED` of an arm's seeds have
    an onset between the same two evaluations nothing shows where in between it lies: the ends keep both possibilities.
    """
    known = results.drop_nulls(["memorised", "followed"])
    runs = [known.filter(arm=name).sort("seed") for name in (arm, baseline)]
    pair = [one.join(other, on="seed", how="semi") for one, other in (runs, runs[::-1])]
    spans = [np.stack([_delay(runs, place) for place in (0.0, 0.5, 1.0)]) for runs in pair]
    own_seen, base_seen = (runs["delay_observed"].to_numpy() for runs in pair)
    limit = restriction(np.r_[spans[0][1], spans[1][1]], np.r_[own_seen, base_seen])
    cut = np.inf if own_seen.all() and base_seen.all() else limit
    own, base = (np.minimum(span, cut) for span in spans)
    return Delays(own[1], base[1], own[::2], base[::2], limit,
                  own_seen & (spans[0][1] <= limit), base_seen & (spans[1][1] <= limit))


def _delay(runs: pl.DataFrame, place: float) -> Array:
    """Delays with the onsets at a place in the gaps that too many seeds share: 0: shortest, 1: longest."""
    end = np.where(runs["delay_observed"].to_numpy(), _within(runs, "generalised", place), runs["followed"].to_numpy())
    return np.maximum(end - _within(runs, "memorised", 1 - place), 0.0)


def _within(runs: pl.DataFrame, moment: str, place: float) -> Array:
    """Where between two evaluations an onset is put: in the middle, unless (nearly) all seeds have it there."""
    late, early = (runs[name].cast(pl.Float64).to_numpy() for name in (moment, f"{moment}_lower"))
    early = np.where(np.isnan(early), late, early)
    counts = np.unique(late[~np.isnan(late)], return_counts=True)[1]
    tied = len(counts) and counts.max() > _TIED * counts.sum()
    return early + (place if tied else 0.5) * (late - early)


def log_ratio_of_means(first: Array, second: Array) -> tuple[Array, Array]:
    """Log ratio of the means of paired values over the last axis, and its standard error (linearised)."""
    top, bottom = first.mean(axis=-1), second.mean(axis=-1)
    shares = first / top[..., None] - second / bottom[..., None]
    return np.log(top / bottom), mean_and_error(shares)[1]


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
