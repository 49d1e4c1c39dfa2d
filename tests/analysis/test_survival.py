"""Survival: against a slow product-limit estimate, and against simulated delays whose truth is known."""

import itertools

import numpy as np
import polars as pl
import pytest
from scipy import integrate, stats

from grokscape.analysis.design import Rules
from grokscape.analysis.survival import (
    delay_ratio,
    faster_than,
    kaplan_meier,
    paired_delays,
    paired_log_rank,
    restriction,
    slower_than,
)

RULES = Rules(bootstrap=1000)


def product_limit(times, observed):
    """Share that has not had the event after each event time, by definition."""
    share, curve = 1.0, {}
    for moment in sorted(set(times)):
        at_risk = sum(time >= moment for time in times)
        events = sum(time == moment and seen for time, seen in zip(times, observed))
        share *= 1 - events / at_risk
        curve[moment] = share
    return curve


def test_kaplan_meier_is_the_product_limit():
    generator = np.random.default_rng(0)
    times, observed = generator.integers(1, 30, 25).astype(float), generator.random(25) < 0.6
    found = kaplan_meier(times, observed)
    slow = product_limit(times, observed)
    assert (found["steps"][0], found["share"][0]) == (0.0, 1.0)
    assert dict(zip(found["steps"][1:], found["share"][1:])) == pytest.approx(slow)
    assert found["median"] == min(step for step, share in slow.items() if share <= 0.5)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_kaplan_meier_of_runs_that_never_generalise(n):
    found = kaplan_meier(np.full(n, 100.0), np.zeros(n, dtype=bool))
    assert found["median"] is None
    assert found["censored"] == [100.0] * n


@pytest.mark.parametrize(("times", "lost", "median"), [
    ([1, 2, 3, 4], 9, 2), ([1, 1, 5, 6, 6, 7, 8, 8, 9, 9], 6, 6)])  # 8/10 · 7/8 · 5/7 is a half, and more by rounding
def test_the_median_is_the_step_at_which_half_have_generalised(times, lost, median):
    assert kaplan_meier(np.array(times, float), np.arange(len(times)) != lost)["median"] == median


def test_restricted_mean_is_the_area_under_kaplan_meier():
    times = np.array([30.0, 50, 80, 100, 100, 20])
    observed = np.array([True, True, True, False, False, True])
    limit = restriction(times, observed)
    assert limit == 100
    curve = kaplan_meier(times, observed)
    grid = np.linspace(0, limit, 200_001)
    share = np.array(curve["share"])[np.searchsorted(curve["steps"], grid, side="right") - 1]
    assert np.minimum(times, limit).mean() == pytest.approx(integrate.trapezoid(share, grid), rel=1e-3)


def draw(generator, n, ratio, spread=0.3, limit=np.inf):
    """Delays of an arm and its baseline that share half the variance of their logs, cut at a limit."""
    shared = generator.normal(0, spread * np.sqrt(0.5), n)
    base = 500 * np.exp(shared + generator.normal(0, spread * np.sqrt(0.5), n))
    arm = 500 * ratio * np.exp(shared + generator.normal(0, spread * np.sqrt(0.5), n))
    return np.minimum(arm, limit), np.minimum(base, limit)


@pytest.mark.parametrize(("n", "limit"), [(5, np.inf), (8, np.inf), (8, 800.0), (20, 800.0)])
def test_interval_of_the_delay_ratio_covers_at_its_rate(n, limit):
    generator = np.random.default_rng(n)
    arm, base = draw(generator, 1_000_000, 1.5, limit=limit)
    truth = arm.mean() / base.mean()
    found = [delay_ratio(*draw(generator, n, 1.5, limit=limit), RULES) for _ in range(1000)]
    cover = np.mean([one["low"] <= truth <= one["high"] for one in found])
    assert 0.92 <= cover <= 0.98
    assert np.median([one["value"] for one in found]) == pytest.approx(truth, rel=0.03)  # censoring moves nothing


@pytest.mark.parametrize("n", [5, 8, 20])
def test_delays_at_the_margin_are_called_slower_or_not_slower_at_the_level_at_most(n):
    generator = np.random.default_rng(n)
    pairs = [draw(generator, n, 2.0) for _ in range(2000)]
    for test in (slower_than, faster_than):
        wrong = np.mean([test(arm, base, 2.0) <= 0.05 for arm, base in pairs])
        assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("n", [4, 6, 9])
def test_paired_log_rank_keeps_its_level_with_censoring(n):
    generator = np.random.default_rng(n)
    wrong = 0
    for _ in range(500):
        arm, base = draw(generator, n, 1.0, limit=550.0)
        wrong += paired_log_rank(arm, base, arm < 550, base < 550) <= 0.05
    assert wrong / 500 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_paired_log_rank_swaps_events_minus_hazards_within_seeds():
    arm, base = np.array([5.0, 2, 9, 12, 15, 7]), np.array([1.0, 3, 2, 4, 15, 10])
    times, seen = [*arm, *base], [time < 15 for time in (*arm, *base)]

    def score(place):
        """Event minus the Nelson–Aalen hazard, by definition."""
        until = [t for t, event in zip(times, seen) if event and t <= times[place]]
        return seen[place] - sum(1 / sum(time >= t for time in times) for t in until)

    gaps = np.array([score(k) - score(6 + k) for k in range(6)])
    swapped = [abs(np.dot(signs, gaps)) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.array(swapped) >= abs(gaps.sum()) - 1e-12)
    assert 0.05 < expected < 0.95
    assert paired_log_rank(arm, base, arm < 15, base < 15) == pytest.approx(expected)


def test_paired_log_rank_of_seeds_that_are_all_slower():
    arm, base = np.array([5.0, 8, 9, 12, 15, 15, 15]), np.array([1.0, 2, 3, 4, 6, 7, 10])
    seen, seen_base = arm < 15, base < 15
    by_swap = paired_log_rank(arm, base, seen, seen_base)
    assert by_swap == 2 / 2**7  # every seed is slower, so only the observed and the mirrored swaps are as extreme
    scipys = stats.logrank(stats.CensoredData(arm[seen], right=arm[~seen]), stats.CensoredData(base))
    assert scipys.pvalue < 0.05


def test_nobody_or_everybody_at_once_gives_no_interval_and_no_crash():
    assert delay_ratio(np.array([]), np.array([]), RULES)["value"] is None
    zeros = np.zeros(6)
    assert delay_ratio(zeros + 5, zeros, RULES)["value"] is None
    assert delay_ratio(zeros, zeros + 5, RULES)["value"] == 0
    same = delay_ratio(zeros + 100, zeros + 50, RULES)
    assert (same["value"], same["low"], same["high"]) == (pytest.approx(2), None, None)
    assert paired_log_rank(zeros, zeros, zeros > 0, zeros > 0) == 1


def test_delays_are_cut_where_the_first_censored_run_was_lost():
    """Seed 1 of the arm is lost after 80 steps, seed 2 after 120; seed 3 never memorised and has no delay."""
    seeds = pl.DataFrame({
        "arm": ["arm"] * 5 + ["base"] * 5, "seed": [*range(5)] * 2,
        "memorised": [10.0, 10, 10, None, 10, 10, 10, 10, 10, 10], "memorised_lower": [10.0] * 10,
        "generalised": [60.0, None, None, None, 120, 50, 70, 80, 40, 100], "generalised_lower": [None] * 10,
        "followed": [500.0, 90, 130, 500, 500, 500, 500, 500, 500, 500]})
    results = seeds.with_columns(delay_observed=pl.col("generalised").is_not_null())
    own, base, limit, seen, seen_base = paired_delays(results, "arm", "base")
    assert limit == 80
    assert own.tolist() == [50, 80, 80, 80]
    assert base.tolist() == [40, 60, 70, 80]
    assert seen.tolist() == [True, False, False, False]
    assert seen_base.tolist() == [True, True, True, False]


@pytest.mark.parametrize("memorised", [0.0, 130.0])
def test_a_coarse_grid_makes_a_delay_neither_longer_nor_shorter(memorised):
    """Delays of twice the baseline's, seen every 100 steps: "less" and "more than twice" at their level at most."""
    generator, draws, less, more = np.random.default_rng(3), 400, 0, 0
    keys = {"arm": ["base"] * 24 + ["arm"] * 24, "seed": [*range(24)] * 2, "delay_observed": [True] * 48}
    for _ in range(draws):
        start = memorised * np.exp(generator.normal(0, 0.3, 48))
        late = start + np.r_[np.full(24, 500.0), np.full(24, 1000.0)] * np.exp(generator.normal(0, 0.15, 48))
        grid = {"memorised": np.ceil(start / 100) * 100, "generalised": np.ceil(late / 100) * 100}
        before = {f"{name}_lower": np.maximum(step - 100, 0.0) for name, step in grid.items()}
        results = pl.DataFrame({**keys, **grid, **before, "followed": np.full(48, 9000.0)})
        delays = paired_delays(results, "arm", "base")[:2]
        less += faster_than(*delays, 2.0) <= 0.05
        more += slower_than(*delays, 2.0) <= 0.05
    assert max(less, more) / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
