"""Estimates over seeds: intervals that are honest with few of them, equivalence, sign tests, correction.

The unit is the seed: arrays hold one value per seed, paired arms in the same order. Fewer than two values, or values
that are all alike, give an estimate without an interval, none give no estimate; nothing here raises for small n.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from grokscape.analysis.frames import Array

Statistic = Callable[..., tuple[Array, Array]]


def plain(value: Any) -> Any:
    """The same value from Python's own types, with None for what is not finite: ready for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def estimate(value: float | None, low: float | None = None, high: float | None = None,
             unit: str = "") -> dict[str, Any]:
    """An estimate as findings hold it; a number that does not exist is None."""
    return plain({"value": value, "low": low, "high": high, "unit": unit})


def interval_text(item: Mapping[str, Any], style: str = ".2f", factor: float = 1.0, unit: str = "") -> str:
    """The interval of an estimate as a remark that follows it; "" if it has none."""
    if item["low"] is None or item["high"] is None:
        return ""
    return f" (interval {format(factor * item['low'], style)} to {format(factor * item['high'], style)}{unit})"


def mean_interval(values: Array, confidence: float = 0.95, unit: str = "") -> dict[str, Any]:
    """Mean over seeds with Student's t interval; NaN left out; values that are all alike give no interval."""
    values = values[~np.isnan(values)]
    if len(values) < 2 or np.ptp(values) == 0:
        return estimate(float(values[0]) if len(values) else None, unit=unit)
    mean, spread = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    return estimate(mean, mean - reach, mean + reach, unit)


def share_interval(successes: int, n: int, confidence: float = 0.95) -> dict[str, Any]:
    """Share of seeds with the exact (Clopper–Pearson) interval."""
    if n == 0:
        return estimate(None, unit="share of seeds")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    return estimate(successes / n, interval.low, interval.high, "share of seeds")


def bootstrap_interval(statistic: Statistic, *samples: Array, confidence: float = 0.95, resamples: int = 4000,
                       unit: str = "", seed: int = 0) -> dict[str, Any]:
    """A statistic of paired samples with a studentised bootstrap interval over seeds.

    Seeds are drawn with replacement, the same ones in every sample; the quantiles of (draw − estimate)/error replace
    those of Student's t (bootstrap-t, Efron & Tibshirani 1993, ch. 12), which keeps its coverage with a handful of
    seeds where plain percentiles are too narrow. Draws of seeds that are all alike (ties, as on a coarse grid) have no
    error and lie infinitely far out; where they reach the quantile, and below eight seeds, Student's t is used.
    Where there is no spread at all there is no interval: seeds that are all alike do not show how far others may lie.

    Args:
        statistic: samples (..., n) in, value and standard error (...) out.
        samples: (n,) each.
        confidence: nominal coverage.
        resamples: how many draws.
        unit: of the estimate.
        seed: of the draws; the same data and seed give the same interval.
    """
    n, tails = len(samples[0]), np.array([(1 + confidence) / 2, (1 - confidence) / 2])
    if n == 0:
        return estimate(None, unit=unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, error = (float(part) for part in statistic(*samples))
        if n < 2 or not error > 1e-12 * max(1.0, abs(value)):
            return estimate(value, unit=unit)
        quantiles = stats.t.ppf(tails, n - 1)
        if n >= 8 and error > 0:
            picks = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
            draws, errors = statistic(*(sample[picks] for sample in samples))
            gaps, sure = draws - value, ~(errors > 1e-9 * error)
            shifts = np.where(sure, np.copysign(np.where(gaps == 0, 0.0, np.inf), gaps), gaps / errors)
            found = np.quantile(shifts[~np.isnan(shifts)], tails, method="inverted_cdf")
            quantiles = np.where(np.isfinite(found), found, quantiles)
    return estimate(value, value - quantiles[0] * error, value - quantiles[1] * error, unit)


def mean_and_error(values: Array) -> tuple[Array, Array]:
    """Mean over the last axis and its standard error."""
    n = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[:-1], np.nan)
    return values.mean(axis=-1), error


def one_sided(values: Array, bound: float) -> float:
    """p value of "the mean is at most `bound`" against "it is greater" (Student's t); 1 if it cannot be tested.

    Values that are all alike leave no doubt: p is 0 above the bound, else 1.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return 1.0
    gap, spread = float(values.mean()) - bound, float(values.std(ddof=1) / np.sqrt(len(values)))
    if spread <= 1e-12 * max(abs(float(values.mean())), abs(bound)):
        return 0.0 if gap > 0 and not np.isclose(gap, 0, atol=1e-12) else 1.0
    return float(stats.t.sf(gap / spread, len(values) - 1))


def tost(differences: Array, margin: float) -> float:
    """Two one-sided tests: p value of "the mean difference is at least `margin` away from zero" (Schuirmann 1987)."""
    return max(one_sided(differences, -margin), one_sided(-differences, -margin))


def sign_test(below: int, above: int) -> float:
    """Two-sided exact sign test; ties are left out beforehand; 1 if nothing is left."""
    return float(stats.binomtest(below, below + above).pvalue) if below + above else 1.0


def swap_test(differences: Array) -> float:
    """Two-sided p value of "swapping the two arms of a seed changes nothing", for the mean of paired differences.

    All 2^n swaps are tried where they are fewer than 10 000, else as many random ones; exact under the null.
    """
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2 or not differences.any():
        return 1.0
    result = stats.permutation_test((differences,), lambda x, axis=-1: x.mean(axis=axis), permutation_type="samples",
                                    vectorized=True, n_resamples=9999, rng=np.random.default_rng(0))
    return float(result.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p values after Holm's step-down correction, in the order given (statsmodels' collects garbage at each call)."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected.tolist()


def row_median(values: Array) -> Array:
    """Median of each row of (R, T), NaN left out; NaN for rows without values."""
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    ordered, rows = np.sort(values, axis=1), np.arange(len(values))  # NaN goes last
    count = (~np.isnan(values)).sum(axis=1)
    below, above = np.maximum(count - 1, 0) // 2, count // 2
    return (ordered[rows, below] + ordered[rows, above]) / 2


def geometric_median(values: Array) -> Array:
    """Median of each row of (R, T) on a log scale where all its values are positive; NaN for rows without values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = (np.isnan(values) | (values > 0)).all(axis=1)
        return np.where(positive, np.exp(row_median(np.log(np.where(values > 0, values, np.nan)))), row_median(values))
