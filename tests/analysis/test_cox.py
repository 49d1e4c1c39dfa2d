"""The Cox fit against statsmodels, its concordance against loops, its intervals against simulated hazards."""

import numpy as np
import pytest
from scipy import optimize
from statsmodels.duration.hazard_regression import PHReg

from grokscape.analysis.cox import RiskSets, concordance, fit
from grokscape.analysis.hazard import Moments, model


def cohort(generator, n, beta, censor=2.0):
    """Runs with constant covariates and exponential times; risk sets as the analysis builds them."""
    x = generator.normal(size=(n, len(beta)))
    times = generator.exponential(np.exp(-x @ beta))
    seen, times = times <= censor, np.minimum(times, censor)
    run, event, sizes = [], [], []
    for moment in np.unique(times[seen]):
        at_risk = np.flatnonzero(times >= moment)
        run.append(at_risk)
        event.append((times == moment)[at_risk] & seen[at_risk])
        sizes.append(len(at_risk))
    sets = RiskSets(np.concatenate(run), np.concatenate(event), np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64))
    return x, times, seen, sets


def test_coefficients_are_those_of_statsmodels():
    x, times, seen, sets = cohort(np.random.default_rng(0), 60, np.array([0.8, -0.5]))
    reference = PHReg(times, x, status=seen.astype(float), ties="breslow").fit()
    assert fit(sets, x[sets.run], ridge=0.0) == pytest.approx(reference.params, rel=1e-5)


def test_time_varying_covariates_are_those_of_statsmodels_with_entry_times():
    generator = np.random.default_rng(1)
    n, horizon = 40, 12
    x = generator.normal(size=(n, horizon))
    end = generator.integers(2, horizon + 1, n)
    seen = generator.random(n) < 0.8
    table = np.array([(t - 0.5, t, x[i, t - 1], float(seen[i] and t == end[i]))  # statsmodels counts entry ≤ time in
                      for i in range(n) for t in range(1, end[i] + 1)])
    reference = PHReg(table[:, 1], table[:, 2:3], status=table[:, 3], entry=table[:, 0], ties="breslow").fit()
    run, event, step, sizes = [], [], [], []
    for moment in np.unique(end[seen]):
        at_risk = np.flatnonzero(end >= moment)
        run.append(at_risk)
        event.append(seen[at_risk] & (end[at_risk] == moment))
        step.append(np.full(len(at_risk), moment))
        sizes.append(len(at_risk))
    sets = RiskSets(np.concatenate(run), np.concatenate(event), np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64))
    values = x[sets.run, np.concatenate(step) - 1][:, None]
    assert fit(sets, values, ridge=0.0) == pytest.approx(reference.params, rel=1e-5)


def test_the_ridge_is_a_penalty_on_the_partial_likelihood():
    x, _, _, sets = cohort(np.random.default_rng(5), 30, np.array([0.9, -0.4]))
    rows = np.split(np.arange(len(sets.run)), sets.starts[1:])

    def penalised(beta):
        score = x[sets.run] @ beta
        return sum(np.log(np.exp(score[one]).sum()) - score[one][sets.event[one]].sum() for one in rows) + beta @ beta
    assert fit(sets, x[sets.run], ridge=2.0) == pytest.approx(optimize.minimize(penalised, np.zeros(2)).x, abs=1e-4)


def test_a_covariate_that_ranks_perfectly_stays_finite():
    times = np.arange(1.0, 9)
    run = np.concatenate([np.arange(k, 8) for k in range(7)])
    event = np.concatenate([np.arange(k, 8) == k for k in range(7)])
    sets = RiskSets(run, event, np.r_[0, np.cumsum([8 - k for k in range(6)])].astype(np.int64))
    beta = fit(sets, -times[run][:, None])
    assert np.isfinite(beta).all()
    assert beta[0] > 1


def test_concordance_counts_pairs_by_the_coefficients_of_their_groups():
    generator = np.random.default_rng(2)
    _, _, _, sets = cohort(generator, 15, np.array([0.3]))
    values = generator.integers(0, 4, (len(sets.run), 1)).astype(float)
    group, betas = sets.run % 3, generator.normal(size=(3, 3, 1))
    betas[0, 2] = np.nan
    good = pairs = 0.0
    ends = [*sets.starts[1:], len(sets.run)]
    for start, end in zip(sets.starts, ends):
        for one in range(start, end):
            for two in range(start, end):
                beta = betas[group[one], group[two], 0]
                if sets.event[one] and not sets.event[two] and not np.isnan(beta):
                    pairs += 1
                    gap = beta * (values[one, 0] - values[two, 0])
                    good += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
    assert concordance(sets, values, group, betas) == (good, pairs)


def test_noise_ranks_pairs_like_a_coin():
    generator, found = np.random.default_rng(4), []
    for _ in range(300):
        _, _, _, sets = cohort(generator, 8, np.array([0.0]))
        noise = generator.normal(size=8)[sets.run]
        found.append(model(Moments(sets, np.zeros(len(sets.run)), np.arange(8)), [noise])["concordance"])
    assert np.mean(found) <= 0.5 + 3 * np.std(found) / np.sqrt(300)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_jackknife_interval_covers_at_its_rate(beta):
    generator = np.random.default_rng(3)
    cover = []
    for _ in range(500):
        x, _, _, sets = cohort(generator, 40, np.array([beta]))
        spread = x[sets.run].std()
        found = model(Moments(sets, np.zeros(len(sets.run)), np.arange(40) % 10), [x[sets.run][:, 0]])
        gap = abs(found["beta"][0] - beta * spread) / found["se"][0]
        cover.append(gap <= 2.262)  # 97.5 % of Student's t with 9 degrees of freedom
    assert 0.92 <= np.mean(cover) <= 0.98
