"""The benchmarks of the engine run, and what they compare is the same network."""

import runpy
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("pair", ["published", "short"])
def test_the_usual_transformer_is_ours(pair):
    script = runpy.run_path(str(BENCHMARKS / "transformer_step.py"))
    assert script["check_equal"](pair, steps=3) < 1e-4
    assert script["operations"](pair, usual=True) > 2 * script["operations"](pair, usual=False)


def test_batching_and_the_cost_of_interventions():
    script = runpy.run_path(str(BENCHMARKS / "engine.py"))
    found = script["batching"]("quadratic", 4, 1, time.process_time, "cpu")
    assert found["replicas"] == 4
    assert set(script["costs"](1, time.process_time, "cpu")) == {"none", "SAM", *script["ARMS"]}
