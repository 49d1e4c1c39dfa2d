"""Numbers, interventions and ticks in words, and what of a trajectory is shown."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from grokscape.report.arms import in_words
from grokscape.report.ticks import log_ticks
from grokscape.report.trajectories import rounded, shown_steps
from grokscape.report.wording import anchor, estimates, number, p_value, points, sentence, times

TITLES = {"relative_flatness": "κ", "cdnv": "CDNV"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (0.01234, "0.0123"),
        (12345.6, "12\u2009346"),
        (-0.5, "−0.5"),
        (1.5e-7, "1.50·10⁻⁷"),
        (2.5e8, "2.50·10⁸"),
        (999.7, "1\u2009000"),
        (999.4, "999"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_differences_factors_and_p_values() -> None:
    assert points(-0.2801) == "−28.0 points"
    assert points(0.0) == "0.0 points"
    assert times(2.5) == "× 2.50"
    assert p_value(0.0004) == "p < 0.001"
    assert p_value(0.0404) == "p = 0.040"


def test_a_factor_stays_one_where_its_unit_says_how_far_delays_are_counted() -> None:
    unit = "times the baseline's delay, counting at most 1430 steps"
    ratio = {"value": 3.064, "low": 2.68, "high": 3.257, "unit": unit}
    finding = {"estimates": {"delay ratio, held": ratio, "delay ratio": {**ratio, "value": None}}}
    run = SimpleNamespace(arm_by_name={"held": {}}, title_of={"held": "κ ≥ 30"}.get)
    of_arm, none = estimates(finding, run)
    assert of_arm == {"name": "Delay ratio", "of": "κ ≥ 30", "value": "× 3.06, counting at most 1430 steps",
                      "interval": "2.68 to 3.26"}
    assert none["value"] == "–"


def test_symbols_keep_their_case() -> None:
    assert sentence("relative flatness κ") == "Relative flatness κ"
    assert sentence("κ at the end") == "κ at the end"


@pytest.mark.parametrize(
    ("intervention", "text"),
    [
        (
            {
                "kind": "clamp",
                "measure": "relative_flatness",
                "at_least": 30.0,
                "strength": 0.1,
                "start": 0,
                "until": None,
            },
            "κ held ≥ 30 (strength 0.1)",
        ),
        (
            {"kind": "clamp", "measure": "cdnv", "at_least": 2.0, "relative_to": "memorisation", "until": 500},
            "CDNV held ≥ 2 × its value at memorisation, until step 500",
        ),
        (
            {"kind": "promote", "measure": "cdnv", "strength": 0.01, "start": 10},
            "CDNV promoted (strength 0.01), from step 10",
        ),
        ({"kind": "suppress", "measure": "cdnv", "strength": 0.001}, "CDNV suppressed (strength 0.001)"),
        ({"kind": "weight_cap", "at_most": 50.0}, "head weight capped at norm 50"),
        ({"kind": "unplug", "step": 200, "lr": None, "cosine": False}, "unplugged at step 200"),
        (
            {"kind": "unplug", "step": 200, "lr": 0.1, "cosine": True, "weight_decay": 0.0},
            "unplugged at step 200, with lr 0.1, weight decay 0, cosine",
        ),
        ({"kind": "something_new", "size": 3}, "something new: size 3"),
    ],
)
def test_interventions(intervention: dict[str, object], text: str) -> None:
    assert in_words({"interventions": [intervention]}, TITLES) == text


def test_settings_that_differ_are_told_too() -> None:
    assert (
        in_words({"optimizer": {"weight_decay": 2.0}, "testbed": {"random_labels": True}}, {})
        == "weight decay 2; random labels True"
    )


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1, 1500, ["1", "10", "100", "1000", "10⁴"]),
        (0.5, 4, ["0.5", "1", "2"]),
        (1e-9, 1e3, ["10⁻⁸", "10⁻⁶", "10⁻⁴", "0.01", "1", "100"]),
        (2e-4, 2e-3, ["2·10⁻⁴", "5·10⁻⁴", "0.001", "0.002"]),
        (2e3, 3e4, ["2000", "5000", "10⁴", "2·10⁴"]),
        (5e-6, 5e-4, ["10⁻⁵", "3·10⁻⁵", "10⁻⁴", "3·10⁻⁴"]),
    ],
)
def test_ticks_of_log_axes(low: float, high: float, texts: list[str]) -> None:
    ticks = log_ticks(low, high)
    assert [text for _, text in ticks] == texts
    assert [value for value, _ in ticks] == sorted(value for value, _ in ticks)


@pytest.mark.parametrize(("most", "places"), [(6, [0, 2, 4, 9]), (8, [0, 1, 3, 4, 6, 9]), (10, list(range(10)))])
def test_of_many_steps_half_are_shown_evenly_and_half_by_ratio(most: int, places: list[int]) -> None:
    steps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    run = SimpleNamespace(frame=pl.DataFrame({"step": steps[::-1] * 2}))
    assert shown_steps(run, most).tolist() == [steps[place] for place in places]


def test_numbers_on_the_page_have_no_more_digits_than_a_screen_can_show() -> None:
    values = np.array([1.23456, 3.0, 123456.0, 2.5e9, np.nan])
    assert json.dumps(rounded(values)) == "[1.235, 3, 123500, 2500000000.0, null]"


def test_anchors_are_safe_in_a_page() -> None:
    assert anchor('hazard/train/"<x>"') == "hazard-train-x"
