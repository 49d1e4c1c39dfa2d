"""Intervals and tests over seeds: nominal coverage, level at the margin, and what happens with too few seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from grokscape.analysis.estimation import (
    bootstrap_interval,
    estimate,
    geometric_median,
    holm,
    interval_text,
    mean_and_error,
    mean_interval,
    one_sided,
    plain,
    row_median,
    share_interval,
    sign_test,
    swap_test,
    tost,
)
from grokscape.analysis.finding import Finding


@pytest.mark.parametrize("n", [5, 8, 16])
def test_bootstrap_interval_of_a_mean_covers_at_its_rate(n):
    generator = np.random.default_rng(n)
    draws = generator.gamma(4.0, 1.0, (1000, n))  # skewed, mean 4
    found = [bootstrap_interval(mean_and_error, row, resamples=1000) for row in draws]
    assert 0.92 <= np.mean([one["low"] <= 4 <= one["high"] for one in found]) <= 0.98


@pytest.mark.parametrize(("n", "students"), [(3, True), (7, True), (8, False)])
def test_bootstrap_is_students_interval_below_eight_seeds(n, students):
    values = 2.0 ** np.arange(n)
    found, other = bootstrap_interval(mean_and_error, values), mean_interval(values)
    assert (found["high"] == pytest.approx(other["high"])) is students


def test_mean_interval_is_students():
    values = np.array([1.0, 2.0, 4.0, np.nan, 7.0])
    found = mean_interval(values, 0.9)
    kept = values[~np.isnan(values)]
    low, high = stats.t.interval(0.9, 3, loc=kept.mean(), scale=stats.sem(kept))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((3.5, low, high))


@pytest.mark.parametrize("n", [5, 8])
def test_tost_at_the_margin_keeps_its_level_and_finds_true_equivalence(n):
    generator = np.random.default_rng(n)
    edge = generator.normal(0.05, 0.02, (2000, n))
    assert np.mean([tost(row, 0.05) <= 0.05 for row in edge]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean([tost(row, 0.05) <= 0.05 for row in edge - 0.05]) > 0.9


@pytest.mark.parametrize("values", [np.array([0.2, 0.5, 0.1, 0.9]), np.array([0.2, 0.3])])
def test_one_sided_is_scipys_test(values):
    assert one_sided(values, 0.1) == pytest.approx(stats.ttest_1samp(values, 0.1, alternative="greater").pvalue)


def test_values_all_alike_leave_no_doubt():
    assert one_sided(np.full(6, 0.3), 0.1) == 0
    assert one_sided(np.full(6, 0.1), 0.1) == 1
    assert one_sided(np.full(6, -0.3), 0.1) == 1
    assert tost(np.zeros(6), 0.05) == 0


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, 1.0]])
def test_one_seed_or_none_is_never_significant(values):
    values = np.array(values)
    assert one_sided(values, -5) == 1
    assert swap_test(values) == 1
    assert mean_interval(values)["low"] is None
    assert bootstrap_interval(mean_and_error, values[~np.isnan(values)])["low"] is None


@pytest.mark.parametrize("values", [np.array([0.3, -0.1, 0.5, 0.2, 0.4]), np.array([0.3, 0.1])])
def test_swap_test_tries_every_swap(values):
    means = [np.mean(values * signs) for signs in itertools.product([1, -1], repeat=len(values))]
    exact = 2 * min(np.mean([m >= values.mean() - 1e-12 for m in means]), 0.5)
    assert swap_test(values) == pytest.approx(exact)


def test_sign_test_is_binomial():
    assert sign_test(7, 1) == pytest.approx(2 * (1 + 8) / 2**8)
    assert sign_test(0, 0) == 1


def test_share_interval_is_the_exact_one():
    found = share_interval(8, 8)
    assert found["high"] == 1
    assert found["low"] == pytest.approx(0.025 ** (1 / 8))
    assert share_interval(0, 0)["value"] is None


def test_holm_steps_down():
    p = np.random.default_rng(0).random(20) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_medians_of_rows_pass_over_gaps():
    values = np.array([[1.0, 100.0, np.nan], [np.nan, np.nan, np.nan], [-1.0, 3.0, 5.0]])
    assert row_median(values).tolist()[0::2] == [50.5, 3.0]
    assert geometric_median(values).tolist()[0::2] == pytest.approx([10.0, 3.0])
    assert np.isnan(geometric_median(values)[1])


def test_median_of_a_row_is_numpys():
    values = np.random.default_rng(0).normal(size=(50, 9))
    values[np.random.default_rng(1).random(values.shape) < 0.4] = np.nan
    some = ~np.isnan(values).all(axis=1)
    assert row_median(values)[some] == pytest.approx(np.nanmedian(values[some], axis=1))
    assert np.isnan(row_median(np.empty((3, 0)))).all()


def test_plain_is_ready_for_json():
    found = plain({"a": np.array([1.0, np.nan, math.inf]), 2: (np.int64(3), np.bool_(True))})
    assert found == {"a": [1.0, None, None], "2": [3, True]}
    assert type(found["2"][0]) is int


@pytest.mark.parametrize(("n", "share"), [(8, 0.5), (8, 0.75), (12, 0.75)])
def test_bootstrap_interval_covers_where_values_are_tied(n, share):
    generator = np.random.default_rng(n)
    covered, draws = 0, 400
    for _ in range(draws):
        values = 85.0 * (generator.random(n) < share)  # on a coarse grid: one of two steps
        found = bootstrap_interval(mean_and_error, values, resamples=500)
        covered += found["low"] is not None and found["low"] <= 85 * share <= found["high"]
    best = stats.binom.pmf(np.arange(1, n), n, share).sum()  # draws in which all are alike tell nothing of the spread
    assert covered / draws >= 0.95 * best - 3 * np.sqrt(0.05 * 0.95 / draws)


def test_seeds_that_are_all_alike_give_no_interval():
    for found in (mean_interval(np.full(8, 0.3)), bootstrap_interval(mean_and_error, np.full(8, 0.3))):
        assert found["value"] == pytest.approx(0.3)
        assert found["low"] is found["high"] is None


def test_an_interval_is_told_only_if_it_has_both_ends():
    assert interval_text(estimate(0.5, 0.25, 0.754)) == " (interval 0.25 to 0.75)"
    assert interval_text(estimate(0.5, 0.25, 0.754), "+.0f", 100, " %") == " (interval +25 to +75 %)"
    assert interval_text(estimate(0.5, 0.25, np.inf)) == interval_text(estimate(0.5)) == ""


def test_findings_are_ready_for_json_whatever_they_are_made_of():
    data = {"values": np.array([[1.0, np.inf]]), "on": (1, 2)}
    found = Finding("a", "b", {"k": np.int64(3)}, "c", p=np.nan, data=data)
    assert found.subject == {"k": 3}
    assert type(found.subject["k"]) is int
    assert found.p is None
    assert found.data == {"values": [[1.0, None]], "on": [1, 2]}
