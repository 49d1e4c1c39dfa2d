"""Survival: against a slow product-limit estimate, and against simulated delays whose truth is known."""

import itertools

import numpy as np
import polars as pl
import pytest
from scipy import integrate, stats

from grokscape.analysis.survival import Delays, kaplan_meier, paired_delays, paired_log_rank, restriction
from grokscape.rules import Rules

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
    assert found["censored"] == sorted(time for time, seen in zip(times, observed) if not seen)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_kaplan_meier_of_runs_that_never_generalise(n):
    found = kaplan_meier(np.full(n, 100.0), np.zeros(n, dtype=bool))
    assert found["median"] is None
    assert found["censored"] == [100.0] * n
    assert found["steps"] == ([0.0, 100.0] if n else [])
    assert found["share"] == found["high"] == [1.0, 1.0] * bool(n)


def test_kaplan_meier_s_interval_is_greenwood_s_on_a_log_log_scale():
    """By hand after the first of five: share 4/5, variance of its log 1/(5 · 4)."""
    found = kaplan_meier(np.array([10.0, 20, 30, 40, 50]), np.array([True, False, True, True, False]))
    reach = stats.norm.ppf(0.975) * np.sqrt(1 / 20) / abs(np.log(0.8))
    assert (found["low"][0], found["high"][0]) == (1.0, 1.0)
    assert (found["low"][1], found["high"][1]) == pytest.approx((0.8 ** np.exp(reach), 0.8 ** np.exp(-reach)))


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


def exact(own, base):
    """Delays that are known to the step, none of them censored."""
    seen = np.ones(len(own), bool)
    return Delays(own, base, np.stack([own, own]), np.stack([base, base]), np.max(own, initial=0), seen, seen)


@pytest.mark.parametrize(("n", "limit"), [(5, np.inf), (8, np.inf), (8, 800.0), (20, 800.0)])
def test_interval_of_the_delay_ratio_covers_at_its_rate(n, limit):
    generator = np.random.default_rng(n)
    arm, base = draw(generator, 1_000_000, 1.5, limit=limit)
    truth = arm.mean() / base.mean()
    found = [exact(*draw(generator, n, 1.5, limit=limit)).ratio(RULES) for _ in range(1000)]
    cover = np.mean([one["low"] <= truth <= one["high"] for one in found])
    assert 0.92 <= cover <= 0.98
    assert np.median([one["value"] for one in found]) == pytest.approx(truth, rel=0.03)  # censoring moves nothing


@pytest.mark.parametrize("n", [5, 8, 20])
def test_delays_at_the_margin_are_called_slower_or_not_slower_at_the_level_at_most(n):
    generator = np.random.default_rng(n)
    pairs = [exact(*draw(generator, n, 2.0)) for _ in range(2000)]
    for test in (Delays.slower_than, Delays.faster_than, Delays.within):
        wrong = np.mean([test(pair, 2.0) <= 0.05 for pair in pairs])
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
    assert exact(np.array([]), np.array([])).ratio(RULES)["value"] is None
    zeros = np.zeros(6)
    assert exact(zeros + 5, zeros).ratio(RULES)["value"] is None
    assert exact(zeros, zeros + 5).ratio(RULES)["value"] == 0
    same = exact(zeros + 100, zeros + 50).ratio(RULES)
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
    found = paired_delays(results, "arm", "base")
    assert found.limit == found.counted_to == 80
    assert found.own.tolist() == [50, 80, 80, 80]
    assert found.base.tolist() == [40, 60, 70, 80]
    assert found.seen.tolist() == [True, False, False, False]
    assert found.seen_base.tolist() == [True, True, True, False]


def test_a_delay_is_not_called_longer_than_a_share_of_one_whose_end_was_not_seen():
    """The baseline's runs were lost at 700 and may have taken 2000: then 400 is less than half as long."""
    generator, lost, steps = np.random.default_rng(0), np.zeros(8, bool), np.full(8, 700.0)
    own = 400 * np.exp(generator.normal(0, 0.1, 8))
    short = Delays(own, steps, np.stack([own, own]), np.stack([steps, steps]), 700.0, ~lost, lost)
    assert short.slower_than(0.5) > 0.5
    assert short.slower_than(0.4) > 0.5
    assert exact(own, steps).slower_than(0.4) < 0.05
    assert exact(own * 2.2, own).slower_than(2.0) < 0.05


def on_a_grid(start, late, every, phase=0.0):
    """Results of two arms, (2, n) true moments of memorisation and generalisation each, evaluated now and then."""
    n = start.shape[1]
    columns = {"arm": ["arm"] * n + ["base"] * n, "seed": [*range(n)] * 2, "delay_observed": [True] * 2 * n}
    for name, moments in (("memorised", start), ("generalised", late)):
        step = np.ceil((moments.ravel() - phase) / every) * every + phase
        columns |= {name: step, f"{name}_lower": np.maximum(step - every, 0.0)}
    return pl.DataFrame(columns | {"followed": np.full(2 * n, 1e6)})


@pytest.mark.parametrize("memorised", [0.0, 130.0])
def test_a_grid_makes_a_delay_neither_longer_nor_shorter(memorised):
    """Delays of twice the baseline's, seen every 100 steps: "less" and "more than twice" at their level at most."""
    generator, draws, less, more = np.random.default_rng(3), 400, 0, 0
    for _ in range(draws):
        start = memorised * np.exp(generator.normal(0, 0.3, (2, 24)))
        late = start + np.array([[1000.0], [500.0]]) * np.exp(generator.normal(0, 0.15, (2, 24)))
        delays = paired_delays(on_a_grid(start, late, 100), "arm", "base")
        less += delays.faster_than(2.0) <= 0.05
        more += delays.slower_than(2.0) <= 0.05
    assert max(less, more) / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def moments(generator, n, factor, spread):
    """Moments of memorisation and generalisation of an arm and of its baseline; one memorises where the other does."""
    start = np.tile(300 * (1 + spread * generator.standard_normal(n)), (2, 1))
    return start, start + np.array([[1000 * factor], [1000]]) * (1 + spread * generator.standard_normal((2, n)))


@pytest.mark.parametrize(("n", "spread", "every"), [
    (24, 0.3, 100), (8, 0.03, 100), (24, 0.03, 200), (8, 0.1, 330), (24, 0.2, 670), (5, 0.05, 670), (24, 0.02, 50)])
def test_tests_of_delays_at_the_margin_keep_their_level_on_grids_fine_and_coarse(n, spread, every):
    """Delays of exactly twice, or half, the baseline's, whichever way the evaluations fall."""
    generator, draws, wrong = np.random.default_rng(3), 400, np.zeros(4)
    for _ in range(draws):
        phase = generator.uniform(0, every)
        twice, half = (paired_delays(on_a_grid(*moments(generator, n, factor, spread), every, phase), "arm", "base")
                       for factor in (2, 0.5))
        found = twice.slower_than(2), twice.within(2), half.faster_than(0.5), half.slower_than(0.5)
        wrong += np.array(found) <= 0.05
    assert (wrong / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)).all(), wrong / draws


@pytest.mark.parametrize(("n", "spread", "every"), [(8, 0.1, 330), (24, 0.1, 200), (24, 0.05, 400), (8, 0.2, 670)])
def test_intervals_of_delay_ratios_cover_on_coarse_grids(n, spread, every):
    generator, cover = np.random.default_rng(5), []
    for _ in range(300):
        results = on_a_grid(*moments(generator, n, 1.5, spread), every, generator.uniform(0, every))
        found = paired_delays(results, "arm", "base").ratio(RULES)
        cover += [found["low"] <= 1.5 <= found["high"]] if found["low"] is not None else []
    assert len(cover) > 30  # where there is any spread at all
    assert np.mean(cover) >= 0.92


@pytest.mark.parametrize(("last", "reach"), [([700] * 4 + [900], 50), ([700] * 5, 100)])
def test_onsets_that_nearly_all_seeds_share_may_lie_at_either_end(last, reach):
    """By hand: memorised in (0, 100] in all runs, generalised in the hundred steps up to `last`; baseline's, to 600."""
    late = np.array(last, float)
    found = paired_delays(on_a_grid(np.full((2, 5), 60.0), np.stack([late, np.full(5, 600.0)]), 100), "arm", "base")
    middle = late - 100
    assert (found.own.tolist(), found.base.tolist()) == (middle.tolist(), [500] * 5)
    assert found.own_ends.tolist() == [(middle - reach).tolist(), (middle + reach).tolist()]
    assert found.base_ends.tolist() == [[400] * 5, [600] * 5]
    if reach == 100:
        calls = found.slower_than(0.8), found.slower_than(0.9), found.faster_than(1.7), found.faster_than(1.8)
        assert calls == (0, 1, 1, 0)  # 600 against 500 may be anything from 500 against 600 to 700 against 400


def test_an_interval_moves_its_ends_as_far_as_the_evaluations_leave_the_ratio_open():
    own, base = draw(np.random.default_rng(0), 12, 1.5)
    sure, seen = exact(own, base), np.ones(12, bool)
    coarse = Delays(own, base, np.stack([own - 90, own + 60]), np.stack([base - 20, base + 30]), own.max(), seen, seen)
    fine, wide = sure.ratio(RULES), coarse.ratio(RULES)
    assert wide["value"] == fine["value"]
    assert wide["low"] == pytest.approx(fine["low"] * (own - 90).sum() / (base + 30).sum() * base.sum() / own.sum())
    assert wide["high"] == pytest.approx(fine["high"] * (own + 60).sum() / (base - 20).sum() * base.sum() / own.sum())
    short = Delays(own, base, np.stack([own - 90, own + 60]), np.stack([0 * base, 2 * base]), own.max(), seen, seen)
    assert short.ratio(RULES) == fine | {"low": None, "high": None}  # the baseline may have no delay at all
