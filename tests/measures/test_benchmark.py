"""The benchmark runs, its slow ways agree with the fast ones, and the closed form is faster."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "measures.py"


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func.hessian's own
def test_quick_sizes(monkeypatch, tmp_path):
    out = tmp_path / "results.json"
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--threads", threads, "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads(out.read_text())
    assert set(found) == {"machine", "measurements"}
    flatness = found["measurements"]["relative flatness, d=32, K=20, N=512"]["others"]
    assert flatness["double loop of autograd"]["ratio"] > 10
    assert len(found["measurements"]) == 5
