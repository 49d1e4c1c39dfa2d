"""The accelerator's cases, in a process of their own: a device is registered for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

backend = pytest.importorskip("torch.utils.backend_registration")
CASES = Path(__file__).with_name("cases.py")


@pytest.mark.skipif(
    not hasattr(backend, "_setup_privateuseone_for_python_backend"), reason="this PyTorch cannot be given a device"
)
def test_everything_that_computes_runs_elsewhere_too():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=CASES.parents[2])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
