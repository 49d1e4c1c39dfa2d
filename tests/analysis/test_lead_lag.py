"""Lead and lag: transitions put where they are known to be, intervals at their rate, no order where there is none."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from grokscape.analysis.lead_lag import lead_lag
from grokscape.analysis.record import Record
from grokscape.analysis.transitions import change_points, parting, transitions

GRID = np.arange(0, 2001, 10)


def frame_of(generalised, measures, memorised=50):
    """Runs that memorise and generalise at known steps; measures: name → (seeds, evaluations)."""
    seeds = len(generalised)
    blocks = {"seed": np.repeat(np.arange(seeds), len(GRID)), "step": np.tile(GRID, seeds),
              "train/accuracy": np.tile(np.where(memorised <= GRID, 1.0, 0.1), seeds),
              "test/accuracy": (np.asarray(generalised)[:, None] <= GRID).astype(float).ravel(),
              "train/loss": np.tile(np.exp(-GRID / 100) + 1e-6, seeds)}
    return pl.DataFrame(blocks | {name: np.asarray(values).ravel() for name, values in measures.items()})


def step_down(moments, high=100.0, low=1.0, over=100):
    """A measure that falls on a log scale over some steps around each moment: half-way at the moment itself."""
    share = np.clip((GRID[None] - np.asarray(moments)[:, None]) / over + 0.5, 0, 1)
    return np.exp(np.log(high) + share * (np.log(low) - np.log(high)))


def finding(frame, column, **verdict):
    found = {item.id: item for item in lead_lag(Record.of(frame, {"verdict": verdict}))}
    return found[f"lead_lag/{column}"]


def test_transition_is_half_way_on_a_log_scale_and_the_change_point_is_near():
    moments = np.array([400, 600, 800])
    record = Record.of(frame_of([900] * 3, {"train/cdnv": step_down(moments)}))
    assert transitions(record, "train/cdnv").step.tolist() == moments.tolist()
    assert change_points(record, "train/cdnv") == pytest.approx(moments, abs=20)


def test_a_spike_after_the_transition_does_not_move_it():
    values = step_down([400.0] * 6)
    values[:, GRID == 200] = 1.0  # a short fall before
    values[:, GRID == 700] = 100.0  # a slingshot after
    record = Record.of(frame_of([900] * 6, {"train/cdnv": values}))
    assert transitions(record, "train/cdnv").step.tolist() == [400] * 6


def test_parting_leaves_the_fewest_on_the_wrong_side():
    generator = np.random.default_rng(0)
    met, steps = generator.random((50, 9)) < np.linspace(0.1, 0.9, 9), np.arange(10.0, 100, 10) * np.ones((50, 1))
    step, lower = parting(met, steps)
    for row, found, before in zip(met, step, lower):
        wrong = [row[:place].sum() + (~row[place:]).sum() for place in range(9)]
        best = np.flatnonzero(np.array(wrong) == min(wrong))
        assert found == 10 + 5 * (best[0] + best[-1])
        assert np.isnan(before) if best[0] == 0 else before == found - 10


@pytest.mark.parametrize(("count", "moved"), [(5, False), (6, True)])
def test_a_few_evaluations_show_no_transition(count, moved):
    values = step_down([1000.0] * 5)
    values[:, ~np.isin(GRID, np.linspace(200, 1800, count).round(-1))] = np.nan
    assert transitions(Record.of(frame_of([900] * 5, {"train/cdnv": values})), "train/cdnv").moved.all() == moved


@pytest.mark.parametrize(("shift", "verdict"), [(-200, "leads"), (200, "lags")])
def test_a_measure_that_moves_before_or_after_is_told_so(shift, verdict):
    generalised = np.array([500, 600, 700, 800, 900, 1000, 1100, 1200])
    item = finding(frame_of(generalised, {"train/cdnv": step_down(generalised + shift)}), "train/cdnv")
    assert item.verdict == verdict
    assert item.estimates["lag"]["value"] == pytest.approx(shift, abs=10)
    assert item.data["leads" if shift < 0 else "lags"] == 8
    assert item.data["sign_p"] == pytest.approx(2 / 2**8)
    assert item.statement.startswith("cdnv is half-way down 2")
    assert f"0 steps {'before' if shift < 0 else 'after'} generalisation on average" in item.statement
    assert f"; position {item.estimates['position']['value']:.2f} between memorisation (0)" in item.statement
    rising = finding(frame_of(generalised, {"train/cdnv": 1 / step_down(generalised + shift)}), "train/cdnv")
    assert rising.statement.startswith("cdnv is half-way up 2")
    assert rising.data["fell"] == 0
    if verdict == "lags":  # each side has half of the level
        late = np.log(np.divide(item.data["transition"], item.data["generalised"]))
        assert item.p == pytest.approx(2 * stats.ttest_1samp(late, 0, alternative="greater").pvalue)


@pytest.mark.parametrize(("shift", "before", "after"), [(-10, 8, 0), (0, 0, 0), (10, 0, 8)])
def test_one_evaluation_apart_is_apart_and_the_same_one_is_no_order(shift, before, after):
    generalised = np.array([500, 600, 700, 800, 900, 1000, 1100, 1200])
    item = finding(frame_of(generalised, {"train/cdnv": step_down(generalised + shift)}), "train/cdnv")
    assert (item.data["leads"], item.data["lags"]) == (before, after)


def test_every_seed_has_its_change_point_however_many_there_are():
    generalised = np.linspace(500, 1200, 40)
    item = finding(frame_of(generalised, {"train/cdnv": step_down(generalised - 200)}), "train/cdnv", bootstrap=200)
    assert np.isfinite(np.array(item.data["change_point"], dtype=float)).all()
    assert item.data["check"] == 1.0
    near = finding(frame_of(generalised, {"train/cdnv": step_down(generalised - 200)}), "train/cdnv", bootstrap=200,
                   delay_ratio_margin=1.01).data
    apart = np.divide(near["change_point"], near["transition"])
    assert near["check"] == np.mean((apart <= 1.01) & (apart >= 1 / 1.01)) < 1


def test_a_change_before_memorisation_or_without_values_is_no_change_point():
    values = step_down([600.0, 700.0])
    values[:, GRID < 300] *= 1e4
    values[:, GRID % 50 > 0] = np.nan
    record = Record.of(frame_of([900] * 2, {"train/cdnv": values}, memorised=300))
    assert change_points(record, "train/cdnv") == pytest.approx([600, 700], abs=50)


def logged(generator, seeds, every, shift=0.0):
    """Runs whose measure is half-way as test accuracy jumps, but for chance and a shift, logged every so many steps."""
    generalised = 800 * np.exp(generator.normal(0, 0.15, seeds))
    values = step_down(generalised * np.exp(shift + generator.normal(0, 0.03, seeds)))
    values[:, GRID % every > 0] = np.nan
    return frame_of(generalised, {"train/cdnv": values})


def test_a_measure_logged_more_rarely_than_accuracy_does_not_lag_for_that():
    draws = 40
    called = [finding(logged(np.random.default_rng(draw), 12, 200), "train/cdnv", bootstrap=200).verdict
              for draw in range(draws)]
    assert called.count("lags") + called.count("leads") <= draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)
    assert finding(logged(np.random.default_rng(0), 12, 50, shift=0.3), "train/cdnv").verdict == "lags"


def test_a_noisy_measure_does_not_lag_for_its_noise():
    called = []
    for draw in range(30):
        generator = np.random.default_rng(draw)
        generalised = 800 * np.exp(generator.normal(0, 0.15, 24))
        values = step_down(generalised * np.exp(generator.normal(0, 0.03, 24)), high=5.0, over=400)
        values *= np.exp(generator.normal(0, 0.25, values.shape))
        called.append(finding(frame_of(generalised, {"train/cdnv": values}), "train/cdnv", bootstrap=200).verdict)
    assert called.count("lags") <= 30 * 0.05 + 3 * np.sqrt(30 * 0.05 * 0.95)


@pytest.mark.parametrize("mirror", [
    lambda accuracy: 1 + 5 * accuracy, lambda accuracy: 1.1 - accuracy, lambda accuracy: np.exp(3 * accuracy),
    lambda accuracy: accuracy**2, lambda accuracy: 1 / accuracy])
def test_what_mirrors_test_accuracy_does_not_lead_it(mirror):
    generalised = np.array([600, 690, 760, 870, 930, 1050, 1110, 1190])
    accuracy = 0.05 + 0.95 / (1 + np.exp((1 - GRID[None] / generalised[:, None]) * 15 - 3.5))
    frame = frame_of(generalised, {"test/mirror": mirror(accuracy)}).with_columns(
        pl.Series("test/accuracy", accuracy.ravel()))
    item = finding(frame, "test/mirror")
    assert item.estimates["lag"]["high"] < 0
    assert item.verdict == "no clear order"
    assert item.p > 0.05
    assert "test accuracy itself is half-way" in item.statement


def test_one_early_seed_among_late_ones_is_no_order():
    generalised = np.full(8, 800.0)
    moments = generalised + np.array([0, 20, 80, 80, 80, 100, 100, 80])
    item = finding(frame_of(generalised, {"train/cdnv": step_down(moments)}), "train/cdnv")
    assert item.p < 0.05
    assert item.estimates["log lag"]["low"] < 0
    assert item.verdict == "no clear order"


def test_a_mean_over_some_of_the_seeds_says_so():
    values = step_down(np.linspace(500, 700, 8))
    values[3:] = 1.0
    item = finding(frame_of(np.linspace(800, 1000, 8), {"train/cdnv": values}), "train/cdnv")
    assert "in 3 of which it changes" in item.statement


def test_position_is_zero_at_memorisation_and_one_at_generalisation():
    generalised = np.array([800] * 6)
    with_it = finding(frame_of(generalised, {"train/cdnv": step_down(generalised)}), "train/cdnv")
    assert with_it.estimates["position"]["value"] == pytest.approx(1, abs=0.02)
    between = finding(frame_of(generalised, {"train/cdnv": step_down([200.0] * 6)}), "train/cdnv")
    assert between.estimates["position"]["value"] == pytest.approx(0.5, abs=0.05)  # √(50·800) = 200


def test_a_measure_that_moves_between_the_same_evaluations_is_neither_before_nor_after():
    generalised = np.array([500, 600, 700, 800, 900])
    item = finding(frame_of(generalised, {"train/cdnv": step_down(generalised)}), "train/cdnv")
    assert (item.data["leads"], item.data["lags"], item.data["sign_p"]) == (0, 0, 1)
    assert item.data["enough"]  # five


def test_runs_that_never_generalise_count_in_the_sign_test_only():
    generalised = np.array([600, 700, 800, 900, 1000, 9999, 9999, 9999])
    item = finding(frame_of(generalised, {"train/cdnv": step_down(np.full(8, 300.0))}), "train/cdnv")
    assert item.n == 5
    assert item.data["leads"] == 8
    assert item.data["sign_p"] == pytest.approx(2 / 2**8)


def test_a_measure_of_both_signs_is_taken_without_a_logarithm():
    values = np.where(GRID[None] >= 400, 2.0, -2.0) * np.ones((6, 1))
    record = Record.of(frame_of([900] * 6, {"train/margin": values}))
    assert transitions(record, "train/margin").step.tolist() == [400] * 6


def test_noise_without_a_trend_does_not_move():
    generator = np.random.default_rng(0)
    noise = np.exp(generator.normal(0, 0.5, (6, len(GRID))))
    moved = transitions(Record.of(frame_of([900] * 6, {"train/cdnv": noise})), "train/cdnv").moved
    assert moved.sum() <= 1


def test_interval_of_the_lag_covers_and_no_order_is_called_at_the_level_at_most():
    generator = np.random.default_rng(1)
    cover, wrong, draws = 0, 0, 500
    for _ in range(draws):
        generalised = np.clip(800 * np.exp(generator.normal(0, 0.15, 8)), 300, 1500).round(-1)
        same = np.clip(generalised * np.exp(generator.normal(0, 0.1, 8)), 120, 1850).round(-1)
        item = finding(frame_of(generalised, {"train/cdnv": step_down(same)}), "train/cdnv", bootstrap=500)
        low, high = (item.estimates["log lag"][key] for key in ("low", "high"))
        cover += low <= 0 <= high
        wrong += item.verdict in ("leads", "lags")
    assert 0.92 <= cover / draws <= 0.98
    assert wrong / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_holm_is_over_measures():
    generalised = np.array([500, 600, 700, 800, 900, 1000])
    near = generalised + np.array([-40, -30, 10, -50, -20, -10])
    alone = finding(frame_of(generalised, {"train/cdnv": step_down(near)}), "train/cdnv")
    many = {f"train/m{k}": step_down(generalised) for k in range(9)}
    beside = finding(frame_of(generalised, {"train/cdnv": step_down(near)} | many), "train/cdnv")
    assert beside.p == pytest.approx(min(1.0, 10 * alone.p))
